"""Adapters: what training adds to a base model, in PEFT's LoRA layout plus one file of our own.

    adapter_config.json        peft_type LORA, r, lora_alpha, target_modules, base_model_name_or_path, ...
    adapter_model.safetensors  base_model.model.{module}.lora_A.weight (r, in) and .lora_B.weight (out, r)
    memory.safetensors         layers.{i}.gate (H,) float32, equation 10's beta; metadata `infinimem.trained`, JSON:
                               the rule, rule_settings, segment_length, memory_heads and carry of the training

An adapter is merged into the base weights when it is loaded, W += scale * B A with scale = lora_alpha / r. The third
file may be missing: the adapter is then a plain PEFT adapter. A fourth file, term_weights.safetensors, may hold the
term head (term_head.py). A directory `answer` may hold the answer adapter: a second adapter with the first two files
alone, which is merged on top of this adapter in a model that answers from passages in its prompt. Adapters of older
releases call the fourth file addresses.safetensors and the directory `reader`. Nothing but safetensors and JSON is ever
read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterNotFound, DamagedAdapter, UnsupportedAdapter
from ..storage.files import make_directory, write_atomically
from ..storage.layout import PREFIX
from .catalogue import default_adapter
from .directories import ANSWER, NO_ADAPTER, OLD_ANSWER, directory_at, trust
from .term_head import FILE as TERM_HEAD_FILE
from .term_head import TermHead, head_file, read_head

SHIPPED = Path(__file__).parents[1] / "adapters"
CONFIG_FILE, LORA_FILE, MEMORY_FILE = "adapter_config.json", "adapter_model.safetensors", "memory.safetensors"
TRAINED = f"{PREFIX}trained"
MAX_CONFIG_BYTES = 1 << 20
LORA_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
GATE_TENSOR = re.compile(r"layers\.(\d{1,4})\.gate")
MEMORY_TYPES = {"rule": str, "rule_settings": dict, "segment_length": int, "memory_heads": dict}
MEMORY_KEYS = (*MEMORY_TYPES, "carry")
# Variants of LoRA whose merge is not W += scale * B A with one scale.
VARIANTS = (
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "lora_bias",
    "use_qalora",
)
# Initializations of LoRA that leave the base weights as they are. Others (pissa, olora, corda, loftq) change the base
# weights, and an adapter that was trained beside changed weights does not fit the unchanged weights, which are loaded
# here.
BEGINNINGS = (None, "true", "false", "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter.

    name: the name by which memory files call it.
    sha256: hash of the content of its first three files, without term head and answer adapter.
    lora: module path to (A (r, in), B (out, r)), float32.
    scale: factor of the product of B and A.
    gates: layer to beta (H,) float32.
    memory: the settings that it was trained with: the keys of MEMORY_TYPES, and "carry" unless the adapter is older
        than this setting; {} if unknown.
    term_head: gives term weights; None without a term head.
    answer: the answer adapter; None without an answer adapter.

    Term head and answer adapter have their own hashes, because a memory's states do not depend on them.
    """

    name: str
    sha256: str
    lora: dict[str, tuple[Tensor, Tensor]]
    scale: float
    gates: dict[int, Tensor] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    term_head: TermHead | None = None
    answer: Adapter | None = None


def load_adapter(
    adapter: str | os.PathLike[str] | Adapter | None, model: str | os.PathLike[str] | None = None
) -> Adapter | None:
    """The adapter in a directory, or of that name in the package; None where no adapter is wanted.

    adapter: a directory (which becomes a trusted directory), the name of an adapter in the package, or an Adapter,
        which is returned as it is. None takes the adapter that the catalogue names for the model, and no adapter for
        models that are not in it; "none" takes no adapter.
    model: name of the base model; None for the default model.
    Raises AdapterNotFound, DamagedAdapter, UnsupportedAdapter.
    """
    if isinstance(adapter, Adapter):
        return adapter
    if adapter is None:
        own = default_adapter(model)
        return None if own is None else read_adapter(SHIPPED / own, own)
    name = os.fspath(adapter)
    if name == NO_ADAPTER:
        return None
    if _is_shipped(name):
        return read_adapter(SHIPPED / name, name)
    directory = adapter_directory(name)
    if directory is None:
        raise AdapterNotFound(
            f"no adapter directory is at '{name}'; name a directory with {CONFIG_FILE}, or 'none' for the bare model"
        )
    found = read_adapter(directory, name)
    trust(directory)
    return found


