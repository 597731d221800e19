"""A small C library for what torch does in many steps over much memory: attention, rotation, merging.

- optional: built at installation where there is a C compiler (build.py), used where the processor has AVX-512 BF16;
  everywhere else, and for every case it does not know, the torch code runs, which is the reference
- `INFINIMEM_NATIVE=0` in the environment switches it off
- its threads are those that torch has already: a second pool would compete with them
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..attention.local import Part

LIBRARY = Path(__file__).with_name("libinfinimem.so")
RUNS = 3
# The C code's numbers for how keys and values lie in memory.
KINDS = {torch.int8: 0, torch.float32: 1, torch.bfloat16: 2}
NAMES = ("keys", "values", "keys_scale", "values_scale", "counts")
NOTHING = [0] * (4 * len(NAMES) + 3)
PARTS = 3
NO_PART = [0] * (4 * 5 + 1)
# Fewer queries are not worth the laying out of keys and values.
FEWEST_QUERIES = 16


class Job(NamedTuple):
    """What is to become one state: up to three runs of places, none of them empty, packed as int8 or not at all.

    runs: states of keys (B, G, M, D), values (B, G, M, Dv), counts (B, G, M) and, for int8, scales (B, G, M).
    capacity: most places of the result. order: all places, int64 (N,), in the order in which even ones meet odd ones.
    """

    runs: Sequence[dict[str, Tensor]]
    capacity: int
    order: Tensor


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The library, or None where it is not built or this processor cannot run it."""
    if os.environ.get("INFINIMEM_NATIVE") == "0":
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
        usable = bool(found.usable())
    except (OSError, AttributeError):
        return None
    if not usable:
        return None
    found.pool.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p, ctypes.c_int64]
    found.rotate.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    found.rotate.restype = None
    found.attend.argtypes = [ctypes.c_void_p, ctypes.c_double, ctypes.c_void_p, ctypes.c_int64]
    return found


@lru_cache(maxsize=1)
def _team() -> ctypes.c_void_p | None:
    """How work is given to torch's own threads; None where torch's OpenMP is not one that this process shows."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except AttributeError:
        return None


def pool(jobs: Sequence[Job], balance: float) -> list[dict[str, Tensor]]:
    """Merge the places of each job by Ward's criterion down to its capacity, and pack them as int8.

    balance: weight of value distance against key distance. As `slots.ward_merge` and `packing.pack` do, but for
    rounding; equal for any number of threads. The library must be there.
    """
    found = library()
    if found is None:
        raise RuntimeError("the C library is not there; ask native.library() first")
    numbers, results = array("q"), []
    kept: list[Tensor] = []  # whatever the numbers point to, until the work is done
    for job in jobs:
        counts = job.runs[0]["counts"]
        sizes = [run["counts"].shape[2] for run in job.runs]
        batch, heads = counts.shape[:2]
        widths = [job.runs[0][name].shape[-1] for name in ("keys", "values")]
        shape = batch, heads, min(sum(sizes), job.capacity)
        keys, values = (torch.empty(*shape, width, dtype=torch.int8) for width in widths)
        result = {"keys": keys, "values": values, **{name: torch.empty(shape) for name in NAMES[2:]}}
        for run in job.runs:
            numbers.extend(_run(run, kept))
        numbers.extend(NOTHING * (RUNS - len(job.runs)))
        numbers.extend(_run(result, kept))
        numbers.extend((batch, heads, job.capacity, *widths, job.order.data_ptr()))
        results.append(result)
    if found.pool(numbers.buffer_info()[0], len(jobs), balance, _team(), torch.get_num_threads()):
        raise MemoryError("there is no memory left to write a segment in")
    return results


def _run(state: dict[str, Tensor], kept: list[Tensor]) -> list[int]:
    """A state as the C code's `run`: where its tensors are, their strides, and what they are."""
    numbers = [number for name in NAMES for number in _tensor(state.get(name), kept)]
    return [*numbers, state["counts"].shape[2], KINDS[state["keys"].dtype], KINDS[state["values"].dtype]]


