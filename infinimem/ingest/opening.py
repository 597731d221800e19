"""Open a memory file under a model: choose the model, check that it may be loaded, check that the states fit it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import AdapterNotFound, DamagedMemoryFile, ModelMismatch, ModelNotFound, UnsupportedVersion
from ..model.catalogue import find_model, present_name
from ..model.directories import is_trusted, model_place
from ..model.identity import IN_MEMORY, differences, in_words, other_model
from ..model.settings import WEIGHTS, MemorySettings
from ..storage.memory_file import MemoryFile
from .ingestion import KEPT_SEGMENTS, Ingestion
from .record import Record

if TYPE_CHECKING:
    from ..attention import InfiniCache, State
    from ..attention.rules.state import Layout
    from ..model.infini_model import InfiniModel


def model_of(
    file: MemoryFile,
    name: str | os.PathLike[str] | None,
    device: str | None,
    adapter: str | os.PathLike[str] | None,
    weights: str | None = None,
    force: bool = False,
) -> InfiniModel:
    """The model for a memory file, with the settings that the file names.

    name: the model that the user names. None for the model that the file names, which is never fetched; if it is a
        directory, the directory must be trusted.
    device: as for `MemorySettings`.
    adapter: the adapter that the user names. None for the adapter that the file names; its directory must be trusted.
    weights: as for `MemorySettings`; None for what the file names.
    force: as for `opened_under`.

    Raises ModelNotFound, AdapterNotFound, ModelMismatch, UnsupportedVersion, and the errors of `shared_model`.
    """
    from ..model.adapter import adapter_directory
    from ..model.shared import shared_model

    if name is not None and not force:
        check_model_named(file, name)
    if name is None and find_model(file.model) is None and not is_trusted(model_place(file.model)):
        raise ModelNotFound(
            f"the memory file names the model at '{file.model}', which you have not used on this machine "
            "before; to allow it, give it as model= (--model)"
        )
    if adapter is None and not is_trusted(adapter_directory(file.adapter)):
        raise AdapterNotFound(
            f"the memory file names the adapter directory '{file.adapter}', which you have not used on this machine "
            "before; to allow it, give it as adapter= (--adapter)"
        )
    identity = file.identity
    # Files of bfloat16 do not name their weights.
    kept = identity.get(IN_MEMORY, WEIGHTS[0])
    if kept not in WEIGHTS:
        raise UnsupportedVersion(
            f"this memory was read with weights {kept!r}, which this version does not know; update infinimem"
        )
    settings = MemorySettings(
        identity["rule"],
        identity["rule_settings"],
        identity["segment_length"],
        {int(layer): heads for layer, heads in identity["memory_heads"].items()},
        identity["carry"],
        device,
        file.adapter if adapter is None else adapter,
        kept if weights is None else weights,
    )
    # A file from elsewhere must not decide what is fetched from a network.
    return shared_model(file.model if name is None else name, settings, fetch=name is not None)


def check_model_named(file: MemoryFile, name: str | os.PathLike[str]) -> None:
    """Raise ModelMismatch where a model clearly did not make a memory, before its weights are loaded or downloaded.

    name: the model that the user names. Two names of the catalogue are compared by name; other models by those fields
        of their configurations that are known without loading them.
    """
    from ..model.pretrained import known_config

    made, given, known = find_model(file.model), find_model(name), known_config(name)
    of_file = file.identity["config"]
    clearly = any(key in of_file and of_file[key] != value for key, value in known.items())
    if clearly or (made is not None and given is not None and made is not given):
        raise ModelMismatch(other_model(present_name(file.model), present_name(name)))


def opened_under(model: InfiniModel, file: MemoryFile, record: Record, force: bool) -> tuple[Ingestion, list[str]]:
    """The ingestion in a memory file, opened under a model.

    record: the record in the file. It loses its term weights where the model has another term head, or none.
    force: accept a model that did not make the file, as long as the states fit it.

    Returns the ingestion, and a line for each difference between the model and the model that made the file. Raises
    ModelMismatch, DamagedMemoryFile.
    """
    different = differences(file.identity, model.identity())
    if different and not force:
        raise ModelMismatch(in_words(different, present_name(file.model), present_name(model.name)), different)
    try:
        ingestion = ingestion_of(model, file, record)
    except DamagedMemoryFile as error:
        if not different:
            raise
        raise ModelMismatch(
            f"this memory was made with {present_name(file.model)} and does not fit {present_name(model.name)}, which "
            "cannot be forced; read the document again or leave --model out (model= in Python)",
            [*different, str(error)],
        ) from error
    weights = record.term_weights
    if weights is not None and (model.term_head is None or model.term_head.sha256 != weights.head):
        record.term_weights = None
    return ingestion, different


def ingestion_of(model: InfiniModel, file: MemoryFile, record: Record) -> Ingestion:
    """The ingestion in a memory file.

    record: the record in the file.

    Raises DamagedMemoryFile where the file does not fit the model.
    """
    seen, tokens = int(file.reading["seen"]), file.segment_tokens
    cache = cache_from(model, file.states, seen) if tokens is None else None
    vocabulary = model.model.config.get_text_config().vocab_size
    for part in (file.tail,) if tokens is None else (file.tail, tokens):
        if part.size and not 0 <= part.min() <= part.max() < vocabulary:
            raise DamagedMemoryFile(
                "the memory file has tokens that the model does not know; ingest the document again"
            )
    # Reading more tokens again could take hours.
    if tokens is not None and not 0 < tokens.size <= KEPT_SEGMENTS * model.segment_length:
        raise DamagedMemoryFile(
            f"the memory file has {tokens.size:,} tokens in place of states, which ingestion never leaves; ingest the "
            "document again"
        )
    pending, addresses = str(file.reading["pending_text"]), file.reading["addresses"]
    ends = [] if addresses is None else addresses["tail"]
    if addresses is not None and len(ends) != len(file.tail):
        raise DamagedMemoryFile("the unfinished segment in the memory file does not have one end for each token")
    known = None if tokens is None else tokens.tolist()
    if seen == 0 and record.keep_passages:
        known = []
    return Ingestion(model, record, cache, file.tail.tolist(), pending, ends=ends, segment_tokens=known)


def cache_from(model: InfiniModel, states: Mapping[int, Mapping[str, np.ndarray]], seen: int) -> InfiniCache:
    """The memory that the state tensors of a file hold.

    states: tensors by layer and name, (G, ...) each.
    seen: number of tokens that were read into the memory.

    Raises DamagedMemoryFile where layers, names or shapes are not those that this model and rule write.
    """
    import torch

    from ..attention import GatedRule
    from ..attention.cache import CARRIED
    from ..attention.rules.packing import packed_layout

    cache = model.new_cache()
    if not states and seen == 0:
        return cache
    kept, width = min(seen, model.carry), model.attachment.modules[0].head_dim
    heads = int(model.model.config.get_text_config().num_key_value_heads)
    loaded: dict[int, State] = {}
    for index in {*range(model.num_layers), *states}:
        remembering = model.memory_heads.get(index, []) if seen > model.carry else []
        needed: Layout = {}
        if remembering:
            layout = model.rule.layout(width, width)
            needed |= {name: (dtype, (len(remembering), *sizes)) for name, (dtype, sizes) in layout.items()}
        if kept and index < model.num_layers:
            layout = packed_layout(model.rule.packing, kept, width, width)
            needed |= {CARRIED + name: (dtype, (heads, *sizes)) for name, (dtype, sizes) in layout.items()}
        state = states.get(index, {})
        _check_layout(index, state, needed)
        slots = {tensor.shape[1] for name, tensor in state.items() if not name.startswith(CARRIED)}
        if not isinstance(model.rule, GatedRule) and len(slots) > 1:
            raise DamagedMemoryFile(f"the tensors of layer {index} have different numbers of slots")
        if state:
            found = {name: torch.from_numpy(tensor.copy()) for name, tensor in state.items()}
            loaded[index] = {name: tensor[None].to(model.device) for name, tensor in found.items()}
    cache.set_states(loaded, torch.tensor([seen], device=model.device))
    return cache


def _check_layout(index: int, state: Mapping[str, np.ndarray], needed: Mapping[str, Any]) -> None:
    """Raise DamagedMemoryFile where a layer's tensors are not the needed tensors; None in a shape: any size."""
    for name in {*state, *needed}:
        dtype, shape = needed.get(name, (None, ()))
        found = state.get(name, np.zeros(()))
        fits = len(found.shape) == len(shape) and all(
            need is None or have == need for have, need in zip(found.shape, shape, strict=True)
        )
        if not fits or str(found.dtype) != str(dtype).removeprefix("torch."):
            raise DamagedMemoryFile(
                f"layers.{index}.{name} is {found.dtype} {found.shape}, but the model needs {dtype} {shape}"
            )
