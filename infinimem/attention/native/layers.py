"""The norm and the gated feed-forward part of a layer in C (layers.h), in one pass each instead of four to six."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from . import KINDS, Kernels, _of, _team, knows


def covers(*tensors: Tensor) -> bool:
    """Whether `norm` and `gate` cover these tensors: on the CPU, of one dtype, without gaps and gradients."""
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.bfloat16)
        and all(x.dtype == first.dtype and x.is_contiguous() for x in tensors)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and knows(torch.float32)
    )


def norm(x: Tensor, weight: Tensor, eps: float, *, shift: float = 0.0, once: bool = False) -> Tensor:
    """x (..., D) over its root mean square, times weight (D,) plus `shift`, in the dtype of x.

    eps: added to the mean square.
    once: whether the result alone is rounded to the dtype; False to round before the weight too.
    """
    result = torch.empty_like(x)
    width = x.shape[-1]
    numbers = array("q", (x.data_ptr(), weight.data_ptr(), result.data_ptr()))
    numbers.extend((x.numel() // width if width else 0, width, KINDS[x.dtype], once))
    _kernels(x).norm(numbers.buffer_info()[0], eps, shift, _team(), torch.get_num_threads())
    return result


def gate(x: Tensor, y: Tensor) -> Tensor:
    """SiLU of x (..., D), rounded to its dtype, times y (..., D)."""
    result = torch.empty_like(x)
    width = x.shape[-1]
    numbers = array("q", (x.data_ptr(), y.data_ptr(), result.data_ptr()))
    numbers.extend((x.numel() // width if width else 0, width, KINDS[x.dtype], 0))
    _kernels(x).gate(numbers.buffer_info()[0], _team(), torch.get_num_threads())
    return result


def _kernels(x: Tensor) -> Kernels:
    # Those for float32 read and write bfloat16 too, but they round in more steps.
    return _of(x.dtype if knows(x.dtype) else torch.float32)
