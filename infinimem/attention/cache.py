"""`InfiniCache`: a transformers `Cache` whose layers hold a segment, carried tokens, and a compressive memory.

- the segment (rotated keys, values) grows with every forward, like a `DynamicCache`
- `end_segment()` carries its last tokens over to the next one, writes what they push out into the memory, and empties
  it; nothing else ever writes
- `get_seq_length` counts the segment alone, so `model.generate(..., past_key_values=cache)` treats the prompt as the
  start of the text while every layer also reads what came before
- states are never changed in place: `clone()` shares them, costs nothing, and protects the original
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ..errors import InvalidSetting
from . import fused
from .carried import Leaving, bias_of, carry_over
from .packing import unpack
from .rules import MemoryRule, State

# Begins the names of the carried tokens' tensors, beside those of the memory.
CARRIED = "carried_"
# Layers that are written in one call on a CPU: what they need stays in its caches.
FEW_LAYERS = 6


class InfiniLayer(DynamicLayer):
    """Segment, carried tokens and memory of one attention layer.

    heads: the KV heads that have a memory; None for all of them, empty for a layer without one. carry: most tokens of
    the past that all heads keep as they are. prefix: tokens before every segment and prompt that see no past. `exact`:
    whether what is computed with nothing of the past is the unmodified model's, bit by bit.
    """

    is_croppable = False
    keys: Any  # (B, G, S, D); None while the segment is empty
    values: Any  # (B, G, S, Dv)

    def __init__(self, rule: MemoryRule, heads: Sequence[int] | None = None, carry: int = 0, prefix: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rule = rule
        self.heads = None if heads is None else tuple(heads)
        self.carry = carry
        self.prefix = prefix
        self.recording = False
        self.exact = True
        self.carried: State | None = None  # of all heads, (B, G, ...) each
        self.state: State | None = None  # of the remembering heads, (B, R, ...) each
        self.seen: Tensor | None = None  # (B,) tokens read in earlier segments
        self.content_keys: list[Tensor] = []  # position-free keys of the segment, (B, G, T, D) each
        self._prepared: tuple[torch.dtype, State] | None = None
        self._near: tuple[torch.dtype, State] | None = None

    @property
    def remembers(self) -> bool:
        """Whether any head has a memory."""
        return self.heads is None or bool(self.heads)

    @property
    def keeps(self) -> bool:
        """Whether anything of a segment stays when it ends."""
        return self.remembers or self.carry > 0

    def of_heads(self, x: Tensor, group: int = 1) -> Tensor:
        """The part of x (B, G * group, ...) that belongs to the remembering heads: (B, R * group, ...)."""
        if self.heads is None or len(self.heads) * group == x.shape[1]:
            return x
        return x[:, self._places(group)]

    def put_heads(self, x: Tensor, part: Tensor, group: int = 1) -> Tensor:
        """x with `part`, as `of_heads` gives it, in the place of the remembering heads."""
        if part.shape == x.shape:
            return part
        places = torch.tensor(self._places(group), device=x.device)
        return x.index_copy(1, places, part)

    def _places(self, group: int) -> list[int]:
        return [head * group + member for head in self.heads or () for member in range(group)]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append to the segment; returns all of its keys and values, (B, G, S, D)."""
        if self.get_seq_length() == 0:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = key_states, value_states
            self.is_initialized = True
        else:
            self.keys = torch.cat((self.keys, key_states), dim=-2)
            self.values = torch.cat((self.values, value_states), dim=-2)
        return self.keys, self.values

    def record(self, content_keys: Tensor) -> None:
        """Keep position-free keys (B, G, T, D) of new tokens for the end of the segment."""
        self.content_keys.append(content_keys)

    def prepared(self, dtype: torch.dtype) -> State:
        """The state as `rule.read` wants it; made once per state and dtype. The layer must have a state."""
        if self._prepared is None or self._prepared[0] != dtype:
            self._prepared = (dtype, self.rule.prepare(self.state or {}, dtype))
        return self._prepared[1]

    def near(self, dtype: torch.dtype, rotate: Callable[[Tensor], Tensor]) -> State:
        """The carried tokens unpacked, their keys turned by `rotate`; made once per state and dtype."""
        if self._near is None or self._near[0] != dtype:
            state = unpack(self.carried or {})
            near = {"keys": rotate(state["keys"]).to(dtype), "values": state["values"].to(dtype)}
            if (bias := bias_of(state)) is not None:
                near["bias"] = bias
            self._near = (dtype, near)
        return self._near[1]

    def set_past(self, state: State | None, carried: State | None, seen: Tensor | None) -> None:
        """Replace memory and carried tokens, which hold `seen` (B,) tokens."""
        self.state, self.carried, self.seen = state, carried, seen
        self._prepared = self._near = None

    def empty_segment(self) -> None:
        """Forget the segment, keep the past."""
        self.keys = self.values = None
        self.is_initialized = False
        self.content_keys = []

    def reset(self) -> None:
        """Forget the segment and the past."""
        self.empty_segment()
        self.set_past(None, None, None)

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.get_seq_length() > 0:
            self.keys, self.values = change(self.keys), change(self.values)
        self.content_keys = [change(keys) for keys in self.content_keys]
        if self.seen is not None:
            state, carried = (
                None if past is None else {name: change(tensor) for name, tensor in past.items()}
                for past in (self.state, self.carried)
            )
            self.set_past(state, carried, change(self.seen))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams of a beam search, memory included."""
        self._rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        self._rows(lambda tensor: tensor[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        self._rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def clone(self) -> InfiniLayer:
        """Same past (shared, never changed in place), own segment."""
        other = InfiniLayer(self.rule, self.heads, self.carry, self.prefix)
        other.recording, other.exact = self.recording, self.exact
        other.set_past(self.state, self.carried, self.seen)
        other._prepared, other._near = self._prepared, self._near
        other.content_keys = list(self.content_keys)
        if self.get_seq_length() > 0:
            other.update(self.keys, self.values)
        return other


class InfiniCache(Cache):
    """One `InfiniLayer` per decoder layer.

    rule: how the memory is written and read. num_layers: layers of the model. memory_heads: layer to the KV heads that
    have a memory; None for all heads of all layers. carry: most tokens that are kept as they are. prefix: tokens
    before every segment and prompt that see no past.
    """

    layers: list[InfiniLayer]  # type: ignore[assignment]

    def __init__(
        self,
        rule: MemoryRule,
        num_layers: int,
        memory_heads: Mapping[int, Sequence[int]] | None = None,
        carry: int = 0,
        prefix: int = 0,
    ) -> None:
        chosen = [None if memory_heads is None else memory_heads.get(index, ()) for index in range(num_layers)]
        super().__init__(layers=[InfiniLayer(rule, heads, carry, prefix) for heads in chosen])
        self.rule = rule
        # The layer whose attention input the next forward notes, (B, T, E); with `enough`, that forward ends there.
        self.watched: int | None = None
        self.enough = False
        self.noted: Tensor | None = None

    @property
    def seen(self) -> Tensor | None:
        """Tokens read in ended segments, (B,) int64; None before the first has ended."""
        return next((layer.seen for layer in self.layers if layer.keeps), None)

    def recording(self, on: bool = True) -> InfiniCache:
        """Keep position-free keys from now on, so that `end_segment` can write; returns the cache itself."""
        for layer in self.layers:
            layer.recording = on and layer.keeps
        return self

    def inexact(self) -> InfiniCache:
        """Let what is computed with nothing of the past differ from the unmodified model's by rounding, where that is
        faster; returns the cache itself."""
        for layer in self.layers:
            layer.exact = False
        return self

    def states(self) -> dict[int, State]:
        """The past: layer index to the memory's tensors and, with "carried_" before their names, those of the
        carried tokens; empty before the first write."""
        return {
            index: {**(layer.state or {}), **{CARRIED + name: t for name, t in (layer.carried or {}).items()}}
            for index, layer in enumerate(self.layers)
            if layer.state is not None or layer.carried is not None
        }

    def set_states(self, states: Mapping[int, State], seen: Tensor | None) -> None:
        """Replace the past; layers that are not named become empty. seen: (B,) int64."""
        for index, layer in enumerate(self.layers):
            given = states.get(index, {})
            carried = {name.removeprefix(CARRIED): t for name, t in given.items() if name.startswith(CARRIED)}
            state = {name: t for name, t in given.items() if not name.startswith(CARRIED)}
            layer.set_past(state or None, carried or None, seen if given else None)

    def end_segment(self, mask: Tensor | None = None, *, written: slice = slice(None)) -> None:
        """Carry the end of every layer's segment over, write what that pushes out into its memory, empty the segment.

        written: the part of the segment that stays at all. mask: (B, T) bool over that part, False for padding. Several
        layers are written in one call.
        """
        layers = [layer for layer in self.layers if layer.keeps]
        if layers and layers[0].get_seq_length() > 0:
            length = layers[0].get_seq_length()
            if any(sum(k.shape[-2] for k in layer.content_keys) != length for layer in layers):
                raise InvalidSetting("this segment was read without recording; call cache.recording() before reading")
            for group in _equal_shapes(layers):
                if mask is None and fused.fits(group):
                    fused.end(group, written)
                    continue
                few = FEW_LAYERS if group[0].keys.device.type == "cpu" else len(group)
                for start in range(0, len(group), few):
                    _end(group[start : start + few], mask, written)
        for layer in self.layers:
            layer.empty_segment()

    def merged(self, other: InfiniCache) -> InfiniCache:
        """The past of both, as if `other` had been read after this one: what this one carries goes into the memory."""
        result = InfiniCache(self.rule, 0)
        result.layers = [
            _merged(first, second) if first.keeps else first.clone()
            for first, second in zip(self.layers, other.layers, strict=True)
        ]
        return result

    def clone(self) -> InfiniCache:
        """A cache with the same past and a segment of its own; generation on it leaves this one as it is."""
        other = InfiniCache(self.rule, 0)
        other.layers = [layer.clone() for layer in self.layers]
        return other


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
    """Write tokens (of all heads of all these layers) into the memories of those that remember."""
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
    """Tensors one after the other; where there is one, nothing is copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _side_by_side(states: Sequence[State | None]) -> State | None:
    """The states of several layers as one, their heads side by side; None where they have none yet."""
    found = [state for state in states if state is not None]
    return {name: torch.cat([state[name] for state in found], dim=1) for name in found[0]} if found else None


def _apart(state: State, sizes: Sequence[int]) -> list[State]:
    """The states of layers with so many heads each."""
    parts = {name: tensor.split(list(sizes), dim=1) for name, tensor in state.items()}
    return [{name: tensors[index] for name, tensors in parts.items()} for index in range(len(sizes))]


def _merged(first: InfiniLayer, second: InfiniLayer) -> InfiniLayer:
    """Memories merged by the rule; carried tokens as if those of the second had been read after the first's."""
    if first.seen is None or second.seen is None:
        return (second if first.seen is None else first).clone()
    result, rule, carried, state = first.clone(), first.rule, first.carried, first.state
    if second.carried is not None:
        later = unpack(second.carried)
        mask = None if bias_of(later) is None else later["counts"][:, 0] > 0
        carried, leaving = carry_over(carried, later["keys"], later["values"], mask, first.carry, rule.packing)
        if leaving is not None and first.remembers:
            state = rule.write(state, first.of_heads(leaving.keys), first.of_heads(leaving.values), leaving.mask)
    both = [one for one in (state, second.state) if one is not None]
    merged = rule.merge(both[0], both[1]) if len(both) == 2 else next(iter(both), None)
    result.set_past(merged, carried, first.seen + second.seen)
    return result
