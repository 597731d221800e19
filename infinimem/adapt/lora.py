"""Low-rank layers (LoRA, arXiv 2106.09685) beside the frozen linear layers of a decoder.

A linear layer's output becomes W x + scale * B A x. A forward hook computes the sum, so the model's own modules stay as
they are, and `remove` restores the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import AdapterMismatch, InvalidConfig
from ..model.adapter import Adapter
from ..model.quantized import Int8Linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraLayers:
    """LoRA on every linear layer of the decoder whose name is one of `targets`.

    `pairs`: module path to parameters (A (rank, in), B (out, rank)), float32 on the module's device, whatever the dtype
        of the base. A is Kaiming-uniform from `seed`, B is zero, so at first the model is unchanged.
    `scale`: alpha / rank.
    Raises InvalidConfig where a target is not the name of any layer.
    """

    def __init__(
        self, model: PreTrainedModel, targets: Sequence[str], *, rank: int, alpha: float, seed: int = 0
    ) -> None:
        inside = {id(module) for layer in model.get_decoder().layers for module in layer.modules()}
        linear = {
            path: module
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear) and id(module) in inside
        }
        if any(isinstance(module, Int8Linear) for module in model.modules()):
            raise InvalidConfig("weights of 8 bits cannot be trained beside; load the model with weights='bfloat16'")
        missing = set(targets) - {path.rpartition(".")[2] for path in linear}
        if missing:
            known = sorted({path.rpartition(".")[2] for path in linear})
            raise InvalidConfig(
                f"lora.targets names {', '.join(sorted(missing))}, but the model has {', '.join(known)}"
            )
        self.scale = alpha / rank
        self.pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self._handles: list[Any] = []
        generator = torch.Generator().manual_seed(seed)
        for path, module in linear.items():
            if path.rpartition(".")[2] in targets:
                a = torch.empty(rank, module.in_features)
                nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
                device = module.weight.device
                pair = nn.Parameter(a.to(device)), nn.Parameter(torch.zeros(module.out_features, rank, device=device))
                self.pairs[path] = pair
                self._handles.append(module.register_forward_hook(_Sum(*pair, self.scale)))

    @torch.no_grad()
    def start_from(self, adapter: Adapter) -> None:
        """Copy the weights of an adapter. Raises AdapterMismatch where it has other layers, rank or scale."""
        if set(adapter.lora) != set(self.pairs) or not math.isclose(adapter.scale, self.scale):
            raise AdapterMismatch(
                f"the adapter '{adapter.name}' has other layers or another alpha / rank; set lora.targets, lora.rank "
                "and lora.alpha to the values that it was trained with"
            )
        for path, pair in self.pairs.items():
            for mine, given in zip(pair, adapter.lora[path], strict=True):
                if mine.shape != given.shape:
                    raise AdapterMismatch(
                        f"the adapter '{adapter.name}' has another rank or width at '{path}'; use the lora.rank and "
                        "the model that it was trained with"
                    )
                mine.copy_(given)

    def remove(self) -> None:
        """Take the hooks off; the parameters stay in `pairs`."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Sum:
    """The forward hook of one layer."""

    def __init__(self, a: nn.Parameter, b: nn.Parameter, scale: float) -> None:
        self.a, self.b, self.scale = a, b, scale

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        # The products are computed in the dtype of the model; the parameters and their gradients stay float32.
        low = F.linear(x, self.a.to(x.dtype)) * self.scale  # (B, T, rank)
        return output + F.linear(low, self.b.to(x.dtype))