def adapter_directory(name: str) -> Path | None:
    """The user's directory from which an adapter of this name is read; None for adapters of the package."""
    return None if not name or name == NO_ADAPTER or _is_shipped(name) else directory_at(name)


def _is_shipped(name: str) -> bool:
    plain = bool(name) and Path(name).name == name and name not in (".", "..")
    return plain and directory_at(SHIPPED / name) is not None


def read_adapter(directory: Path, name: str | None = None) -> Adapter:
    """Read and check an adapter directory. Raises AdapterNotFound, DamagedAdapter, UnsupportedAdapter."""
    adapter = _read_files(directory, name or str(directory))
    own = next((place for name in (ANSWER, OLD_ANSWER) if (place := directory / name).is_dir()), None)
    answer = None if own is None else _read_files(own, f"{adapter.name}/{own.name}")
    return replace(adapter, term_head=read_head(directory), answer=answer)


def _read_files(directory: Path, name: str) -> Adapter:
    content: dict[str, bytes] = {}
    for file in (CONFIG_FILE, LORA_FILE, MEMORY_FILE):
        try:
            content[file] = (directory / file).read_bytes()
        except FileNotFoundError as error:
            if file == CONFIG_FILE:
                raise AdapterNotFound(f"'{directory}' has no {CONFIG_FILE}; name an adapter directory") from error
            if file == LORA_FILE:
                raise DamagedAdapter(
                    f"the adapter '{directory}' has no {LORA_FILE}; only safetensors are read"
                ) from error
        except OSError as error:
            raise DamagedAdapter(
                f"'{directory / file}' cannot be read ({error.strerror}); check its permissions"
            ) from error
    rank, scale = _check_config(directory, content[CONFIG_FILE])
    gates, memory = _memory_part(directory, content.get(MEMORY_FILE))
    digest = hashlib.sha256()
    for file, data in content.items():
        digest.update(f"{file}:{len(data)};".encode())
        digest.update(data)
    return Adapter(name, digest.hexdigest(), _lora_part(directory, content[LORA_FILE], rank), scale, gates, memory)


