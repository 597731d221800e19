"""The end of a segment: its last tokens are carried over, and the tokens that they push out go into the memory.

- nothing else writes into a memory while a document is read
- several layers are written in one call
- the C library ends the segments of ingestion on a CPU, all layers in one call; torch, which is the reference, does
  padding, gradients, other packings and rules, and GPUs
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from ..errors import InvalidSetting
from . import native
from .cache import InfiniCache, InfiniLayer
from .carried import Leaving, carry_over, divided
from .rules.packing import singles
from .rules.slots import SlotsRule, shuffled
from .rules.state import State

# Layers that torch writes in one call on a CPU: few enough that their tensors stay in its caches.
FEW_LAYERS = 6


def end_segment(cache: InfiniCache, mask: Tensor | None = None, *, written: slice = slice(None)) -> None:
    """Carry the end of every layer's segment over, write the tokens that leave into the memory, empty the segment.

    cache: recorded while the segment was read (`InfiniCache.recording`); changed in place.
    mask: (B, T) bool over the written part, False for padding; None without padding.
    written: the part of the segment that is kept; the rest is dropped.
    Raises InvalidSetting where the segment was not recorded.
    """
    layers = [layer for layer in cache.layers if layer.keeps]
    if layers and layers[0].get_seq_length() > 0:
        length = layers[0].get_seq_length()
        if any(sum(k.shape[-2] for k in layer.content_keys) != length for layer in layers):
            raise InvalidSetting("this segment was read without recording; call cache.recording() before reading")
        for group in _equal_shapes(layers):
            if mask is None and _native_fits(group):
                _native_end(group, written)
                continue
            few = FEW_LAYERS if group[0].keys.device.type == "cpu" else len(group)
            for start in range(0, len(group), few):
                _end(group[start : start + few], mask, written)
    for layer in cache.layers:
        layer.empty_segment()


def _equal_shapes(layers: Sequence[InfiniLayer]) -> list[list[InfiniLayer]]:
    """Layers that can be written together: equal widths of keys and values on one device."""
    groups: dict[object, list[InfiniLayer]] = {}
    for layer in layers:
        groups.setdefault((layer.keys.shape[-1], layer.values.shape[-1], layer.keys.device), []).append(layer)
    return list(groups.values())


def _end(layers: Sequence[InfiniLayer], mask: Tensor | None, written: slice) -> None:
    """End the segments of several layers in one call, their heads side by side."""
    batch, size = layers[0].keys.shape[0], layers[0].carry
    keys = torch.cat([_one(layer.content_keys, dim=-2)[:, :, written] for layer in layers], dim=1)
    values = torch.cat([layer.values[:, :, written] for layer in layers], dim=1)  # (B, sum of G, T, Dv)
    if mask is None:
        added = torch.full((batch,), keys.shape[-2], dtype=torch.int64, device=keys.device)
    else:
        added = mask.sum(dim=-1)
    seen = added if layers[0].seen is None else layers[0].seen + added
    leaving: Leaving | None = Leaving(keys, values, mask)
    if size:
        before = _side_by_side([layer.carried for layer in layers])
        carried, leaving = carry_over(before, keys, values, mask, size, layers[0].rule.packing)
        parts = _apart(carried, [layer.keys.shape[1] for layer in layers])
        for layer, part in zip(layers, parts, strict=True):
            layer.set_past(layer.state, part, seen)
    if leaving is not None:
        _write(layers, leaving, seen)


def _write(layers: Sequence[InfiniLayer], leaving: Leaving, seen: Tensor) -> None:
    """Write the leaving tokens (of all heads of all these layers) into the memories of the heads that have one."""
    chosen = [layer for layer in layers if layer.remembers]
    if not chosen:
        return
    keys, values = leaving.keys, leaving.values  # (B, sum of G, T, D) and (B, sum of G, T, Dv)
    sizes = [layer.keys.shape[1] for layer in layers]
    remembering = [size if layer.heads is None else len(layer.heads) for layer, size in zip(layers, sizes, strict=True)]
    if remembering != sizes:
        keys, values = (
            torch.cat([layer.of_heads(x) for layer, x in zip(layers, all_of.split(sizes, dim=1), strict=True)], dim=1)
            for all_of in (keys, values)
        )
    before = _side_by_side([layer.state for layer in chosen])
    state = chosen[0].rule.write(before, keys, values, leaving.mask, layers[0].values.dtype)
    for layer, part in zip(chosen, _apart(state, [size for size in remembering if size]), strict=True):
        layer.set_past(part, layer.carried, seen)


def _one(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Tensors one after the other; a single tensor is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _side_by_side(states: Sequence[State | None]) -> State | None:
    """The states of several layers as one, their heads side by side; None where no layer has a state yet."""
    found = [state for state in states if state is not None]
    return {name: torch.cat([state[name] for state in found], dim=1) for name in found[0]} if found else None


def _apart(state: State, sizes: Sequence[int]) -> list[State]:
    """The opposite of `_side_by_side`: the states of layers that have `sizes` heads each."""
    parts = {name: tensor.split(list(sizes), dim=1) for name, tensor in state.items()}
    return [{name: tensors[index] for name, tensors in parts.items()} for index in range(len(sizes))]


def _native_fits(layers: Sequence[InfiniLayer]) -> bool:
    """Whether the C library can end the segments of these layers; the segments have no padding."""
    rule, keys, values = layers[0].rule, layers[0].content_keys[0], layers[0].values
    return (
        native.knows(values.dtype)
        and type(rule) is SlotsRule
        and rule.packing == "int8"
        and values.device.type == "cpu"
        and keys.dtype in native.KINDS
        and not keys.requires_grad
        and not values.requires_grad
        and all(not layer.heads or len(layer.heads) == layer.keys.shape[1] for layer in layers)
        and all(map(_plain, chain.from_iterable((layer.state, layer.carried) for layer in layers)))
    )


def _plain(state: State | None) -> bool:
    """Whether all places are filled, and no gradient reaches them."""
    return state is None or (not state["counts"].requires_grad and bool((state["counts"] > 0).all()))


def _native_end(layers: Sequence[InfiniLayer], written: slice) -> None:
    """Do what `_end` does, with the C library."""
    rule = cast("SlotsRule", layers[0].rule)
    jobs: list[native.Job] = []
    ends: list[tuple[bool, bool]] = []  # whether the layer has a job for what it carries, and for its memory
    for layer in layers:
        keys = layer.content_keys[0] if len(layer.content_keys) == 1 else torch.cat(layer.content_keys, dim=-2)
        new = singles(keys[:, :, written], layer.values[:, :, written], None)
        stay, leave = divided([new] if layer.carried is None else [layer.carried, new], layer.carry)
        ends.append((layer.carry > 0, bool(leave) and layer.remembers))
        if layer.carry:
            jobs.append(_job(stay, layer.carry))
        if leave and layer.remembers:
            jobs.append(_job(leave if layer.state is None else [layer.state, *leave], rule.slots))
    results = iter(native.pool(jobs, rule.balance, layers[0].values.dtype))
    added = new["counts"].shape[2]
    seen = (
        torch.full((keys.shape[0],), added, dtype=torch.int64, device="cpu")
        if layers[0].seen is None
        else layers[0].seen + added
    )
    for layer, (carries, writes) in zip(layers, ends, strict=True):
        carried = next(results) if carries else layer.carried
        layer.set_past(next(results) if writes else layer.state, carried, seen)


def _job(runs: Sequence[State], capacity: int) -> native.Job:
    return native.Job(runs, capacity, shuffled(sum(run["counts"].shape[2] for run in runs)))
