"""Memory rules: how keys and values of past segments are compressed, and how queries read them.

- one interface, `MemoryRule`; a state is a plain dict of tensors, one memory per *KV* head
- functional: `write` returns a new state and never changes the old one, so states can be shared between threads and
  questions, and gradients flow through any number of writes
- `linear` and `delta` are the paper's (arXiv 2404.07143, equations 7 to 10); `slots` is in slots.py

What the paper leaves open, and our choice:
- initial state: M = 0, z = 0
- first segment: nothing has been written, so the memory is not read and the output is the local attention alone
- epsilon: 1e-6 is added to the denominator of equation 7 (and of the same fraction in equation 9)
- grouped-query attention: one memory per KV head; its query heads read it with their own queries and gates
- padding: padded keys add nothing to M and z
- dtype: the arithmetic of states is float32, whatever the model computes in, and so are the states of the paper's rules
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidSetting
from .local import Part

State = dict[str, Tensor]
Layout = dict[str, tuple[torch.dtype, tuple[int | None, ...]]]

EPSILON = 1e-6


class Reading(NamedTuple):
    """What a memory answers to a batch of queries.

    values: (B, H, T, Dv), in the dtype of the queries for `slots`, float32 for the gated rules.
    log_mass: (B, H, T) float32, the log of the summed exponentials behind `values`, for rules that share one softmax
        with the local window; None for rules that are mixed in by a gate.
    """

    values: Tensor
    log_mass: Tensor | None


class MemoryRule(ABC):
    """How one attention layer remembers what came before its local window.

    Shapes: B batch, H query heads, G KV heads (H is a multiple of G), T tokens, D key width, Dv value width.
    """

    name: ClassVar[str]
    gated: ClassVar[bool]
    #: How keys and values that are kept as they are lie in memory; see packing.py.
    packing: str = "float32"
    #: Queries are turned as if all of the past lay this many tokens back; None reads without any position.
    distance: int | None = None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that must be equal for two states of this rule to mean the same; JSON values only."""

    @abstractmethod
    def layout(self, key_width: int, value_width: int) -> Layout:
        """The state tensors: dtypes, and shapes after (B, G), in which None marks a dimension that may be smaller."""

    @abstractmethod
    def write(
        self,
        state: State | None,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        precision: torch.dtype = torch.float32,
    ) -> State:
        """Put a segment into the memory.

        keys: (B, G, T, D) and values: (B, G, T, Dv), position-free. mask: (B, T), True for real tokens; None if all
        are. `state` None is the empty memory. precision: the model's own, in which the rule may weigh its choices; what
        it keeps is computed in float32. Returns a new state.
        """

    @abstractmethod
    def read(self, state: State, queries: Tensor, scaling: float, softcap: float | None = None) -> Reading:
        """Answer position-free queries (B, H, T, D), or queries turned by `distance` where the rule has one."""

    def part(self, state: State, queries: Tensor) -> Part:
        """What queries, turned by `distance`, ask of a prepared state in one softmax with carried tokens and segment.

        For rules without gates.
        """
        raise NotImplementedError(f"rule {self.name!r} is read through gates")

    @abstractmethod
    def merge(self, a: State, b: State) -> State:
        """One state that stands for both."""

    def prepare(self, state: State, dtype: torch.dtype) -> State:
        """The state in the form that `read` wants, made once per state and compute dtype."""
        return state

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"


def feature_map(x: Tensor) -> Tensor:
    """The paper's sigma, ELU + 1, in float32."""
    return F.elu(x.float()) + 1


class LinearRule(MemoryRule):
    """Equations 7 and 8: M += sigma(K)^T V, z += sum of sigma(K); read sigma(Q) M / (sigma(Q) z).

    gate: initial beta of equation 10, one per query head. The default of -4 mixes in 1.8 % of the memory, which an
    untrained model survives; training moves it.
    """

    name = "linear"
    gated = True

    def __init__(self, gate: float = -4.0) -> None:
        self.gate = float(gate)
        if math.isnan(self.gate):
            raise InvalidSetting("the initial gate is not a number; give beta, for example -4 for 1.8 % of memory")

    def settings(self) -> dict[str, Any]:
        return {"gate": self.gate}

    def layout(self, key_width: int, value_width: int) -> Layout:
        return {"matrix": (torch.float32, (key_width, value_width)), "normalizer": (torch.float32, (key_width,))}

    def _features(self, keys: Tensor, mask: Tensor | None) -> Tensor:
        features = feature_map(keys)
        return features if mask is None else features * mask[:, None, :, None]

    def write(
        self,
        state: State | None,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        precision: torch.dtype = torch.float32,
    ) -> State:
        features = self._features(keys, mask)  # (B, G, T, D)
        values = values.float()
        if state is not None:
            values = self._new_part(state, features, values)
        matrix = features.mT @ values  # (B, G, D, Dv)
        normalizer = features.sum(dim=-2)  # (B, G, D)
        if state is None:
            return {"matrix": matrix, "normalizer": normalizer}
        return {"matrix": state["matrix"] + matrix, "normalizer": state["normalizer"] + normalizer}

    def _new_part(self, state: State, features: Tensor, values: Tensor) -> Tensor:
        return values

    def read(self, state: State, queries: Tensor, scaling: float, softcap: float | None = None) -> Reading:
        batch, heads, tokens, width = queries.shape
        groups = state["matrix"].shape[1]
        features = feature_map(queries).reshape(batch, groups, -1, width)  # (B, G, H/G*T, D)
        values = retrieve(state, features)
        return Reading(values.reshape(batch, heads, tokens, -1), None)

    def merge(self, a: State, b: State) -> State:
        return {name: a[name] + b[name] for name in a}


class DeltaRule(LinearRule):
    """Equation 9: like `linear`, but a write stores only what the memory does not already return for its keys.

    `merge` adds the matrices, which is what `linear` does exactly; here it is an approximation: what both documents
    store under similar keys is counted twice, as neither saw the other.
    """

    name = "delta"

    def _new_part(self, state: State, features: Tensor, values: Tensor) -> Tensor:
        return values - retrieve(state, features)


def retrieve(state: State, features: Tensor) -> Tensor:
    """Equation 7 on mapped queries or keys (B, G, N, D): the memory's values (B, G, N, Dv), float32."""
    mass = features @ state["normalizer"].unsqueeze(-1)  # (B, G, N, 1)
    return (features @ state["matrix"]) / (mass + EPSILON)
