"""Weights of 8 bits in memory: linear layers and embeddings that take half the room of bfloat16.

- each row of a weight matrix (an output of the layer, a token of the vocabulary) has one scale
- on a CPU with the C library, inputs are rounded to 8 bits too, in groups of 128 numbers: a few inputs of some layers
  are hundreds of times larger than the others, and must not make these coarse
- elsewhere (on a GPU, without the library, with gradients), the weights are widened for each product
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention.native import products

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .adapter import Adapter

# Numbers that are widened, or made of wide weights, at a time.
AT_A_TIME = 1 << 22


class Int8Weight:
    """A weight matrix of 8 bits.

    packed: its integers, as `products.pack` orders them.
    scales: (N,) float32, what an integer of a row stands for.
    width: K.
    """

    def __init__(self, packed: nn.Parameter, scales: Tensor, width: int) -> None:
        self.packed, self.scales, self.width = packed, scales, width

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        weight: Tensor,
        lora: tuple[Tensor, Tensor] | None = None,
        scale: float = 1.0,
        room: Tensor | None = None,
    ) -> Int8Weight:
        """Round a matrix (N, K) to 8 bits.

        lora: A (r, K) and B (N, r), whose product times `scale` is added before, in float32.
        room: where its integers are put, (size_of(weight),) int8; None for memory of their own.
        """
        rows, width = weight.shape
        if room is None:
            room = products.room(size_of(weight), weight.device)
        packed = room.view(products.packed_shape(rows, width))
        scales = torch.empty(rows, dtype=torch.float32, device=weight.device)
        step = max(1, AT_A_TIME // (width * products.COLUMNS)) * products.COLUMNS
        for first in range(0, rows, step):
            part = weight[first : first + step].float()
            if lora is not None:
                a, b = (half.to(weight.device) for half in lora)
                part = part + scale * (b[first : first + step] @ a)
            found = part.abs().amax(dim=1) / products.MOST
            integers = (part / found.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_().to(torch.int8)
            scales[first : first + step] = found
            block = first // products.COLUMNS
            done = products.pack(integers)
            packed[block : block + len(done)] = done
        return cls(nn.Parameter(packed, False), scales, width)

    def __len__(self) -> int:
        return len(self.scales)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Some rows, (..., K) float32."""
        chosen = index if isinstance(index, Tensor) else torch.arange(len(self), device=self.device)[index]
        return products.rows_of(self.packed, chosen, self.width) * self.scales[chosen, None]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.packed.device

    def detach(self) -> Int8Weight:
        """Itself: it has no gradients."""
        return self

    def widened(self, first: int, last: int) -> Tensor:
        """The rows of some blocks of `products.COLUMNS` rows, (n, K) float32."""
        integers = products.unpack(self.packed[first:last], self.width)
        scales = self.scales[first * products.COLUMNS : last * products.COLUMNS]
        return integers[: len(scales)] * scales[:, None]

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K) times this matrix, (..., N); bias (N,)."""
        if products.multiplies(x):
            return products.product(x, self.packed, self.scales, bias)
        step = max(1, AT_A_TIME // (self.width * products.COLUMNS))
        parts = range(0, self.packed.shape[0], step)
        found = torch.cat([F.linear(x, self.widened(first, first + step).to(x.dtype)) for first in parts], dim=-1)
        return found if bias is None else found + bias.to(found.dtype)


def size_of(weight: Tensor) -> int:
    """The bytes that the packed integers of a matrix (N, K) take."""
    return math.prod(products.packed_shape(*weight.shape))


class _Holder(nn.Module):
    """A module with a weight matrix of 8 bits, whose tensors move with the module."""

    packed: nn.Parameter
    scales: Tensor

    def __init__(self, weight: Int8Weight) -> None:
        super().__init__()
        self.packed, self._width = weight.packed, weight.width
        # No parameter, because transformers takes the dtype of a model from its first parameter.
        self.register_buffer("scales", weight.scales, persistent=False)

    @property
    def weight(self) -> Int8Weight:
        """The weight matrix."""
        return Int8Weight(self.packed, self.scales, self._width)


class Int8Linear(_Holder):
    """A linear layer with weights of 8 bits.

    bias: (N,), or None.
    dtype: of the model's numbers.
    """

    bias: Tensor | None

    def __init__(self, weight: Int8Weight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight)
        self.dtype = dtype
        self.in_features, self.out_features = weight.width, len(weight)
        # In float32, as the product adds it.
        self.register_buffer("bias", None if bias is None else bias.detach().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        return self.weight.product(x, self.bias)


class Int8Embedding(_Holder):
    """An embedding of 8 bits.

    dtype: of the result.
    factor: what embeddings are multiplied by; 1 in most families.
    """

    def __init__(self, weight: Int8Weight, dtype: torch.dtype, factor: float) -> None:
        super().__init__(weight)
        self.dtype, self.factor = dtype, factor

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) to (B, T, E)."""
        found = self.weight[tokens].to(self.dtype)
        return found if self.factor == 1 else found * torch.tensor(self.factor, dtype=self.dtype, device=found.device)


@torch.no_grad()
def quantize(model: PreTrainedModel, adapter: Adapter | None = None) -> None:
    """Give the linear layers of a model, and an embedding that is its head, weights of 8 bits, in place.

    One weight follows the other. Of a file that is mapped into memory, pages are given back once they are read.

    adapter: its LoRA is merged into the weights before they are rounded; `check_lora` must have accepted it.
    """
    network: Any = model
    lora = {} if adapter is None else adapter.lora
    scale = 1.0 if adapter is None else adapter.scale
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    tied = head.weight is embedding.weight
    dtype = embedding.weight.dtype
    shared: Int8Weight | None = None
    # An embedding that is not the head stays as it is: it is no product, and of a file that is mapped into memory only
    # the rows that are looked up take room.
    chosen = [
        (path, module)
        for path, module in network.named_modules()
        if (tied and module is embedding) or (isinstance(module, nn.Linear) and not (tied and module is head))
    ]
    device = embedding.weight.device
    # All weights lie in one piece of memory, because a large page is as large as many a matrix.
    rest = products.room(sum(size_of(module.weight) for _, module in chosen), device)
    for path, module in chosen:
        size = size_of(module.weight)
        room, rest = rest[:size], rest[size:]
        if module is not embedding:
            weight = Int8Weight.of(module.weight, lora.get(path), scale, room)
            network.set_submodule(path, Int8Linear(weight, module.bias, dtype))
        else:
            shared = Int8Weight.of(module.weight, room=room)
            factor = float(getattr(module, "embed_scale", 1.0))
            network.set_submodule(path, Int8Embedding(shared, dtype, factor))
        products.page_out(module.weight.detach())
    products.page_out(embedding.weight.detach())
    if tied and shared is not None:
        network.set_output_embeddings(Int8Linear(shared, head.bias, dtype))