def _check_config(directory: Path, data: bytes) -> tuple[int, float]:
    """Check the configuration; returns the rank and the scale."""
    try:
        config = json.loads(data) if len(data) <= MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError) as error:
        raise DamagedAdapter(f"{CONFIG_FILE} in '{directory}' is not JSON ({error}); restore a copy") from error
    if not isinstance(config, dict):
        raise DamagedAdapter(f"{CONFIG_FILE} in '{directory}' is too large, or not a JSON object; restore a copy")
    if config.get("peft_type") != "LORA":
        raise UnsupportedAdapter(f"'{directory}' is a {config.get('peft_type')} adapter; infinimem takes LoRA only")
    variant = [key for key in VARIANTS if config.get(key)]
    if config.get("bias", "none") != "none":
        variant.append("bias")
    beginning = config.get("init_lora_weights")
    if (beginning if beginning is None else str(beginning).lower()) not in BEGINNINGS:
        variant.append(f"init_lora_weights {beginning}")
    if variant:
        raise UnsupportedAdapter(
            f"the adapter '{directory}' uses {', '.join(variant)}; infinimem takes plain LoRA only"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise DamagedAdapter(f"{CONFIG_FILE} in '{directory}' needs a rank r >= 1 and a number lora_alpha")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _tensors(directory: Path, file: str, data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, in float32, and metadata of a safetensors file. Raises DamagedAdapter for values that are not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedAdapter(f"{file} in '{directory}' is damaged ({error}); restore a copy") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise DamagedAdapter(
                f"'{name}' in {file} of '{directory}' has values that are not finite numbers; restore a copy"
            )
    return {name: tensor.float() for name, tensor in tensors.items()}, header.get("__metadata__") or {}


def _lora_part(directory: Path, data: bytes, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    tensors, _ = _tensors(directory, LORA_FILE, data)
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = LORA_TENSOR.fullmatch(name)
        if match is None:
            raise UnsupportedAdapter(f"{LORA_FILE} in '{directory}' holds '{name}'; infinimem takes plain LoRA only")
        halves.setdefault(match[1], {})[match[2]] = tensor
    for path, pair in halves.items():
        if set(pair) != {"A", "B"} or any(half.ndim != 2 for half in pair.values()):
            raise DamagedAdapter(f"{LORA_FILE} in '{directory}' lacks lora_A or lora_B of '{path}'; restore a copy")
        if pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            raise DamagedAdapter(
                f"'{path}' in {LORA_FILE} of '{directory}' does not have the rank {rank} of the configuration; restore "
                "a copy"
            )
    return {path: (pair["A"], pair["B"]) for path, pair in sorted(halves.items())}


def _memory_part(directory: Path, data: bytes | None) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """The gates, and the settings of the memory that the adapter was trained with."""
    if data is None:
        return {}, {}
    tensors, metadata = _tensors(directory, MEMORY_FILE, data)
    gates: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        match = GATE_TENSOR.fullmatch(name)
        if match is None or tensor.ndim != 1:
            raise DamagedAdapter(f"{MEMORY_FILE} in '{directory}' holds '{name}', which is no gate; update infinimem")
        gates[int(match[1])] = tensor
    try:
        memory = json.loads(metadata[TRAINED])
    except (KeyError, ValueError, RecursionError) as error:
        raise DamagedAdapter(
            f"{MEMORY_FILE} in '{directory}' does not say what the adapter was trained with ({error}); restore a copy"
        ) from error
    if (
        not isinstance(memory, dict)
        or any(type(memory.get(key)) is not kind for key, kind in MEMORY_TYPES.items())
        or type(memory.get("carry", 0)) is not int
        or not all(
            layer.isdecimal() and isinstance(heads, list) and all(type(head) is int for head in heads)
            for layer, heads in memory["memory_heads"].items()
        )
    ):
        raise DamagedAdapter(f"{MEMORY_FILE} in '{directory}' has fields of the wrong type; restore a copy")
    return dict(sorted(gates.items())), memory


def write_adapter(
    directory: Path,
    *,
    lora: Mapping[str, tuple[Tensor, Tensor]],
    alpha: float,
    base: str,
    gates: Mapping[int, Tensor],
    memory: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write an adapter directory, each file atomically.

    lora: module path to (A (r, in), B (out, r)); one rank for all modules.
    alpha: lora_alpha; the scale is alpha / r.
    base: name of the base model.
    gates: layer to beta (H,); written in float32.
    memory: as in `Adapter`; empty for an answer adapter, which reads no memory.
    dtype: of the LoRA tensors in the file.
    Raises TargetNotWritable.
    """
    from safetensors.torch import save

    make_directory(directory)
    rank = next(iter(lora.values()))[0].shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({path.rpartition(".")[2] for path in lora}),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    halves = {
        f"base_model.model.{path}.lora_{half}.weight": tensor.detach().to("cpu", dtype).contiguous()
        for path, pair in lora.items()
        for half, tensor in zip("AB", pair, strict=True)
    }
    betas = {f"layers.{index}.gate": beta.detach().float().cpu().contiguous() for index, beta in gates.items()}
    # A single key, because safetensors writes several keys in random order, and equal adapters must have equal hashes.
    trained = {TRAINED: json.dumps({key: memory[key] for key in MEMORY_KEYS if key in memory}, sort_keys=True)}
    write_atomically(directory / LORA_FILE, save(halves, {"format": "pt"}))
    if memory:
        write_atomically(directory / MEMORY_FILE, save(betas, trained))
    write_atomically(directory / CONFIG_FILE, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def copy_adapter(name: str, directory: Path) -> None:
    """Copy an adapter's files, byte for byte, without its answer adapter. Raises TargetNotWritable."""
    source = SHIPPED / name if (SHIPPED / name).is_dir() else Path(name)
    make_directory(directory)
    for file in (CONFIG_FILE, LORA_FILE, MEMORY_FILE):
        if (source / file).is_file():
            write_atomically(directory / file, (source / file).read_bytes())
    if (head := head_file(source)) is not None:
        write_atomically(directory / TERM_HEAD_FILE, head.read_bytes())
