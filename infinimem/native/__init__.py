"""A small C library for what torch does in many steps over much memory: merging and packing places.

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
from typing import NamedTuple

import torch
from torch import Tensor

LIBRARY = Path(__file__).with_name("libinfinimem.so")
RUNS = 3
# The C code's numbers for how keys and values lie in memory.
KINDS = {torch.int8: 0, torch.float32: 1, torch.bfloat16: 2}
NAMES = ("keys", "values", "keys_scale", "values_scale", "counts")
NOTHING = [0] * (4 * len(NAMES) + 3)


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
    """A state as the C code's `run`: where its tensors are, their strides in bytes, and what they are."""
    numbers = []
    for name in NAMES:
        tensor = state.get(name)
        if tensor is None:
            numbers += [0, 0, 0, 0]
            continue
        if tensor.ndim == 4 and tensor.stride(3) != 1:
            tensor = tensor.contiguous()
        kept.append(tensor)
        size = tensor.element_size()
        numbers += [tensor.data_ptr(), *(size * stride for stride in tensor.stride()[:3])]
    return [*numbers, state["counts"].shape[2], KINDS[state["keys"].dtype], KINDS[state["values"].dtype]]
