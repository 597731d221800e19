"""Norms, gated feed-forward parts and rotations of a model in one pass each, where the C library covers them.

- `put_on` gives such modules of one model another `forward`, and `take_off` gives them their own back
- the rotation is a function of the model's family, not a module: `rotated` stands in its place for all models of the
  family, and calls it for all forwards but those that are to be faster
- a forward of the model decides whether they are used (`active.fused`, see attach.py): the results differ from those
  of the modules by rounding, so a forward that must have the model's own bits goes without them
- weights, names and classes of the modules stay as they are
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from transformers.activations import SiLUActivation

from . import native
from .attend import Forward, active
from .native import layers

# The name of the function that rotates queries and keys, in the modules of all families.
ROTATE = "apply_rotary_pos_emb"


def put_on(model: nn.Module) -> list[Any]:
    """Give the norms and gated parts that are known another forward; returns these modules."""
    found = []
    for module in model.modules():
        forward = _forward_for(module)
        if forward is not None and "forward" not in vars(module):
            module.forward = MethodType(forward, module)
            found.append(module)
    return found


def take_off(modules: Sequence[Any]) -> None:
    """Give modules their own forward back."""
    for module in modules:
        vars(module).pop("forward", None)


def put_on_family(home: ModuleType) -> None:
    """Put `rotated` in the place of a family's function; once is enough."""
    own = vars(home).get(ROTATE)
    if own is not None and not isinstance(own, partial):
        setattr(home, ROTATE, partial(rotated, own=own))


def rotated(
    queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, *given: Any, own: Callable[..., Any], **named: Any
) -> tuple[Tensor, Tensor]:
    """Queries (B, H, T, D) and keys (B, G, T, D), rotated by tables (B or 1, T, R). own: the family's function."""
    forward: Forward | None = getattr(active, "forward", None)
    if getattr(active, "fused", False) and forward is not None and forward.turns is not None:
        tables = forward.turns.wide()
        if forward.turns.tables[0] is cos and native.rotates(queries, *tables) and native.rotates(keys, *tables):
            return native.rotate(queries, *tables, queries.dtype), native.rotate(keys, *tables, keys.dtype)
    return own(queries, keys, cos, sin, *given, **named)  # type: ignore[no-any-return]


def _forward_for(module: Any) -> Any:
    if type(module).__name__.endswith("RMSNorm"):
        return _norm if hasattr(module, "variance_epsilon") else _shifted_norm
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    gated = type(module).__name__.endswith("MLP") and all(hasattr(module, part) for part in parts)
    return _gated if gated and isinstance(module.act_fn, nn.SiLU | SiLUActivation) else None


def _own(module: Any, x: Tensor) -> Tensor:
    result: Tensor = type(module).forward(module, x)
    return result


def _norm(self: Any, x: Tensor) -> Tensor:
    if getattr(active, "fused", False) and layers.covers(x, self.weight):
        return layers.norm(x, self.weight, self.variance_epsilon)
    return _own(self, x)


def _shifted_norm(self: Any, x: Tensor) -> Tensor:
    """Gemma's norm: its weight is stored less 1, and multiplied before rounding."""
    if getattr(active, "fused", False) and layers.covers(x, self.weight):
        return layers.norm(x, self.weight, self.eps, shift=1.0, once=True)
    return _own(self, x)


def _gated(self: Any, x: Tensor) -> Tensor:
    if getattr(active, "fused", False) and layers.covers(x):
        gate, up = self.gate_proj(x), self.up_proj(x)
        if layers.covers(gate, up):
            down: Tensor = self.down_proj(layers.gate(gate, up))
            return down
        return self.down_proj(self.act_fn(gate) * up)  # type: ignore[no-any-return]
    return _own(self, x)
