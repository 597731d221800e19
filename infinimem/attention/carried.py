"""Carried tokens: the last tokens of the past, kept as they are and read at their true distance.

- at the end of a segment its last tokens are carried, with position-free keys; the tokens that they push out are
  written into the memory, so every token is either carried or in the memory
- the first tokens of the text are carried for good: attention falls on them where it has nothing to look for, and a
  model whose window moves away from them fails (attention sinks, arXiv 2309.17453)
- the next segment, or a question, reads the carried tokens as the tokens just before it, in one softmax with its own;
  the first tokens of the text then stand just before the other carried tokens, wherever they once stood
- a carried state is {"keys" (B, G, W, D), "values" (B, G, W, Dv), "counts" (B, G, W)}, packed like slots; a count is 1,
  or 0 for a place that is empty because another row of the batch has read more tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .rules.packing import Places, in_a_row, pack, singles
from .rules.state import State

# Number of first tokens of the text that stay for good.
SINKS = 4


class Leaving(NamedTuple):
    """Tokens that go into the memory. mask: (B, T), False where a row has no token; None where all rows have one."""

    keys: Tensor  # (B, G, T, D), position-free
    values: Tensor  # (B, G, T, Dv)
    mask: Tensor | None


def carry_over(
    carried: State | None, keys: Tensor, values: Tensor, mask: Tensor | None, size: int, packing: str
) -> tuple[State, Leaving | None]:
    """Divide the carried tokens and the tokens of a segment into those that stay and those that leave.

    carried: the carried state so far; None if nothing is carried.
    keys: (B, G, T, D), position-free, of the segment.
    values: (B, G, T, Dv), of the segment.
    mask: (B, T), False for padding; None without padding.
    size: the largest number of tokens that stay.
    Returns the new carried state, packed, and the tokens that leave (None if all stay).
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
    # Padding first, then the row's own tokens, so that each row is treated as if it were alone.
    order = real.long().argsort(dim=1, stable=True)
    joined = in_a_row(*states)
    joined = Places(_of_rows(joined.x, order), _of_rows(joined.counts, order), joined.width)
    real = real.gather(1, order)
    total, filled = real.shape[1], min(size, int(real.sum(dim=1).max()))
    sinks, found = min(SINKS, size // 2), real.sum(dim=1, keepdim=True)  # found: (B, 1)
    places = torch.arange(filled, device=keys.device)
    # The last tokens of every row; where a row has more tokens than fit, its first tokens take the first places.
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
    """Divide the places of states, one after the other, into the `size` that stay and the others, which leave.

    states: without empty places.
    Returns two lists of runs of places, which are views of the given tensors.
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
    """The bias that hides the empty places, (B, G, 1, W); None where no place is empty."""
    counts = carried["counts"]
    return None if bool((counts > 0).all()) else counts.log().unsqueeze(-2)


def too_far(positions: Tensor, carried: int, reach: int) -> Tensor | None:
    """The bias (B, 1, T, W) that hides the carried tokens that lie too far back; None if all are near enough.

    positions: (B, T), of the queries; 0 is the first token after the carried ones.
    carried: W, the number of carried tokens.
    reach: the distance in tokens from which on a query does not see a token.
    """
    back = torch.arange(carried, 0, -1, device=positions.device)  # distances from position 0
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
