"""The `slots` rule: a bounded set of merged keys and values, read by the model's own softmax.

- beyond the paper: every KV head keeps at most `slots` triples (key centroid, value mean, token count)
- a read is one softmax over slots and local window together; a slot's logit is q·k + log(count), as if each of its
  tokens stood at the centroid
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
from .local import attention_with_mass
from .rules import MemoryRule, Reading, State

# Pair costs of one chunk of heads stay below this many entries, so that they are worked on inside the CPU's cache.
CHUNK_ENTRIES = 1 << 20


class SlotsRule(MemoryRule):
    """Bounded slots with Ward merging.

    slots: capacity per KV head. distance: the virtual distance in tokens. balance: weight of value distance against
    key distance in the merge cost, both in units of their own spread.

    `merge` pools the slots of both memories and merges down to capacity: the same operation as a write, so an
    approximation of having read both in one go (the order of merging differs).
    """

    name = "slots"
    gated = False
    tensor_names = ("keys", "values", "counts")

    def __init__(self, slots: int = 256, distance: int = 512, balance: float = 1.0) -> None:
        self.slots = int(slots)
        self.distance = int(distance)
        self.balance = float(balance)
        if self.slots < 2 or self.distance < 0 or not 0 <= self.balance < float("inf"):
            raise InvalidSetting(
                f"slots ({slots}) must be at least 2, distance ({distance}) and balance ({balance}) at least 0"
            )

    def settings(self) -> dict[str, Any]:
        return {"slots": self.slots, "distance": self.distance, "balance": self.balance}

    def shapes(self, key_width: int, value_width: int) -> dict[str, tuple[int | None, ...]]:
        return {"keys": (None, key_width), "values": (None, value_width), "counts": (None,)}

    def write(self, state: State | None, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> State:
        batch, groups, tokens, _ = keys.shape
        if mask is not None and not bool(mask.all()):
            return self._write_rows(state, keys, values, mask)
        counts = torch.ones(batch, groups, tokens, device=keys.device)
        new = {"keys": keys.float(), "values": values.float(), "counts": counts}
        return self._reduce(new if state is None else concatenate(state, new))

    def _write_rows(self, state: State | None, keys: Tensor, values: Tensor, mask: Tensor) -> State:
        rows = []
        for row in range(keys.shape[0]):
            old = None if state is None else occupied({name: t[row : row + 1] for name, t in state.items()})
            at = mask[row].nonzero().squeeze(-1)
            if at.numel():
                old = self.write(old, keys[row : row + 1, :, at], values[row : row + 1, :, at])
            elif old is None:
                old = {
                    "keys": keys[row : row + 1, :, :0].float(),
                    "values": values[row : row + 1, :, :0].float(),
                    "counts": keys.new_zeros(1, keys.shape[1], 0, dtype=torch.float32),
                }
            rows.append(old)
        size = max(row["counts"].shape[-1] for row in rows)
        return {name: torch.cat([pad_slots(row[name], size) for row in rows]) for name in self.tensor_names}

    def merge(self, a: State, b: State) -> State:
        return self._reduce(concatenate(a, b))

    def prepare(self, state: State, dtype: torch.dtype) -> State:
        return {
            "keys": state["keys"].to(dtype),
            "values": state["values"].to(dtype),
            "bias": state["counts"].log().to(dtype).unsqueeze(-2),  # (B, G, 1, M), -inf for empty slots
        }

    def read(self, state: State, queries: Tensor, scaling: float, softcap: float | None = None) -> Reading:
        batch, heads, tokens, width = queries.shape
        groups = state["keys"].shape[1]
        grouped = queries.reshape(batch, groups, -1, width)  # (B, G, H/G*T, D)
        values, mass = attention_with_mass(grouped, state["keys"], state["values"], state["bias"], scaling, softcap)
        return Reading(values.reshape(batch, heads, tokens, -1), mass.reshape(batch, heads, tokens))

    def _reduce(self, state: State) -> State:
        batch, groups, size = state["counts"].shape
        if size <= self.slots:
            return state
        chunk = max(1, CHUNK_ENTRIES // (size // 2) ** 2)
        flat = {name: tensor.flatten(0, 1).split(chunk) for name, tensor in state.items()}
        parts = [
            ward_merge(k, v, n, self.slots, self.balance)
            for k, v, n in zip(flat["keys"], flat["values"], flat["counts"], strict=True)
        ]
        merged = [torch.cat(column).unflatten(0, (batch, groups)) for column in zip(*parts, strict=True)]
        return dict(zip(self.tensor_names, merged, strict=True))


def concatenate(a: State, b: State) -> State:
    """Slots of `a` followed by slots of `b`."""
    return {name: torch.cat((a[name], b[name]), dim=2) for name in a}


def occupied(state: State) -> State:
    """Without the empty slots that pad a row of a batch (they are the last ones, and equal for all heads)."""
    size = int((state["counts"] > 0).any(dim=1).sum())
    return {name: tensor[:, :, :size] for name, tensor in state.items()}


def pad_slots(tensor: Tensor, size: int) -> Tensor:
    """Zeros at the end of the slot dimension (the third) up to `size`."""
    missing = size - tensor.shape[2]
    if missing == 0:
        return tensor
    return torch.cat((tensor, tensor.new_zeros(*tensor.shape[:2], missing, *tensor.shape[3:])), dim=2)


def spread(x: Tensor) -> Tensor:
    """Mean squared distance to the mean, (P, 1, 1), for x of (P, N, D)."""
    return (x - x.mean(dim=1, keepdim=True)).square().sum(-1).mean(-1)[:, None, None].clamp_min(1e-12)


def ward_merge(
    keys: Tensor, values: Tensor, counts: Tensor, capacity: int, balance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge (P, N, D) keys, (P, N, Dv) values and (P, N) counts down to `capacity` slots per row P."""
    if keys.shape[1] > capacity:
        order = shuffled(keys.shape[1]).to(keys.device)
        keys, values, counts = keys[:, order], values[:, order], counts[:, order]
    key_scale = spread(keys).rsqrt()
    value_scale = balance * spread(values).rsqrt()
    while (size := keys.shape[1]) > capacity:
        joined = torch.cat((keys * key_scale, values * value_scale), dim=-1)
        cost, partner = cheapest_partner(joined[:, 0::2], joined[:, 1::2], counts[:, 0::2], counts[:, 1::2])
        # Half of the offers a round: the other half may find a better partner once these are merged.
        taken = min(size - capacity, max(1, cost.shape[1] // 2))
        order = cost.argsort(dim=-1, stable=True)
        giving, staying = order[:, :taken], order[:, taken:].sort(dim=-1).values
        merge = _Merge(giving, staying, partner.gather(1, giving), counts)
        keys, values, counts = merge.pool(keys), merge.pool(values), merge.counts
    return keys, values, counts


@lru_cache(maxsize=64)
def shuffled(size: int) -> Tensor:
    """A fixed random order of `size` places: neighbours in the text must not always meet as even and odd."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(size))


class _Merge:
    """One round: even places `giving` (P, R) are averaged, by count, into odd places `onto`; `staying` ones stay."""

    def __init__(self, giving: Tensor, staying: Tensor, onto: Tensor, counts: Tensor) -> None:
        self.giving, self.staying, self.onto = giving, staying, onto
        self.given, self.before = counts[:, 0::2].gather(1, giving), counts[:, 1::2]
        self.after = self.before.scatter_add(1, onto, self.given)
        self.touched = torch.zeros_like(self.after, dtype=torch.bool).scatter_(1, onto, True).unsqueeze(-1)
        self.counts = torch.cat((counts[:, 0::2].gather(1, staying), self.after), dim=1)

    def pool(self, x: Tensor) -> Tensor:
        """x (P, N, D) after this round, (P, N - R, D)."""
        gifts = take(x[:, 0::2], self.giving) * self.given.unsqueeze(-1)
        index = self.onto.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        sums = (x[:, 1::2] * self.before.unsqueeze(-1)).scatter_add(1, index, gifts)
        mean = sums / self.after.unsqueeze(-1).clamp_min(1e-12)
        # Slots that received nothing stay equal to the last bit, however many rounds pass.
        return torch.cat((take(x[:, 0::2], self.staying), torch.where(self.touched, mean, x[:, 1::2])), dim=1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (P, R) of x (P, N, D): (P, R, D)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def cheapest_partner(a: Tensor, b: Tensor, count_a: Tensor, count_b: Tensor) -> tuple[Tensor, Tensor]:
    """For each of `a` (P, A, F) its cheapest partner in `b` (P, B, F) by Ward's cost: (cost, index), both (P, A)."""
    norm_a, norm_b = a.square().sum(-1, keepdim=True), b.square().sum(-1, keepdim=True)
    one_a, one_b = torch.ones_like(norm_a), torch.ones_like(norm_b)
    left = torch.cat((a, norm_a, one_a), dim=-1)
    right = torch.cat((b * -2, one_b, norm_b), dim=-1)
    distance = torch.bmm(left, right.mT)  # (P, A, B): |a|² - 2ab + |b|²
    ease = count_a.reciprocal().unsqueeze(-1) + count_b.reciprocal().unsqueeze(-2)
    cost, partner = distance.clamp_min_(0).div_(ease).min(dim=-1)
    return cost, partner
