"""`InfiniCache`: a transformers `Cache` whose layers hold a local window and a compressive memory.

- the window (rotated keys, values) grows with every forward, like a `DynamicCache`
- `end_segment()` writes the window into the memory and empties it; nothing else ever writes
- `get_seq_length` counts the window alone, so `model.generate(..., past_key_values=cache)` treats the prompt as the
  start of the text while every layer also reads the memory
- states are never changed in place: `clone()` shares them, costs nothing, and protects the original
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ..errors import InvalidSetting
from .rules import MemoryRule, State


class InfiniLayer(DynamicLayer):
    """Window and memory of one attention layer.

    heads: the KV heads that have a memory; None for all of them, empty for a layer that has a window alone.
    """

    is_croppable = False
    keys: Any  # (B, G, S, D); None while the window is empty
    values: Any  # (B, G, S, Dv)

    def __init__(self, rule: MemoryRule, heads: Sequence[int] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rule = rule
        self.heads = None if heads is None else tuple(heads)
        self.recording = False
        self.state: State | None = None  # of the remembering heads, (B, R, ...) each
        self.seen: Tensor | None = None  # (B,) tokens in the memory
        self.content_keys: list[Tensor] = []  # position-free keys of the window, (B, R, T, D) each
        self._prepared: tuple[torch.dtype, State] | None = None

    @property
    def remembers(self) -> bool:
        """Whether any head has a memory."""
        return self.heads is None or bool(self.heads)

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
        """Append to the window; returns the whole window's keys and values, (B, G, S, D)."""
        if self.get_seq_length() == 0:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = key_states, value_states
            self.is_initialized = True
        else:
            self.keys = torch.cat((self.keys, key_states), dim=-2)
            self.values = torch.cat((self.values, value_states), dim=-2)
        return self.keys, self.values

    def record(self, content_keys: Tensor) -> None:
        """Keep position-free keys (B, R, T, D) of new tokens for the next write."""
        self.content_keys.append(content_keys)

    def prepared(self, dtype: torch.dtype) -> State:
        """The state as `rule.read` wants it; made once per state and dtype. The layer must have a state."""
        if self._prepared is None or self._prepared[0] != dtype:
            self._prepared = (dtype, self.rule.prepare(self.state or {}, dtype))
        return self._prepared[1]

    def set_memory(self, state: State | None, seen: Tensor | None) -> None:
        """Replace the memory by `state`, into which `seen` (B,) tokens went."""
        self.state, self.seen, self._prepared = state, seen, None

    def empty_window(self) -> None:
        """Forget the local window, keep the memory."""
        self.keys = self.values = None
        self.is_initialized = False
        self.content_keys = []

    def reset(self) -> None:
        """Forget window and memory."""
        self.empty_window()
        self.set_memory(None, None)

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.get_seq_length() > 0:
            self.keys, self.values = change(self.keys), change(self.values)
        self.content_keys = [change(keys) for keys in self.content_keys]
        if self.state is not None and self.seen is not None:
            self.set_memory({name: change(tensor) for name, tensor in self.state.items()}, change(self.seen))

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
        """Same memory (shared, never changed in place), own window."""
        other = InfiniLayer(self.rule, self.heads)
        other.recording = self.recording
        other.state, other.seen, other._prepared = self.state, self.seen, self._prepared
        other.content_keys = list(self.content_keys)
        if self.get_seq_length() > 0:
            other.update(self.keys, self.values)
        return other


class InfiniCache(Cache):
    """One `InfiniLayer` per decoder layer.

    rule: how the memory is written and read. num_layers: layers of the model. memory_heads: layer to the KV heads that
    have a memory; None for all heads of all layers.
    """

    layers: list[InfiniLayer]  # type: ignore[assignment]

    def __init__(
        self, rule: MemoryRule, num_layers: int, memory_heads: Mapping[int, Sequence[int]] | None = None
    ) -> None:
        chosen = [None if memory_heads is None else memory_heads.get(index, ()) for index in range(num_layers)]
        super().__init__(layers=[InfiniLayer(rule, heads) for heads in chosen])
        self.rule = rule

    @property
    def seen(self) -> Tensor | None:
        """Tokens in the memory, (B,) int64; None while it is empty."""
        return next((layer.seen for layer in self.layers if layer.remembers), None)

    def recording(self, on: bool = True) -> InfiniCache:
        """Keep position-free keys from now on, so that `end_segment` can write; returns the cache itself."""
        for layer in self.layers:
            layer.recording = on and layer.remembers
        return self

    def states(self) -> dict[int, State]:
        """The memory: layer index to state; empty before the first write."""
        return {i: layer.state for i, layer in enumerate(self.layers) if layer.remembers and layer.state is not None}

    def set_states(self, states: dict[int, State], seen: Tensor | None) -> None:
        """Replace the memory; layers that are not named become empty. seen: (B,) int64."""
        for index, layer in enumerate(self.layers):
            state = states.get(index)
            layer.set_memory(state, None if state is None else seen)

    def end_segment(self, mask: Tensor | None = None, *, written: slice = slice(None)) -> None:
        """Write the window of every layer into its memory, then empty all windows.

        written: the part of the window that is written. mask: (B, T) bool over that part, False for padding. Layers
        are written in one batched call.
        """
        layers = [layer for layer in self.layers if layer.remembers]
        if layers and layers[0].get_seq_length() > 0:
            length = layers[0].get_seq_length()
            if any(sum(k.shape[-2] for k in layer.content_keys) != length for layer in layers):
                raise InvalidSetting("this segment was read without recording; call cache.recording() before reading")
            for group in _equal_shapes(layers):
                _write(group, mask, written)
        for layer in self.layers:
            layer.empty_window()

    def clone(self) -> InfiniCache:
        """A cache with the same memory and a window of its own; generation on it leaves this one as it is."""
        other = InfiniCache(self.rule, 0)
        other.layers = [layer.clone() for layer in self.layers]
        return other


def _equal_shapes(layers: Sequence[InfiniLayer]) -> list[list[InfiniLayer]]:
    """Layers that can be written together: equal widths of keys and values on one device."""
    groups: dict[object, list[InfiniLayer]] = {}
    for layer in layers:
        groups.setdefault((layer.keys.shape[-1], layer.values.shape[-1], layer.keys.device), []).append(layer)
    return list(groups.values())


def _write(layers: Sequence[InfiniLayer], mask: Tensor | None, written: slice) -> None:
    """Write the windows of several layers in one call, their heads side by side."""
    rule, batch = layers[0].rule, layers[0].keys.shape[0]
    keys = torch.cat([torch.cat(layer.content_keys, dim=-2)[:, :, written] for layer in layers], dim=1)
    values = torch.cat([layer.of_heads(layer.values)[:, :, written] for layer in layers], dim=1)  # (B, sum of R, T, Dv)
    states = [layer.state for layer in layers if layer.state is not None]
    stacked = {name: torch.cat([state[name] for state in states], dim=1) for name in states[0]} if states else None
    state = rule.write(stacked, keys, values, mask)
    if mask is None:
        added = torch.full((batch,), keys.shape[-2], dtype=torch.int64, device=keys.device)
    else:
        added = mask.sum(dim=-1)
    seen = added if layers[0].seen is None else layers[0].seen + added
    sizes = [layer.content_keys[0].shape[1] for layer in layers]
    parts = {name: tensor.split(sizes, dim=1) for name, tensor in state.items()}
    for index, layer in enumerate(layers):
        layer.set_memory({name: tensors[index] for name, tensors in parts.items()}, seen)
