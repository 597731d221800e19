"""Products with weights of 8 bits in C (product.c): packed weights, and the call."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from array import array
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import CPU, LIBRARY, _team, allowed_levels

# The C code's numbers for the dtypes of x and out, and for its kernels.
NUMBERS = {torch.float32: 1, torch.bfloat16: 2}
KERNELS = {"plain": 0, "avx2": 1, "vnni": 2, "amx": 3}
# The best kernel that each level of INFINIMEM_NATIVE allows.
OF_LEVEL = {"amx": "amx", "avx512": "vnni", "avx2": "avx2", "neon": "plain"}
# Packed weights: (N / COLUMNS, K / STEP, COLUMNS / WIDTH, STEP / FOUR, WIDTH, FOUR), as product.c reads them.
COLUMNS, STEP, WIDTH, FOUR = 64, 64, 16, 4
# The largest integer, on both sides of zero.
MOST = 127
# Bytes of a large page.
PAGE = 2 << 20
# Linux's advice MADV_PAGEOUT, which older kernels refuse.
PAGE_OUT = 21


class Library(NamedTuple):
    """The loaded C code, and the number of the fastest kernel of this processor."""

    code: ctypes.CDLL
    best: int


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The library; None where it is not built or switched off. Raises InvalidSetting as `native.library` does."""
    levels = allowed_levels()
    if not levels:
        return None
    try:
        code = ctypes.CDLL(str(LIBRARY))
        code.best_kernel.restype = ctypes.c_int64
        best = min(int(code.best_kernel()), KERNELS[OF_LEVEL[levels[0]]])
    except (OSError, AttributeError):
        return None
    code.multiply_int8.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return Library(code, best)


def packed_shape(columns: int, width: int) -> tuple[int, ...]:
    """The shape of packed weights of `columns` times `width` numbers."""
    return -(-columns // COLUMNS), -(-width // STEP), COLUMNS // WIDTH, STEP // FOUR, WIDTH, FOUR


def pack(weights: Tensor) -> Tensor:
    """Integers (N, K) int8 in the order in which the C code reads them, filled up with zeros."""
    columns, width = weights.shape
    blocks, steps, *_ = packed_shape(columns, width)
    full = torch.nn.functional.pad(weights, (0, steps * STEP - width, 0, blocks * COLUMNS - columns))
    parts = full.view(blocks, COLUMNS // WIDTH, WIDTH, steps, STEP // FOUR, FOUR)
    return parts.permute(0, 3, 1, 4, 2, 5).contiguous()


def unpack(packed: Tensor, width: int) -> Tensor:
    """The integers of packed weights, (N filled up, K)."""
    blocks, steps, *_ = packed.shape
    return packed.permute(0, 2, 4, 1, 3, 5).reshape(blocks * COLUMNS, steps * STEP)[:, :width]


def rows_of(packed: Tensor, index: Tensor, width: int) -> Tensor:
    """The integers of some rows, (..., K) for an index (...)."""
    steps = packed.shape[1]
    found = packed[index // COLUMNS, :, index % COLUMNS // WIDTH, :, index % WIDTH]  # (..., steps, STEP / FOUR, FOUR)
    return found.reshape(*index.shape, steps * STEP)[..., :width]


def room(size: int, device: torch.device = CPU) -> Tensor:
    """Memory for packed weights, (size,) int8.

    On Linux it lies in large pages where the system has them, with which a processor reads a stream of weights up to
    twice as fast. Memory that was used before would stay in small pages, so this memory is new.
    """
    if device != CPU or not size or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.int8, device=device)
    area = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A kernel without large pages refuses the advice.
    with contextlib.suppress(OSError):
        area.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(area, dtype=torch.int8)
    first = -whole.data_ptr() % PAGE
    return whole[first : first + size]


def page_out(tensor: Tensor) -> None:
    """Give the memory of a tensor that is used rarely back to the system, where it can; its numbers stay.

    Of a file that is mapped into memory, the pages would otherwise count as used until another program needs room.
    """
    advise = _madvise()
    if advise is None or tensor.device != CPU or not tensor.is_contiguous():
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), PAGE_OUT)


@lru_cache(maxsize=1)
def _madvise() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).madvise if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None


def multiplies(x: Tensor) -> bool:
    """Whether `product` covers these rows: on the CPU, without gradients, in float32 or bfloat16."""
    return (
        x.device == CPU
        and x.dtype in NUMBERS
        and not (torch.is_grad_enabled() and x.requires_grad)
        and library() is not None
    )


def product(
    x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None, *, kernel: int | None = None
) -> Tensor:
    """x W^T + bias, (..., N) in the dtype of x, where x is rounded to 8 bits in groups of 128 numbers of a row.

    A row's result depends neither on the other rows nor on the number of threads.

    x: (..., K) float32 or bfloat16.
    packed: the integers of W, from `pack`.
    scales: (N,) float32, what an integer of a column stands for.
    bias: (N,) float32.
    kernel: one of KERNELS that this processor has; None for the best.
    Raises RuntimeError without the library, and ValueError for tensors that do not fit together.
    """
    found = library()
    if found is None:
        raise RuntimeError("the C library is not there; ask products.library() first")
    width, columns = x.shape[-1], scales.shape[0]
    fits = packed.shape == packed_shape(columns, width) and packed.dtype == torch.int8 and packed.is_contiguous()
    for one in (scales, *([] if bias is None else [bias])):
        fits = fits and one.dtype == torch.float32 and one.shape == (columns,) and one.is_contiguous()
    if not fits or x.dtype not in NUMBERS or any(one.device != CPU for one in (x, packed, scales)):
        raise ValueError(f"weights {tuple(packed.shape)} of {columns} columns do not fit rows {tuple(x.shape)}")
    rows = x.reshape(-1, width)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    out = torch.empty(*x.shape[:-1], columns, dtype=x.dtype, device=CPU)
    if not out.numel():
        return out
    number = NUMBERS[x.dtype]
    numbers = array("q", (rows.data_ptr(), rows.stride(0) * rows.element_size(), number))
    numbers.extend((packed.data_ptr(), scales.data_ptr(), 0 if bias is None else bias.data_ptr()))
    if kernel is None:
        # A single row leaves most of a tile empty, and AVX-512 streams weights faster. Both give the same bits.
        kernel = min(found.best, KERNELS["vnni"]) if rows.shape[0] == 1 else found.best
    numbers.extend((out.data_ptr(), number, rows.shape[0], width, columns, kernel))
    if found.code.multiply_int8(numbers.buffer_info()[0], _team(), torch.get_num_threads()):
        raise MemoryError("there is too little memory left for a product; close other programs")
    return out