def _tensor(tensor: Tensor | None, kept: list[Tensor]) -> list[int]:
    """A tensor (B, G, N) or (B, G, N, width) as the C code's `tensor`: address, and strides in bytes."""
    if tensor is None:
        return [0, 0, 0, 0]
    if tensor.ndim == 4 and tensor.stride(3) != 1:
        tensor = tensor.contiguous()
    kept.append(tensor)
    size = tensor.element_size()
    return [tensor.data_ptr(), *(size * stride for stride in tensor.stride()[:3])]


def attends(parts: Sequence[Part], softcap: float | None) -> bool:
    """Whether `attention` does this case: many queries in bfloat16, and biases of keys or queries alone."""
    queries = parts[0].queries
    return (
        queries.dtype == torch.bfloat16
        and queries.device.type == "cpu"
        and queries.shape[2] >= FEWEST_QUERIES
        and queries.shape[3] % 2 == 0
        and softcap is None
        and len(parts) <= PARTS
        and not (torch.is_grad_enabled() and any(x.requires_grad for part in parts for x in (*part[:3], *part.biases)))
        and all(x.dtype == torch.bfloat16 for part in parts for x in part[:3])
        and all(bias.shape[2] == 1 or bias.shape[3] == 1 for part in parts for bias in part.biases)
        and any(part.keys.shape[2] for part in parts)
        and library() is not None
    )


def attention(parts: Sequence[Part], scaling: float, causal: bool, hidden: float) -> Tensor:
    """As `local.joined_attention`, for what `attends` takes: values (B, H, T, Dv). No bias counts below `hidden`."""
    found = library()
    if found is None:
        raise RuntimeError("the C library is not there; ask native.library() first")
    batch, heads, tokens, width = parts[0].queries.shape
    groups, value_width = parts[0].keys.shape[1], parts[0].values.shape[3]
    # In memory as the layer's output wants it.
    result = parts[0].queries.new_empty(batch, tokens, heads, value_width).transpose(1, 2)
    numbers = array("q")
    kept: list[Tensor] = []
    for part in parts:
        of_keys: Tensor | None = None
        of_queries: Tensor | None = None
        for bias in part.biases:
            shown = bias.float().clamp_min(hidden)
            if bias.shape[2] == 1:
                of_keys = shown if of_keys is None else of_keys + shown
            else:
                of_queries = shown if of_queries is None else of_queries + shown
        if of_keys is not None:
            of_keys = of_keys.squeeze(2).expand(batch, groups, part.keys.shape[2])
        if of_queries is not None:
            # One for all heads that share keys.
            of_queries = of_queries.squeeze(3).repeat_interleave(heads // of_queries.shape[1], dim=1)
            of_queries = of_queries.expand(batch, heads, tokens)
        for tensor in (part.queries, part.keys, part.values, of_keys, of_queries):
            numbers.extend(_tensor(tensor, kept))
        numbers.append(part.keys.shape[2])
    numbers.extend(NO_PART * (PARTS - len(parts)))
    numbers.extend(_tensor(result, kept))
    numbers.extend((batch, heads, groups, tokens, width, value_width, causal))
    if found.attend(numbers.buffer_info()[0], scaling, _team(), torch.get_num_threads()):
        raise MemoryError("there is no memory left for attention")
    return result


def rotates(x: Tensor, cos: Tensor) -> bool:
    """Whether `rotate` does this case: many vectors on the CPU, without gradients."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and cos.dtype == torch.float32
        and x.shape[2] >= FEWEST_QUERIES
        and x.stride(3) == cos.stride(2) == 1
        and not (torch.is_grad_enabled() and (x.requires_grad or cos.requires_grad))
        and library() is not None
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """As `rotary.rotate`, for what `rotates` takes: x (B, H, T, D) turned, in `dtype`, which is float32 or bfloat16."""
    found = library()
    if found is None:
        raise RuntimeError("the C library is not there; ask native.library() first")
    result = torch.empty(x.shape, dtype=dtype)
    kept: list[Tensor] = []
    tables = (table.expand(x.shape[0], -1, -1).unsqueeze(1) for table in (cos, sin))
    numbers = array("q", [number for tensor in (x, result, *tables) for number in _tensor(tensor, kept)])
    numbers.extend((*x.shape, cos.shape[2], KINDS[x.dtype], KINDS[dtype]))
    found.rotate(numbers.buffer_info()[0], _team(), torch.get_num_threads())
    return result
