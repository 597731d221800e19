"""Carried tokens: the end of the past as it is, read at its true distance, before older tokens go into the memory.

- at the end of a segment its last tokens stay behind, with position-free keys; what they push out is written into the
  memory, so every token is in one of the two
- the first tokens of the text stay for good: attention rests on them where it has nothing to look for, and a window
  that moves away from them is lost (attention sinks, arXiv 2309.17453)
- the next segment, or a question, reads them as the tokens just before it, in one softmax with itself; the first
  tokens of the text stand before the others there, wherever they once were
- a carried state is {"keys" (B, G, W, D), "values" (B, G, W, Dv), "counts" (B, G, W)}, packed like slots; counts are 1,
  or 0 for places that are empty because another row of the batch has read more
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .packing import Places, in_a_row, pack, singles
from .rules import State

# First tokens of the text that stay for good.
SINKS = 4


class Leaving(NamedTuple):
    """Tokens that go into the memory. mask: (B, T), False where a row has none; None where all have."""

    keys: Tensor  # (B, G, T, D), position-free
    values: Tensor  # (B, G, T, Dv)
    mask: Tensor | None


def carry_over(
    carried: State | None, keys: Tensor, values: Tensor, mask: Tensor | None, size: int, packing: str
) -> tuple[State, Leaving | None]:
    """Of the carried tokens and those of a segment: the `size` that stay, and those that leave.

    keys: (B, G, T, D) and values: (B, G, T, Dv), position-free. mask: (B, T), False for padding.
    """
    new = singles(keys, values, mask)
    states = [new] if carried is None else [carried, new]
    real = torch.cat([state["counts"][:, 0] for state in states], dim=1) > 0  # (B, N)
    if bool(real.all()):
        stay, leave = divided(states, size)
        packed = pack(in_a_row(*stay).state(), packing)
        if not leave:
            return packed, None
        left = in_a_row(*leave)
        return packed, Leaving(left.keys, left.values, None)
    # Each row's own tokens last, so that it is treated as if alone.
    order = real.long().argsort(dim=1, stable=True)
    joined = in_a_row(*states)
    joined = Places(_of_rows(joined.x, order), _of_rows(joined.counts, order), joined.width)
    real = real.gather(1, order)
    total, filled = real.shape[1], min(size, int(real.sum(dim=1).max()))
    sinks, found = min(SINKS, size // 2), real.sum(dim=1, keepdim=True)  # found: (B, 1)
    places = torch.arange(filled, device=keys.device)
    # The first tokens of a row that has more than there is room for, and the last ones of every row.
    chosen = torch.where(places < sinks, total - found.clamp_min(filled) + places, total - filled + places)  # (B, W)
    packed = pack(Places(_of_rows(joined.x, chosen), _of_rows(joined.counts, chosen), joined.width).state(), packing)
    end, longest = total - size + sinks, int(found.max())
    if longest <= size:
        return packed, None
    begin = total - longest + sinks
    mask = torch.arange(begin, end, device=keys.device) >= total - found + sinks  # (B, end - begin)
    mask = None if bool(mask.all()) else mask
    return packed, Leaving(joined.keys[:, :, begin:end], joined.values[:, :, begin:end], mask)


def divided(states: Sequence[State], size: int) -> tuple[list[State], list[State]]:
    """Of the places of states one after the other, none of them empty: the `size` that stay, and those that leave.

    Both are runs of places, views of the given tensors.
    """
    total, sinks = sum(state["counts"].shape[2] for state in states), min(SINKS, size // 2)
    if total <= size:
        return list(states), []
    end = total - size + sinks
    return [*_between(states, 0, sinks), *_between(states, end, total)], _between(states, sinks, end)


def _between(states: Sequence[State], start: int, end: int) -> list[State]:
    """The places from `start` to `end` of states one after the other."""
    runs, begin = [], 0
    for state in states:
        count = state["counts"].shape[2]
        own = slice(max(start - begin, 0), min(end - begin, count))
        if own.start < own.stop:
            runs.append({name: tensor[:, :, own] for name, tensor in state.items()})
        begin += count
    return runs


def bias_of(carried: State) -> Tensor | None:
    """What hides the empty places, (B, G, 1, W); None where there are none."""
    counts = carried["counts"]
    return None if bool((counts > 0).all()) else counts.log().unsqueeze(-2)


def too_far(positions: Tensor, carried: int, reach: int) -> Tensor | None:
    """What hides the carried tokens that lie `reach` or more tokens back from queries at `positions` (B, T).

    (B, 1, T, W); None if all are near enough.
    """
    back = torch.arange(carried, 0, -1, device=positions.device)  # of position 0
    distance = positions[:, None, :, None] + back
    if bool((distance < reach).all()):
        return None
    return torch.zeros(distance.shape, device=back.device).masked_fill(distance >= reach, float("-inf"))


def _of_rows(x: Tensor, order: Tensor) -> Tensor:
    """x (B, G, N, ...) with its places N in the order (B, N)."""
    index = order[:, None, :].expand(-1, x.shape[1], -1)
    if x.ndim == 4:
        return x.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, x.shape[3]))
    return x.gather(2, index)
