"""Memory rules: how keys and values of past segments are compressed, and how queries read them.

- `MemoryRule` is what all rules share: writing, merging, the layout of a state
- `GatedRule`: the memory answers by itself, and a gate mixes its values with those of the local attention (the paper)
- `SoftmaxRule`: the memory is a set of keys and values that stand in one softmax with the segment
- a state is a plain dict of tensors, one memory per *KV* head
- functional: `write` returns a new state and never changes the old one, so states can be shared between threads and
  questions, and gradients flow through any number of writes
- the arithmetic of states is float32, whatever the model computes in
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .state import Layout, Part, State


class MemoryRule(ABC):
    """How one attention layer remembers the tokens before its local window.

    Shapes: B batch, H query heads, G KV heads (H is a multiple of G), T tokens, D key width, Dv value width.
    """

    name: ClassVar[str]
    #: How the carried tokens, and the states of softmax rules, are packed; see packing.py.
    packing: str = "float32"
    #: Queries are rotated as if all of the past lay this many tokens back; None: the memory is read without positions.
    distance: int | None = None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that must be equal for two states of this rule to mean the same; JSON values only."""

    @abstractmethod
    def layout(self, key_width: int, value_width: int) -> Layout:
        """The state tensors: dtypes, and shapes after (B, G), in which None is a size that differs between states."""

    @abstractmethod
    def write(
        self,
        state: State | None,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        precision: torch.dtype = torch.float32,
    ) -> State:
        """Put a segment into the memory; returns a new state.

        state: the memory so far; None for an empty memory.
        keys: (B, G, T, D), position-free.
        values: (B, G, T, Dv).
        mask: (B, T), True for real tokens; None if all tokens are real.
        precision: dtype of the model, in which the rule may compare candidates; the state is computed in float32.
        """

    @abstractmethod
    def merge(self, a: State, b: State) -> State:
        """One state that holds what both states hold."""

    def prepare(self, state: State, dtype: torch.dtype) -> State:
        """The state in the form in which it is read, made once per state and compute dtype."""
        return state

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"


class GatedRule(MemoryRule):
    """A rule whose values a gate mixes with the values of the local attention (equation 10).

    gate: beta of every query head before training.
    """

    gate: float = 0.0

    @abstractmethod
    def retrieve(self, state: State, queries: Tensor) -> Tensor:
        """The memory's values (B, H, T, Dv), float32, for position-free queries (B, H, T, D)."""


class SoftmaxRule(MemoryRule):
    """A rule whose state is a set of keys and values, read in one softmax with carried tokens and segment."""

    @abstractmethod
    def part(self, state: State, queries: Tensor) -> Part:
        """The memory's part of the softmax.

        state: as `prepare` gives it.
        queries: (B, H, T, D), rotated to the virtual distance.
        """
