"""`InfiniCache`: a transformers `Cache` whose layers hold a local window and a compressive memory.

- the window (rotated keys, values) grows with every forward, like a `DynamicCache`
- `end_segment()` writes the window into the memory and empties it; nothing else ever writes
- `get_seq_length` counts the window alone, so `model.generate(..., past_key_values=cache)` treats the prompt as the
  start of the text while every layer also reads the memory
- states are never changed in place: `clone()` shares them, costs nothing, and protects the original
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ..errors import InvalidSetting
from .rules import MemoryRule, State


class InfiniLayer(DynamicLayer):
    """Window and memory of one attention layer; `remembers` is False for layers that have a window alone."""

    is_croppable = False
    keys: Any  # (B, G, S, D); None while the window is empty
    values: Any  # (B, G, S, Dv)

    def __init__(self, rule: MemoryRule, remembers: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rule = rule
        self.remembers = remembers
        self.recording = False
        self.state: State | None = None
        self.seen: Tensor | None = None  # (B,) tokens in the memory
        self.content_keys: list[Tensor] = []  # position-free keys of the window, (B, G, T, D) each
        self._prepared: tuple[torch.dtype, State] | None = None

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
        """Keep position-free keys (B, G, T, D) of new tokens for the next write."""
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
        other = InfiniLayer(self.rule, self.remembers)
        other.recording = self.recording
        other.state, other.seen, other._prepared = self.state, self.seen, self._prepared
        other.content_keys = list(self.content_keys)
        if self.get_seq_length() > 0:
            other.update(self.keys, self.values)
        return other


class InfiniCache(Cache):
    """One `InfiniLayer` per decoder layer.

    rule: how the memory is written and read. num_layers: layers of the model. memory_layers: indices of the layers
    that have a memory; all of them by default.
    """

    layers: list[InfiniLayer]  # type: ignore[assignment]

    def __init__(self, rule: MemoryRule, num_layers: int, memory_layers: Collection[int] | None = None) -> None:
        chosen = range(num_layers) if memory_layers is None else memory_layers
        super().__init__(layers=[InfiniLayer(rule, index in chosen) for index in range(num_layers)])
        self.rule = rule

    @property
    def memory_layers(self) -> list[int]:
        """Indices of the layers that have a memory."""
        return [index for index, layer in enumerate(self.layers) if layer.remembers]

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
    """Layers that can be written together: equal key and value shapes on one device."""
    groups: dict[object, list[InfiniLayer]] = {}
    for layer in layers:
        groups.setdefault((layer.keys.shape, layer.values.shape, layer.keys.device), []).append(layer)
    return list(groups.values())


def _write(layers: Sequence[InfiniLayer], mask: Tensor | None, written: slice) -> None:
    rule, batch = layers[0].rule, layers[0].keys.shape[0]
    keys = torch.cat([torch.cat(layer.content_keys, dim=-2)[:, :, written] for layer in layers])  # (L*B, G, T, D)
    values = torch.cat([layer.values[:, :, written] for layer in layers])  # (L*B, G, T, Dv)
    states = [layer.state for layer in layers if layer.state is not None]
    stacked = {name: torch.cat([state[name] for state in states]) for name in rule.tensor_names} if states else None
    rows = None if mask is None else mask.repeat(len(layers), 1)
    states_after = rule.write(stacked, keys, values, rows)
    if mask is None:
        added = torch.full((batch,), keys.shape[-2], dtype=torch.int64, device=keys.device)
    else:
        added = mask.sum(dim=-1)
    seen = added if layers[0].seen is None else layers[0].seen + added
    for index, layer in enumerate(layers):
        rows_of = slice(index * batch, (index + 1) * batch)
        layer.set_memory({name: tensor[rows_of] for name, tensor in states_after.items()}, seen)
