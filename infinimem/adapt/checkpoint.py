"""Checkpoints: parameters, optimizer state and place of a run in one safetensors file, written atomically.

Samples are pure functions of seed, step and index, so a run goes on without the state of a random generator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DamagedCheckpoint, NothingToResume, RunChanged, TrainingDataError
from ..model.identity import differences
from ..storage.files import write_atomically
from ..storage.layout import PREFIX

NAME = "checkpoint.safetensors"
FORMAT = 1
RUN = f"{PREFIX}run"
# Settings of `train` that decide when a checkpoint is written, not what is trained; they may change on resume.
FREE = ("save_steps", "save_seconds")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Place:
    """The place that a run has come to.

    step: steps done.
    tokens, seconds: of these steps.
    setup: configuration, data files and model, which must be the same on resume, except for the FREE settings.
    """

    step: int
    tokens: int
    seconds: float
    setup: dict[str, Any]


def hash_file(path: Path) -> str:
    """SHA-256 of a data file. Raises TrainingDataError where the file cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise TrainingDataError(
            f"the data file '{path}' cannot be read ({error.strerror}); paths are relative to the configuration"
        ) from error
    return digest.hexdigest()


def save_checkpoint(
    directory: Path, place: Place, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Write the checkpoint of a run. Raises TargetNotWritable."""
    from safetensors.torch import save

    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach().cpu().contiguous()
        for moment, tensor in optimizer.state[parameter].items():
            tensors[f"{moment}/{name}"] = tensor.detach().cpu().contiguous()
    write_atomically(directory / NAME, save(tensors, {RUN: json.dumps({"format": FORMAT, **asdict(place)})}))


def _fixed(setup: Mapping[str, Any]) -> dict[str, Any]:
    """The setup without the FREE settings: it must stay the same."""
    train = {key: value for key, value in setup["config"]["train"].items() if key not in FREE}
    return {**setup, "config": {**setup["config"], "train": train}}


def load_checkpoint(
    directory: Path, setup: Mapping[str, Any], parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> Place:
    """Restore parameters and optimizer from the checkpoint in `directory`; returns the place of the run.

    Raises NothingToResume without a checkpoint, DamagedCheckpoint where it cannot be used, and RunChanged, which names
    the field, where `setup` differs from the setup of the checkpoint.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = directory / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NothingToResume(f"there is no checkpoint at '{path}'; start without --resume") from error
    except OSError as error:
        raise DamagedCheckpoint(f"'{path}' cannot be read ({error.strerror}); check its permissions") from error
    damaged = f"'{path}' is damaged; start again in another output directory"
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        saved = json.loads(header["__metadata__"][RUN])
        if saved.pop("format") != FORMAT:
            raise DamagedCheckpoint(f"'{path}' has a format that this infinimem does not know; start again")
        place = Place(**saved)
        different = differences(_fixed(place.setup), _fixed(setup))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{damaged} ({error})") from error
    # Checked before the tensors, because the tensors of a run with other layers would look damaged.
    if different:
        raise RunChanged(
            f"the run in '{directory}' was started with another setup: {'; '.join(different)}; restore that setup, or "
            "train into another output directory"
        )
    try:
        tensors = load(data)
        loaded = {
            name: (
                tensors[f"parameter/{name}"],
                {m: tensors[key] for m in MOMENTS if (key := f"{m}/{name}") in tensors},
            )
            for name in parameters
        }
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedCheckpoint(f"{damaged} ({error})") from error
    with torch.no_grad():
        for name, parameter in parameters.items():
            value, moments = loaded[name]
            if value.shape != parameter.shape:
                raise DamagedCheckpoint(f"'{name}' in '{path}' has the shape {tuple(value.shape)}; start again")
            parameter.copy_(value)
            if moments:
                optimizer.state[parameter] = {
                    # Adam keeps its count of steps on the CPU, whatever the parameter is on.
                    moment: tensor if moment == "step" else tensor.to(parameter.device)
                    for moment, tensor in moments.items()
                }
    return place
