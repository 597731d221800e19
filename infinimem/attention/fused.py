"""The end of a segment by the C library, for the case that nearly all reading is: all layers in one call.

What it does not know (padding, gradients, other packings and rules, float32 models, GPUs) is left to torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, cast

import torch

from .. import native
from .carried import divided
from .packing import singles
from .rules import State
from .slots import SlotsRule, shuffled

if TYPE_CHECKING:
    from .cache import InfiniLayer


def fits(layers: Sequence[InfiniLayer]) -> bool:
    """Whether the library can end the segments of these layers, none of whose tokens are padding."""
    rule, keys, values = layers[0].rule, layers[0].content_keys[0], layers[0].values
    return (
        native.library() is not None
        and type(rule) is SlotsRule
        and rule.packing == "int8"
        and values.device.type == "cpu"
        and values.dtype == torch.bfloat16
        and keys.dtype in native.KINDS
        and not keys.requires_grad
        and not values.requires_grad
        and all(not layer.heads or len(layer.heads) == layer.keys.shape[1] for layer in layers)
        and all(map(_plain, chain.from_iterable((layer.state, layer.carried) for layer in layers)))
    )


def _plain(state: State | None) -> bool:
    """Whether all places are filled, and no gradient reaches them."""
    return state is None or (not state["counts"].requires_grad and bool((state["counts"] > 0).all()))


def end(layers: Sequence[InfiniLayer], written: slice) -> None:
    """Carry the last tokens over, and write what that pushes out; `written` is the part of the segment that stays."""
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
    results = iter(native.pool(jobs, rule.balance))
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
