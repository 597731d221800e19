"""Packing of slots and carried tokens: keys and values as float32, float16, or int8 with one scale a vector.

- packing an unpacked state gives the same bytes again, so a slot that is not merged never drifts, however often the
  memory is written
- counts stay float32: they are exact numbers of tokens
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import native
from .state import Layout, State

FLOATS = {"float32": torch.float32, "float16": torch.float16}
PACKINGS = (*FLOATS, "int8")
# The largest finite float16.
LIMIT = 65504.0
STEPS = 127


def singles(keys: Tensor, values: Tensor, mask: Tensor | None) -> State:
    """An unpacked state in which every token is one place.

    keys: (B, G, T, D).
    values: (B, G, T, Dv).
    mask: (B, T), False for padding, whose counts become 0; None without padding. All other counts are 1.
    """
    batch, groups, tokens, _ = keys.shape
    counts = torch.ones(batch, tokens, dtype=torch.float32, device=keys.device) if mask is None else mask.float()
    return {"keys": keys, "values": values, "counts": counts.unsqueeze(1).expand(-1, groups, -1)}


class Places(NamedTuple):
    """Places of several states, one after the other, unpacked.

    x: (B, G, N, D + Dv) float32: keys and values side by side, because a place is always moved as a whole.
    counts: (B, G, N) float32.
    width: D, the width of the keys, which come first.
    """

    x: Tensor
    counts: Tensor
    width: int

    @property
    def keys(self) -> Tensor:
        """(B, G, N, D)."""
        return self.x[..., : self.width]

    @property
    def values(self) -> Tensor:
        """(B, G, N, Dv)."""
        return self.x[..., self.width :]

    def state(self) -> State:
        """The places as a state that is not packed."""
        return {"keys": self.keys, "values": self.values, "counts": self.counts}


def in_a_row(*states: State) -> Places:
    """The places of states, packed or not, unpacked in one tensor; every number is copied only once."""
    counts = torch.cat([state["counts"] for state in states], dim=2)
    width = states[0]["keys"].shape[-1]
    shape = *counts.shape, width + states[0]["values"].shape[-1]
    x = torch.empty(shape, dtype=torch.float32, device=counts.device)
    places = Places(x, counts, width)
    end = 0
    for state in states:
        start, end = end, end + state["counts"].shape[2]
        for name, whole in (("keys", places.keys), ("values", places.values)):
            part = whole[:, :, start:end]
            part.copy_(state[name])
            if (scale := state.get(f"{name}_scale")) is not None:
                part.mul_(scale.unsqueeze(-1))
    return places


def pack(state: State, packing: str) -> State:
    """A float32 state with its keys (B, G, M, D) and values (B, G, M, Dv) in the packed type; counts stay as they are.

    packing: one of PACKINGS.
    """
    if packing in FLOATS:
        dtype = FLOATS[packing]
        clamped = {name: state[name] if packing == "float32" else state[name].clamp(-LIMIT, LIMIT) for name in state}
        return {**state, "keys": clamped["keys"].to(dtype), "values": clamped["values"].to(dtype)}
    packed = {"counts": state["counts"]}
    for name in ("keys", "values"):
        # A bfloat16 scale has few bits: its products with steps are exact, so packing again finds the same numbers.
        scale = (state[name].abs().amax(dim=-1) / STEPS).bfloat16().float()  # (B, G, M)
        steps = state[name] / scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
        packed[name] = steps.round_().clamp_(-STEPS, STEPS).to(torch.int8)
        packed[f"{name}_scale"] = scale
    return packed


def unpack(state: State, dtype: torch.dtype = torch.float32) -> State:
    """A packed state with keys and values in `dtype`."""
    return {"counts": state["counts"], **{name: unpacked(state, name, dtype) for name in ("keys", "values")}}


def unpacked(state: State, name: str, dtype: torch.dtype) -> Tensor:
    """The keys or the values of a packed state, (B, G, M, D) in `dtype`; rounded once. name: "keys" or "values"."""
    x, scale = state[name], state.get(f"{name}_scale")
    if scale is None:
        return x.to(dtype)
    if dtype in native.KINDS and native.unpacks(x, scale):
        return native.unpack(x, scale, dtype)
    return (x.float() * scale.unsqueeze(-1)).to(dtype)


def packed_layout(packing: str, places: int | None, key_width: int, value_width: int) -> Layout:
    """The tensors of a packed state: dtypes, and shapes after (B, G). places: number of places; None for any number."""
    scales = {"keys_scale": torch.float32, "values_scale": torch.float32} if packing == "int8" else {}
    kept = FLOATS.get(packing, torch.int8)
    dtypes = {"keys": kept, "values": kept, **scales, "counts": torch.float32}
    widths = {"keys": (key_width,), "values": (value_width,)}
    return {name: (dtype, (places, *widths.get(name, ()))) for name, dtype in dtypes.items()}
