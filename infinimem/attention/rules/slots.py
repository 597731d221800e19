"""The `slots` rule: a bounded set of merged keys and values, read by the model's own softmax.

- beyond the paper: every KV head keeps at most `slots` triples (key centroid, value mean, token count)
- slots, carried tokens and segment are read in one softmax; the logit of a slot is q·k + mass · log(count). With mass 1
  a slot counts as if each of its tokens stood at the centroid; with a mass below 1, text that a document repeats does
  not outweigh text that it says once
- queries are rotated by one fixed virtual distance, so all of the past seems to lie that far back; the pretrained heads
  find the past there without any training
- a write merges the cheapest pairs by Ward's criterion, in rounds, until the slots fit again. The places begin in a
  fixed random order; in a round, each even place is offered to its cheapest odd partner, and the cheapest offers are
  taken. The result is deterministic, and equal for a row alone and for the same row in a batch
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidSetting
from .base import SoftmaxRule
from .packing import PACKINGS, Places, in_a_row, pack, packed_layout, singles, unpacked
from .state import Layout, Part, State

# Pair costs of one chunk of heads stay below this many entries, so that they fit into the CPU's cache.
CHUNK_ENTRIES = 1 << 21
MAX_DISTANCE = 1 << 31  # tokens
# The number of places whose indexes fit into the half of a float32 that a bfloat16 leaves free.
PLACES = 1 << 16


class SlotsRule(SoftmaxRule):
    """Bounded slots with Ward merging.

    slots: capacity per KV head.
    distance: the virtual distance in tokens.
    balance: weight of value distance against key distance in the merge cost, each in units of its spread.
    mass: a slot of n tokens weighs as much as n ** mass tokens at its centroid.
    packing: how keys and values are kept between segments: "float32", "float16" or "int8" (one scale a slot and
        tensor).

    `merge` pools the slots of both memories and merges them down to capacity, as a write does. The result approximates
    reading both documents in one go, because the order of merging differs.
    """

    name = "slots"

    def __init__(
        self, slots: int = 512, distance: int = 512, balance: float = 1.0, mass: float = 0.5, packing: str = "int8"
    ) -> None:
        self.slots = int(slots)
        self.distance = int(distance)
        self.balance = float(balance)
        self.mass = float(mass)
        self.packing = packing
        if packing not in PACKINGS:
            raise InvalidSetting(f"there is no packing {packing!r} of slots; choose one of {', '.join(PACKINGS)}")
        if self.slots < 2 or not 0 <= self.distance < MAX_DISTANCE or not 0 <= self.balance < float("inf"):
            raise InvalidSetting(
                f"slots ({slots}) must be at least 2, distance ({distance}) and balance ({balance}) at least 0, and "
                f"distance below {MAX_DISTANCE:,}"
            )
        if not 0 < self.mass <= 1:
            raise InvalidSetting(f"mass is {mass}; give a number above 0, and at most 1")

    def settings(self) -> dict[str, Any]:
        return {
            "slots": self.slots,
            "distance": self.distance,
            "balance": self.balance,
            "mass": self.mass,
            "packing": self.packing,
        }

    def layout(self, key_width: int, value_width: int) -> Layout:
        return packed_layout(self.packing, None, key_width, value_width)

    def write(
        self,
        state: State | None,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        precision: torch.dtype = torch.float32,
    ) -> State:
        new = singles(keys, values, mask)
        return self._pool(in_a_row(new) if state is None else in_a_row(state, new), precision)

    def merge(self, a: State, b: State) -> State:
        return self._pool(in_a_row(a, b), torch.float32)

    def _pool(self, places: Places, search: torch.dtype) -> State:
        """Merge down to capacity and pack; each row leaves its empty slots out, so it is treated as if alone."""
        filled = places.counts[:, 0] > 0  # (B, M), equal for all heads
        if bool(filled.all()):
            return pack(self._reduce(places, search), self.packing)
        rows = [
            self._reduce(Places(x[None, :, own], counts[None, :, own], places.width), search)
            for x, counts, own in zip(places.x, places.counts, filled, strict=True)
        ]
        size = max(row["counts"].shape[-1] for row in rows)
        padded = {name: torch.cat([pad_slots(row[name], size) for row in rows]) for name in rows[0]}
        return pack(padded, self.packing)

    def prepare(self, state: State, dtype: torch.dtype) -> State:
        return {
            **{name: unpacked(state, name, dtype) for name in ("keys", "values")},
            "bias": (self.mass * state["counts"].log()).unsqueeze(-2),  # (B, G, 1, M), -inf for empty slots
        }

    def part(self, state: State, queries: Tensor) -> Part:
        return Part(queries, state["keys"], state["values"], [state["bias"]])

    def _reduce(self, places: Places, search: torch.dtype) -> State:
        batch, groups, size = places.counts.shape
        if size <= self.slots:
            return places.state()
        chunk = max(1, CHUNK_ENTRIES // (size // 2) ** 2)
        parts = [
            ward_merge(x, n, places.width, self.slots, self.balance, search)
            for x, n in zip(places.x.flatten(0, 1).split(chunk), places.counts.flatten(0, 1).split(chunk), strict=True)
        ]
        merged, counts = (torch.cat(column).unflatten(0, (batch, groups)) for column in zip(*parts, strict=True))
        return Places(merged, counts, places.width).state()


def pad_slots(tensor: Tensor, size: int) -> Tensor:
    """The tensor with zeros at the end of its slot dimension (the third), up to `size` slots."""
    missing = size - tensor.shape[2]
    if missing == 0:
        return tensor
    return torch.cat((tensor, tensor.new_zeros(*tensor.shape[:2], missing, *tensor.shape[3:])), dim=2)


def ward_merge(
    x: Tensor,
    counts: Tensor,
    key_width: int,
    capacity: int,
    balance: float,
    search: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Merge slots down to `capacity` per row P.

    x: (P, N, D + Dv), keys and values side by side.
    counts: (P, N), tokens of each slot.
    key_width: D, the width of the keys, which come first.
    balance: as for `SlotsRule`.
    search: precision of the search for partners: bfloat16, or float32 for any other dtype.
    Returns x (P, M, D + Dv) and counts (P, M), with M at most `capacity`.
    """
    size, device = x.shape[1], x.device
    if size <= capacity:
        return x, counts
    order, kind = shuffled(size).to(device), torch.bfloat16 if search == torch.bfloat16 else torch.float32
    # The choice of the pairs has no gradient.
    with torch.no_grad():
        mean = x.mean(dim=1, keepdim=True)
        scale = spread(x, mean, key_width, balance)  # (P, 1, D + Dv)
        shift = -mean * scale
    while size > capacity:
        even, odd = order[0::2], order[1::2]
        with torch.no_grad():
            scaled = torch.addcmul(shift, x, scale).to(kind)
            cost, partner = cheapest_partner(
                scaled.index_select(1, even), scaled.index_select(1, odd), counts[:, even], counts[:, odd]
            )
            # A round takes two thirds of the offers: the others may find a better partner once these are merged.
            taken = min(size - capacity, max(1, cost.shape[1] * 2 // 3))
            ranked = cost.argsort(dim=-1, stable=True)
            giving, staying = ranked[:, :taken], ranked[:, taken:].sort(dim=-1).values
        x, counts = merge_round(x, counts, even[giving], even[staying], odd, partner.gather(1, giving))
        size = x.shape[1]
        order = torch.arange(size, device=device)
    return x, counts


def spread(x: Tensor, mean: Tensor, key_width: int, balance: float) -> Tensor:
    """Factors (P, 1, D + Dv) that give keys a spread of 1, and values a spread of `balance`, around the mean."""
    squares = x.square().mean(dim=1, keepdim=True) - mean.square()
    return torch.cat(
        [
            weight * part.sum(-1, keepdim=True).clamp_min(1e-12).rsqrt().expand_as(part)
            for weight, part in ((1.0, squares[..., :key_width]), (balance, squares[..., key_width:]))
        ],
        dim=-1,
    )


def merge_round(
    x: Tensor, counts: Tensor, giving: Tensor, staying: Tensor, odd: Tensor, onto: Tensor
) -> tuple[Tensor, Tensor]:
    """Merge even places into odd places, as averages weighted by count.

    x: (P, N, F), the places.
    counts: (P, N), their tokens.
    giving: (P, R), even places that are merged into odd ones.
    staying: (P, N - R - O), the other even places.
    odd: (O,), the odd places.
    onto: (P, R), for each giving place the index into `odd` of its partner.
    Returns x (P, N - R, F) and counts (P, N - R): the staying places, then all odd places.
    """
    rows, width = x.shape[0], x.shape[2]
    kept = torch.cat((staying, odd.expand(rows, -1)), dim=1)  # (P, N - R) places
    receivers = staying.shape[1] + onto  # indexes of the partners in `kept`
    given = counts.gather(1, giving)
    after = counts.gather(1, kept).scatter_add(1, receivers, given)
    share = given / after.gather(1, receivers).clamp_min(1e-12)
    result = take(x, kept)
    # The moves are added to the places, so that places that receive nothing stay equal to the last bit.
    moves = (take(x, giving) - take(result, receivers)).mul_(share.unsqueeze(-1))
    offset = torch.arange(rows, device=x.device).unsqueeze(-1) * kept.shape[1]
    flat = result.flatten(0, 1).index_add_(0, (receivers + offset).flatten(), moves.flatten(0, 1))
    return flat.view(rows, kept.shape[1], width), after


@lru_cache(maxsize=64)
def shuffled(size: int) -> Tensor:
    """A fixed random order of `size` places, because neighbours in the text must not always meet as even and odd."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(size), device="cpu")


def take(x: Tensor, places: Tensor) -> Tensor:
    """The `places` (P, R) of x (P, N, F): (P, R, F)."""
    rows, size, width = x.shape
    offset = torch.arange(rows, device=x.device).unsqueeze(-1) * size
    return x.flatten(0, 1).index_select(0, (places + offset).flatten()).view(rows, -1, width)


def cheapest_partner(a: Tensor, b: Tensor, count_a: Tensor, count_b: Tensor) -> tuple[Tensor, Tensor]:
    """For each vector of `a`, the cheapest partner in `b` by Ward's cost.

    a: (P, A, F); bfloat16 is several times as fast as float32 where the processor has it. Of partners that the three
        digits of bfloat16 do not tell apart, any may then be taken, and costs are those of the rounded vectors.
    b: (P, B, F).
    count_a, count_b: (P, A) and (P, B), tokens of each vector.
    Returns the costs and the indexes into `b`, (P, A) each.
    """
    ease_a, ease_b = count_a.reciprocal(), count_b.reciprocal()
    if a.dtype == torch.bfloat16 and b.shape[1] <= PLACES:
        partner = _nearly_cheapest(a, b, ease_a, ease_b)
        distance = _norm(a - take(b, partner))
        return distance / (ease_a + ease_b.gather(1, partner)), partner
    a, b = a.float(), b.float()
    norm_a, norm_b = _norm(a).unsqueeze(-1), _norm(b).unsqueeze(-1)
    one_a, one_b = torch.ones_like(norm_a), torch.ones_like(norm_b)
    left = torch.cat((a, norm_a, one_a), dim=-1)
    right = torch.cat((b * -2, one_b, norm_b), dim=-1)
    pairs = torch.bmm(left, right.mT)  # (P, A, B): |a|² - 2ab + |b|²
    cost, partner = pairs.clamp_min_(0).div_(ease_a.unsqueeze(-1) + ease_b.unsqueeze(-2)).min(dim=-1)
    return cost, partner


def _norm(x: Tensor) -> Tensor:
    """Sums of squares, added in float32: (P, N) of x (P, N, F)."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    return norm.square()


def _nearly_cheapest(a: Tensor, b: Tensor, ease_a: Tensor, ease_b: Tensor) -> Tensor:
    """Indexes of partners (P, A) by costs in bfloat16; one product, which adds in float32, gives the distances."""
    # Norms are sums of two terms: rounded to one term, they would be off by as much as near vectors lie apart.
    norms = [_norm(x).unsqueeze(-1) for x in (a, b)]
    (high_a, low_a), (high_b, low_b) = ((n.bfloat16(), (n - n.bfloat16()).bfloat16()) for n in norms)
    one_a, one_b = torch.ones_like(high_a), torch.ones_like(high_b)
    left = torch.cat((a, high_a, low_a, one_a, one_a), dim=-1)
    right = torch.cat((b * -2, one_b, one_b, high_b, low_b), dim=-1)
    pairs = torch.bmm(left, right.mT)  # (P, A, B)
    costs = pairs.float().div_(ease_a.unsqueeze(-1) + ease_b.unsqueeze(-2))
    # Floats of one sign are ordered as their bits are, and bfloat16 leaves the lower half of the bits free. With the
    # index of the place in that half, the least number also tells its place, several times faster than torch's `min`.
    place = torch.arange(b.shape[1], dtype=torch.int32, device=b.device)
    marked = costs.view(torch.int32).bitwise_and_(-PLACES).bitwise_or_(place)
    return marked.amin(dim=-1).bitwise_and_(PLACES - 1).long()
