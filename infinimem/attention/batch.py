"""Several caches as the rows of one batch, and back.

Memories of texts of different lengths hold different numbers of places. In a batch, the shorter memories are filled up
with empty places (count 0), which no query sees and no write keeps. A memory from a batch equals the memory that the
text gives alone, up to the rounding of matrix products of other shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InvalidSetting
from .cache import InfiniCache, InfiniLayer
from .rules.state import State


def stack(caches: Sequence[InfiniCache]) -> InfiniCache:
    """A cache whose rows are the given caches; a single cache is returned itself.

    caches: of one row each, equal in rule and layers, between two segments.
    Raises InvalidSetting where a cache is in the middle of a segment.
    """
    if len(caches) == 1:
        return caches[0]
    if any(layer.get_seq_length() for cache in caches for layer in cache.layers):
        raise InvalidSetting("memories can be put side by side between two segments only")
    result = caches[0].clone()
    for layers in zip(result.layers, *(cache.layers for cache in caches), strict=True):
        target, rows = layers[0], layers[1:]
        known = next((layer.seen for layer in rows if layer.seen is not None), None)
        if known is None:
            continue
        seen = torch.cat([known.new_zeros(1) if layer.seen is None else layer.seen for layer in rows])
        state = _rows([layer.state for layer in rows], at_end=True)
        # Carried tokens stand just before the next segment, so empty places go to their beginning.
        target.set_past(state, _rows([layer.carried for layer in rows], at_end=False), seen)
    return result


def join(first: InfiniCache, second: InfiniCache) -> InfiniCache:
    """The rows of one cache and, below them, the rows of another, each with its segment.

    The shorter segment gets zeros before its beginning, which a mask must hide. Raises InvalidSetting where a cache has
    a past.
    """
    if first.seen is not None or second.seen is not None:
        raise InvalidSetting("segments can be put side by side only where nothing was read before them")
    result = first.clone()
    for target, one, other in zip(result.layers, first.layers, second.layers, strict=True):
        size = max(one.get_seq_length(), other.get_seq_length())
        pairs = ((one.keys, other.keys), (one.values, other.values))
        target.keys, target.values = (torch.cat([_padded(x, size, at_end=False) for x in pair]) for pair in pairs)
    return result


def unstack(rows: InfiniCache, caches: Sequence[InfiniCache]) -> None:
    """Give each cache the past of its row in `rows`, without empty places."""
    if rows is caches[0]:
        return
    for index, cache in enumerate(caches):
        for source, target in zip(rows.layers, cache.layers, strict=True):
            _take_row(source, index, target)


def _take_row(source: InfiniLayer, row: int, target: InfiniLayer) -> None:
    if source.seen is None:
        return
    seen = source.seen[row : row + 1]
    # While all tokens read so far are carried, nothing has gone into the memory.
    state = _row(source.state, row) if int(seen) > source.carry else None
    target.set_past(state, _row(source.carried, row), seen)


def _rows(states: Sequence[State | None], at_end: bool) -> State | None:
    """States of one row each as one state; missing states and missing places become zeros.

    at_end: whether the missing places are the last ones.
    """
    found = [state for state in states if state is not None]
    if not found:
        return None
    empty = {name: torch.zeros_like(tensor) for name, tensor in found[0].items()}
    rows = [empty if state is None else state for state in states]
    if "counts" not in empty:
        return {name: torch.cat([state[name] for state in rows]) for name in empty}
    size = max(state["counts"].shape[2] for state in found)
    return {name: torch.cat([_padded(state[name], size, at_end) for state in rows]) for name in empty}


def _padded(tensor: Tensor, size: int, at_end: bool) -> Tensor:
    """(1, G, M, ...) filled with zeros up to `size` places; beyond `size`, only zeros are cut off."""
    missing = size - tensor.shape[2]
    if missing <= 0:
        return tensor[:, :, :size]
    zeros = tensor.new_zeros(*tensor.shape[:2], missing, *tensor.shape[3:])
    return torch.cat((tensor, zeros) if at_end else (zeros, tensor), dim=2)


def _row(state: State | None, row: int) -> State | None:
    """One row of a state, without its empty places; None where all of its places are empty."""
    if state is None:
        return None
    own = {name: tensor[row : row + 1] for name, tensor in state.items()}
    if "counts" not in own:
        return {name: tensor.clone() for name, tensor in own.items()}
    filled = own["counts"][0, 0] > 0  # (M,), equal for all heads
    return {name: tensor[:, :, filled] for name, tensor in own.items()} if bool(filled.any()) else None
