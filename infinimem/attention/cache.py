"""`InfiniCache`: a transformers `Cache` whose layers hold a segment, carried tokens, and a compressive memory.

- the segment (rotated keys, values) grows with every forward, like a `DynamicCache`
- at its end, end_segment.py carries its last tokens over to the next segment, writes the tokens that leave into the
  memory, and empties the segment; nothing else writes while a document is read
- `get_seq_length` counts the segment alone, so `model.generate(..., past_key_values=cache)` treats the prompt as the
  start of the text while every layer also reads what came before
- states are never changed in place, so `clone()` shares them at no cost, and the original stays as it is
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ..errors import InvalidSetting
from .carried import bias_of, carry_over
from .rules.base import GatedRule, MemoryRule
from .rules.packing import unpack, unpacked
from .rules.state import State

# Prefix of the names of the carried tokens' tensors in `InfiniCache.states`, beside the tensors of the memory.
CARRIED = "carried_"


class InfiniLayer(DynamicLayer):
    """Segment, carried tokens and memory of one attention layer.

    rule: how the memory is written and read.
    heads: the KV heads that have a memory; None for all heads, empty for a layer without memory.
    carry: the largest number of tokens of the past that all heads keep as they are.
    prefix: number of tokens before every segment and prompt; they see no past.

    `exact`: whether forwards without a past give the bits of the unmodified model.
    `ends`: whether a forward ends (`SeenEnough`) once this layer has recorded its tokens.
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
        self.recording = self.ends = False
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
        """The part of x (B, G * group, ...) that belongs to the R heads with a memory: (B, R * group, ...)."""
        if self.heads is None or len(self.heads) * group == x.shape[1]:
            return x
        return x[:, self._places(group)]

    def put_heads(self, x: Tensor, part: Tensor, group: int = 1) -> Tensor:
        """x (B, G * group, ...) with the heads that have a memory replaced by `part` (B, R * group, ...)."""
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
        """The state as `rule.prepare` makes it, once per state and dtype. The layer must have a state."""
        if self._prepared is None or self._prepared[0] != dtype:
            self._prepared = (dtype, self.rule.prepare(self.state or {}, dtype))
        return self._prepared[1]

    def near(self, dtype: torch.dtype, rotate: Callable[[Tensor], Tensor]) -> State:
        """The carried tokens, unpacked, with keys rotated by `rotate`; made once per state and dtype."""
        if self._near is None or self._near[0] != dtype:
            state = self.carried or {}
            near = {
                "keys": rotate(unpacked(state, "keys", torch.float32)).to(dtype),
                "values": unpacked(state, "values", dtype),
            }
            if (bias := bias_of(state)) is not None:
                near["bias"] = bias
            self._near = (dtype, near)
        return self._near[1]

    def set_past(self, state: State | None, carried: State | None, seen: Tensor | None) -> None:
        """Replace memory and carried tokens. seen: (B,) tokens that were read into them."""
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
        """A layer with the same past (shared, never changed in place) and its own segment."""
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

    rule: how the memory is written and read.
    num_layers: number of layers of the model.
    memory_heads: layer index to the KV heads that have a memory; None for all heads of all layers.
    carry: the largest number of tokens that are kept as they are.
    prefix: number of tokens before every segment and prompt; they see no past.
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
        # Index of the layer whose attention input the next forward keeps in `noted`, (B, T, E); with `enough`, the
        # forward ends at this layer.
        self.watched: int | None = None
        self.enough = False
        self.noted: Tensor | None = None

    @property
    def seen(self) -> Tensor | None:
        """Tokens read in ended segments, (B,) int64; None before the first segment has ended."""
        return next((layer.seen for layer in self.layers if layer.keeps), None)

    def watched_inputs(self) -> Tensor:
        """Input of the watched layer's attention in the last forward, (B, T, E), without the prefix.

        It is returned once. Raises InvalidSetting where no forward has come to the watched layer since.
        """
        noted, self.noted = self.noted, None
        if noted is None:
            raise InvalidSetting(f"the model has no layer {self.watched}, which its term head looks at")
        return noted[:, self.layers[0].prefix :]

    def recording(self, on: bool = True, *, alone: bool = False) -> InfiniCache:
        """Keep position-free keys from now on, so that `end_segment` can write; returns the cache itself.

        alone: whether forwards have no other purpose; they end (`SeenEnough`) where the last layer has recorded.
        """
        for layer in self.layers:
            layer.recording, layer.ends = on and layer.keeps, False
        self.layers[-1].ends = on and alone
        return self

    def inexact(self) -> InfiniCache:
        """Let forwards without a past differ from the unmodified model by rounding, where that is faster; returns the
        cache itself."""
        for layer in self.layers:
            layer.exact = False
        return self

    @property
    def rounds(self) -> bool:
        """Whether a forward may differ from the unmodified model by rounding: it has a past, or it is `inexact`.

        A gated memory leaves the segment's own attention as it is, and with a shut gate the bits of the result.
        """
        layers, gated = self.layers, isinstance(self.rule, GatedRule)
        with_past = any(one.carried is not None or (one.state is not None and not gated) for one in layers)
        return with_past or any(not one.exact for one in layers)

    def states(self) -> dict[int, State]:
        """The past: layer index to the tensors of the memory and of the carried tokens, whose names begin with
        "carried_"; empty before the first segment has ended."""
        return {
            index: {**(layer.state or {}), **{CARRIED + name: t for name, t in (layer.carried or {}).items()}}
            for index, layer in enumerate(self.layers)
            if layer.state is not None or layer.carried is not None
        }

    def set_states(self, states: Mapping[int, State], seen: Tensor | None) -> None:
        """Replace the past; layers that are not in `states` become empty. seen: (B,) int64, tokens read."""
        for index, layer in enumerate(self.layers):
            given = states.get(index, {})
            carried = {name.removeprefix(CARRIED): t for name, t in given.items() if name.startswith(CARRIED)}
            state = {name: t for name, t in given.items() if not name.startswith(CARRIED)}
            layer.set_past(state or None, carried or None, seen if given else None)

    def merged(self, other: InfiniCache) -> InfiniCache:
        """A cache with the past of both, as if `other` had been read after this one: carried tokens that no longer fit
        go into the memory."""
        result = InfiniCache(self.rule, 0)
        result.layers = [
            _merged(first, second) if first.keeps else first.clone()
            for first, second in zip(self.layers, other.layers, strict=True)
        ]
        return result

    def clone(self) -> InfiniCache:
        """A cache with the same past and its own segment; generation on it does not change this cache."""
        other = InfiniCache(self.rule, 0)
        other.layers = [layer.clone() for layer in self.layers]
        return other


def _merged(first: InfiniLayer, second: InfiniLayer) -> InfiniLayer:
    """Memories merged by the rule; carried tokens as if the second layer's had been read after the first layer's."""
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
