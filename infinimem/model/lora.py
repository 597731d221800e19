"""Putting an adapter into a network: its LoRA is merged into the weights or computed beside them; its gates are set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import AdapterMismatch
from .adapter import Adapter
from .quantized import Int8Linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def merge_lora(model: PreTrainedModel, adapter: Adapter) -> None:
    """Add the adapter to the weights, W += scale * B A: computed in float32, rounded once to the weights' dtype.

    Raises AdapterMismatch, before anything is changed, where the model lacks a module of the adapter, or has it in
    another shape.
    """
    modules = check_lora(model, adapter)
    for path, (a, b) in adapter.lora.items():
        weight = modules[path].weight
        change = b.to(weight.device) @ a.to(weight.device)  # (out, in), in place from here on
        weight.copy_(change.mul_(adapter.scale).add_(weight))


class LoraLinear(nn.Module):
    """A linear layer with a LoRA beside it: base(x) + B A x. The weights of the base may belong to other networks too.

    a: (r, in). b: (out, r), with the scale in it. Both in the dtype of the inputs.
    """

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = nn.Parameter(a, False), nn.Parameter(b, False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        found: Tensor = self.base(x)
        return found + F.linear(F.linear(x, self.a), self.b)


def add_lora(model: PreTrainedModel, adapter: Adapter) -> None:
    """Compute the adapter beside the weights, which stay as they are. Raises AdapterMismatch as `merge_lora` does."""
    modules = check_lora(model, adapter)
    network: Any = model
    for path, (a, b) in adapter.lora.items():
        base = modules[path]
        kind = base.dtype if isinstance(base, Int8Linear) else base.weight.dtype
        place = base.weight.device
        network.set_submodule(path, LoraLinear(base, a.to(place, kind), (adapter.scale * b).to(place, kind)))


def check_lora(model: PreTrainedModel, adapter: Adapter) -> dict[str, Any]:
    """All modules of a model by their paths.

    Raises AdapterMismatch where the model lacks a linear module of the adapter, or has it in another shape.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    for path, (a, b) in adapter.lora.items():
        module = modules.get(path)
        if not isinstance(module, (nn.Linear, Int8Linear)):
            raise AdapterMismatch(
                f"the adapter '{adapter.name}' needs a linear layer '{path}', which this model does not have; use the "
                "base model that the adapter was trained on"
            )
        if (module.out_features, module.in_features) != (b.shape[0], a.shape[1]):
            raise AdapterMismatch(
                f"the adapter '{adapter.name}' has the shape {(b.shape[0], a.shape[1])} at '{path}', but the model has "
                f"{(module.out_features, module.in_features)}; use the base model that the adapter was trained on"
            )
    return modules


@torch.no_grad()
def set_gates(modules: Sequence[Any], adapter: Adapter) -> None:
    """Give the attention modules, in layer order, the adapter's gates. Raises AdapterMismatch."""
    for index, beta in adapter.gates.items():
        gate = getattr(modules[index], "memory_gate", None) if index < len(modules) else None
        if gate is None:
            raise AdapterMismatch(
                f"the adapter '{adapter.name}' has a gate for layer {index}, where the model has no gate; "
                f"use the adapter with the rule '{adapter.memory['rule']}'"
            )
        if gate.beta.shape != beta.shape:
            raise AdapterMismatch(
                f"the adapter '{adapter.name}' has gates of {beta.numel()} heads in layer {index}, but the model has "
                f"{gate.beta.numel()} heads; use the base model that the adapter was trained on"
            )
        gate.beta.copy_(beta)
