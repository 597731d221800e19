"""The paper's rules, `linear` and `delta` (arXiv 2404.07143, equations 7 to 10).

What the paper leaves open, and our choice:
- initial state: M = 0, z = 0
- first segment: nothing has been written, so the memory is not read and the output is the local attention alone
- epsilon: 1e-6 is added to the denominator of equation 7 (and of the same fraction in equation 9)
- grouped-query attention: one memory per KV head; its query heads read it with their own queries and gates
- padding: padded keys add nothing to M and z
- dtype: states are float32, whatever the model computes in
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import InvalidSetting
from .base import GatedRule
from .state import Layout, State

EPSILON = 1e-6


def feature_map(x: Tensor) -> Tensor:
    """The paper's sigma, ELU + 1, in float32."""
    return F.elu(x.float()) + 1


class LinearRule(GatedRule):
    """Equations 7 and 8: M += sigma(K)^T V, z += sum of sigma(K); read sigma(Q) M / (sigma(Q) z).

    gate: initial beta of equation 10, one per query head. The default of -4 gives the memory a share of 1.8 %, which
        does little harm before training; training changes it.
    """

    name = "linear"

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

    def retrieve(self, state: State, queries: Tensor) -> Tensor:
        batch, heads, tokens, width = queries.shape
        groups = state["matrix"].shape[1]
        features = feature_map(queries).reshape(batch, groups, -1, width)  # (B, G, H/G*T, D)
        return retrieve(state, features).reshape(batch, heads, tokens, -1)

    def merge(self, a: State, b: State) -> State:
        return {name: a[name] + b[name] for name in a}


class DeltaRule(LinearRule):
    """Equation 9: like `linear`, but a write stores only what the memory does not already return for its keys.

    `merge` adds the matrices. For `linear` the sum is exact; for `delta` it is an approximation: values that both
    documents store under similar keys are counted twice, because neither write saw the other memory.
    """

    name = "delta"

    def _new_part(self, state: State, features: Tensor, values: Tensor) -> Tensor:
        return values - retrieve(state, features)


def retrieve(state: State, features: Tensor) -> Tensor:
    """Equation 7 on mapped queries or keys (B, G, N, D): the memory's values (B, G, N, Dv), float32."""
    mass = features @ state["normalizer"].unsqueeze(-1)  # (B, G, N, 1)
    return (features @ state["matrix"]) / (mass + EPSILON)
