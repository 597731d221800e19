"""Block formats of GGUF: bytes to values.

Every format stores rows as blocks of equal size. A block of 32 or 256 values has a scale in float16, for some formats
also a minimum, and small integers. The products and sums are computed in float32, in the order in which the formats
define them, so that every reader of these formats gets the same values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .gguf import FORMATS


def dequantize(data: Tensor, kind: str) -> Tensor:
    """The values in whole blocks.

    data: uint8 (bytes,).
    kind: a name of FORMATS.
    Returns float32 (values,).
    """
    return DECODERS[kind](data.view(-1, WIDTHS[kind])).reshape(-1)


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 number at this byte of every block, as float32 (blocks, 1)."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _fields(data: Tensor, width: int, bits: int) -> Tensor:
    """Fields of `bits` bits: in runs of `width` bytes, the lowest field of all bytes first.

    data: uint8 (blocks, bytes). Returns uint8 (blocks, bytes * 8 / bits).
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).view(1, 1, -1, 1)
    runs = data.reshape(data.shape[0], -1, 1, width)  # (blocks, runs, 1, width)
    return ((runs >> shifts) & ((1 << bits) - 1)).reshape(data.shape[0], -1)


def _fifth_bits(data: Tensor) -> Tensor:
    """The 32 highest bits of the values of Q5_0 and Q5_1, moved to their place: uint8 (blocks, 4) to (blocks, 32)."""
    shifts = torch.arange(8, dtype=torch.uint8).view(1, 1, 8)
    return (((data[..., None] >> shifts) & 1) << 4).reshape(-1, 32)


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_fields(blocks[:, 2:], 16, 4).to(torch.int8) - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _fields(blocks[:, 4:], 16, 4) + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    values = _fields(blocks[:, 6:], 16, 4) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (values.to(torch.int8) - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    values = _fields(blocks[:, 8:], 16, 4) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * values + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of the eight parts of a block of Q4_K or Q5_K, float32 (blocks, 8, 1) each.

    The 16 numbers of six bits are packed into 12 bytes: the first four scales and minima are the low bits of the first
    eight bytes; the others have their low bits in the last four bytes, their high bits above those first numbers.
    """
    low, high, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([low & 63, (rest & 15) | ((low >> 6) << 4)], 1)
    minima = torch.cat([high & 63, (rest >> 4) | ((high >> 6) << 4)], 1)
    return (_half(blocks, 0) * scales)[..., None], (_half(blocks, 2) * minima)[..., None]


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks)
    return scales * _fields(blocks[:, 16:], 32, 4).view(-1, 8, 32) - minima


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks)
    values = _fields(blocks[:, 48:], 32, 4) | (_fields(blocks[:, 16:48], 32, 1) << 4)
    return scales * values.view(-1, 8, 32) - minima


def _q6_k(blocks: Tensor) -> Tensor:
    scales = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8)
    values = _fields(blocks[:, :128], 64, 4) | (_fields(blocks[:, 128:192], 32, 2) << 4)
    return scales[..., None] * (values.to(torch.int8) - 32).view(-1, 16, 16)


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": lambda blocks: blocks.view(torch.float32),
    "F16": lambda blocks: blocks.view(torch.float16).float(),
    "BF16": lambda blocks: blocks.view(torch.bfloat16).float(),
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
WIDTHS = {name: width for name, _, width in FORMATS.values()}
