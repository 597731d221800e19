"""The `slots` rule: a bounded set of merged keys and values, read by the model's own softmax.

- beyond the paper: every KV head keeps at most `slots` triples (key centroid, value mean, token count)
- a read is one softmax over slots, carried tokens and segment together; a slot's logit is q·k + mass · log(count): with
  mass 1 as if each of its tokens stood at the centroid, below 1 so that what a long text repeats does not drown what it
  says once
- queries are turned by one fixed virtual distance, so all of the past seems to lay that far back; the pretrained
  heads find it without any training
- a write joins the cheapest pairs by Ward's criterion until the slots fit again: in a fixed random order, even places
  against odd places, each even slot offers itself to its cheapest odd partner, and the cheapest offers are taken, in
  rounds. Deterministic, and equal for a row alone and a row in a batch
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidSetting
from .local import Part, attention_with_mass
from .packing import PACKINGS, concatenate, pack, packed_layout, singles, unpack
from .rules import Layout, MemoryRule, Reading, State

# Pair costs of one chunk of heads stay below this many entries, so that they are worked on inside the CPU's cache.
CHUNK_ENTRIES = 1 << 21
MAX_DISTANCE = 1 << 31  # tokens
# So many places fit into the half of a float32 that a bfloat16 leaves free.
PLACES = 1 << 16


class SlotsRule(MemoryRule):
    """Bounded slots with Ward merging.

    slots: capacity per KV head. distance: the virtual distance in tokens. balance: weight of value distance against
    key distance in the merge cost, both in units of their own spread. mass: a slot of n tokens weighs as n ** mass
    tokens at its centroid. packing: how keys and values are kept between
    segments, "float32", "float16" or "int8" (one scale a slot and tensor).

    `merge` pools the slots of both memories and merges down to capacity: the same operation as a write, so an
    approximation of having read both in one go (the order of merging differs).
    """

    name = "slots"
    gated = False

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
        both = new if state is None else concatenate(unpack(state), new)
        return pack(self._pool(both, precision), self.packing)

    def merge(self, a: State, b: State) -> State:
        return pack(self._pool(concatenate(unpack(a), unpack(b)), torch.float32), self.packing)

    def _pool(self, state: State, search: torch.dtype) -> State:
        """Merge down to capacity, each row without its empty slots, so that it is treated as if alone."""
        filled = state["counts"][:, 0] > 0  # (B, M), equal for all heads
        if bool(filled.all()):
            return self._reduce(state, search)
        rows = [
            self._reduce({name: tensor[row : row + 1, :, filled[row]] for name, tensor in state.items()}, search)
            for row in range(filled.shape[0])
        ]
        size = max(row["counts"].shape[-1] for row in rows)
        return {name: torch.cat([pad_slots(row[name], size) for row in rows]) for name in rows[0]}

    def prepare(self, state: State, dtype: torch.dtype) -> State:
        state = unpack(state)
        return {
            "keys": state["keys"].to(dtype),
            "values": state["values"].to(dtype),
            "bias": (self.mass * state["counts"].log()).unsqueeze(-2),  # (B, G, 1, M), -inf for empty slots
        }

    def part(self, state: State, queries: Tensor) -> Part:
        return Part(queries, state["keys"], state["values"], [state["bias"]])

    def read(self, state: State, queries: Tensor, scaling: float, softcap: float | None = None) -> Reading:
        batch, heads, tokens, width = queries.shape
        groups = state["keys"].shape[1]
        grouped = queries.reshape(batch, groups, -1, width)  # (B, G, H/G*T, D)
        values, mass = attention_with_mass(grouped, state["keys"], state["values"], state["bias"], scaling, softcap)
        return Reading(values.reshape(batch, heads, tokens, -1), mass.reshape(batch, heads, tokens))

    def _reduce(self, state: State, search: torch.dtype) -> State:
        batch, groups, size = state["counts"].shape
        if size <= self.slots:
            return state
        chunk = max(1, CHUNK_ENTRIES // (size // 2) ** 2)
        joined = torch.cat((state["keys"], state["values"]), dim=-1).flatten(0, 1)  # (B*G, M, D + Dv)
        width = state["keys"].shape[-1]
        parts = [
            ward_merge(x, n, width, self.slots, self.balance, search)
            for x, n in zip(joined.split(chunk), state["counts"].flatten(0, 1).split(chunk), strict=True)
        ]
        merged, counts = (torch.cat(column).unflatten(0, (batch, groups)) for column in zip(*parts, strict=True))
        return {"keys": merged[..., :width], "values": merged[..., width:], "counts": counts}


def pad_slots(tensor: Tensor, size: int) -> Tensor:
    """Zeros at the end of the slot dimension (the third) up to `size`."""
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

    x: (P, N, D + Dv), keys and values side by side, the first `key_width` of them the keys; counts: (P, N). search:
    the precision in which partners are looked for, as in `cheapest_partner`.
    """
    if x.shape[1] > capacity:
        order = shuffled(x.shape[1]).to(x.device)
        x, counts = x.index_select(1, order), counts.index_select(1, order)
    with torch.no_grad():
        mean = x.mean(dim=1, keepdim=True)
        squares = (x - mean).square().mean(dim=1, keepdim=True)  # (P, 1, D + Dv)
        scale = torch.cat(
            [
                weight * part.sum(-1, keepdim=True).clamp_min(1e-12).rsqrt().expand_as(part)
                for weight, part in ((1.0, squares[..., :key_width]), (balance, squares[..., key_width:]))
            ],
            dim=-1,
        )
    while (size := x.shape[1]) > capacity:
        # What is merged with what has no gradient.
        with torch.no_grad():
            scaled = (x - mean) * scale
            cost, partner = cheapest_partner(scaled[:, 0::2], scaled[:, 1::2], counts[:, 0::2], counts[:, 1::2], search)
            # Two thirds of the offers a round: the others may find a better partner once these are merged.
            taken = min(size - capacity, max(1, cost.shape[1] * 2 // 3))
            order = cost.argsort(dim=-1, stable=True)
            giving, staying = order[:, :taken], order[:, taken:].sort(dim=-1).values
        x, counts = merge_round(x, counts, giving, staying, partner.gather(1, giving))
    return x, counts


def merge_round(x: Tensor, counts: Tensor, giving: Tensor, staying: Tensor, onto: Tensor) -> tuple[Tensor, Tensor]:
    """Average the even places `giving` (P, R), by count, into the odd places `onto` (P, R); `staying` ones stay.

    Returns x (P, N - R, F) and counts (P, N - R): the staying even places, then all odd ones.
    """
    rows, size, width = x.shape
    odd = torch.arange(1, size, 2, device=x.device).expand(rows, -1)
    kept = torch.cat((staying * 2, odd), dim=1)  # (P, N - R) places
    receivers = staying.shape[1] + onto  # where the odd places have moved to
    after = counts.gather(1, kept).scatter_add(1, receivers, counts.gather(1, giving * 2))
    share = counts.gather(1, giving * 2) / after.gather(1, receivers).clamp_min(1e-12)
    result = take(x, kept)
    # Added to what is there, so that slots that receive nothing stay equal to the last bit.
    moves = (take(x, giving * 2) - take(result, receivers)) * share.unsqueeze(-1)
    offset = torch.arange(rows, device=x.device).unsqueeze(-1) * kept.shape[1]
    flat = result.flatten(0, 1).index_add(0, (receivers + offset).flatten(), moves.flatten(0, 1))
    return flat.view(rows, kept.shape[1], width), after


@lru_cache(maxsize=64)
def shuffled(size: int) -> Tensor:
    """A fixed random order of `size` places: neighbours in the text must not always meet as even and odd."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(size))


def take(x: Tensor, places: Tensor) -> Tensor:
    """Rows `places` (P, R) of x (P, N, F): (P, R, F)."""
    rows, size, width = x.shape
    offset = torch.arange(rows, device=x.device).unsqueeze(-1) * size
    return x.flatten(0, 1).index_select(0, (places + offset).flatten()).view(rows, -1, width)


def cheapest_partner(
    a: Tensor, b: Tensor, count_a: Tensor, count_b: Tensor, search: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """For each of `a` (P, A, F) its cheapest partner in `b` (P, B, F) by Ward's cost: (cost, index), both (P, A).

    search: with bfloat16, several times as fast where the processor has it, vectors are rounded to three digits before
    they are compared, so among partners that lie nearer than that any may be taken. The cost is that of the partner in
    full precision either way.
    """
    ease_a, ease_b = count_a.reciprocal(), count_b.reciprocal()
    if search == torch.bfloat16 and b.shape[1] <= PLACES:
        partner = _nearly_cheapest(a, b, ease_a, ease_b)
        distance = (a - take(b, partner)).square().sum(-1)
        return distance / (ease_a + ease_b.gather(1, partner)), partner
    norm_a, norm_b = a.square().sum(-1, keepdim=True), b.square().sum(-1, keepdim=True)
    one_a, one_b = torch.ones_like(norm_a), torch.ones_like(norm_b)
    left = torch.cat((a, norm_a, one_a), dim=-1)
    right = torch.cat((b * -2, one_b, norm_b), dim=-1)
    pairs = torch.bmm(left, right.mT)  # (P, A, B): |a|² - 2ab + |b|²
    cost, partner = pairs.clamp_min_(0).div_(ease_a.unsqueeze(-1) + ease_b.unsqueeze(-2)).min(dim=-1)
    return cost, partner


def _nearly_cheapest(a: Tensor, b: Tensor, ease_a: Tensor, ease_b: Tensor) -> Tensor:
    """Partners (P, A) by costs in bfloat16: distances of the rounded vectors, in one product that adds in float32."""
    a, b = a.bfloat16(), b.bfloat16()
    # Norms in two terms: rounded to one, they would be off by as much as near vectors lie apart.
    norms = [x.float().square().sum(-1, keepdim=True) for x in (a, b)]
    (high_a, low_a), (high_b, low_b) = ((n.bfloat16(), (n - n.bfloat16()).bfloat16()) for n in norms)
    one_a, one_b = torch.ones_like(high_a), torch.ones_like(high_b)
    left = torch.cat((a, high_a, low_a, one_a, one_a), dim=-1)
    right = torch.cat((b * -2, one_b, one_b, high_b, low_b), dim=-1)
    pairs = torch.bmm(left, right.mT)  # (P, A, B)
    pairs.div_(ease_a.bfloat16().unsqueeze(-1) + ease_b.bfloat16().unsqueeze(-2))
    # Floats of one sign are ordered as their bits are, and a bfloat16 leaves the lower half of a float32 free: with
    # the place there, the least number says where it stood, several times faster than torch's `min` of a dimension.
    place = torch.arange(b.shape[1], dtype=torch.int32, device=b.device)
    marked = pairs.float().view(torch.int32).bitwise_or_(place)
    return marked.amin(dim=-1).bitwise_and_(PLACES - 1).long()
