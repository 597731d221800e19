"""A small C library for what torch does in many steps over much memory: attention, rotation, merging.

- optional: it is built at installation where there is a C compiler (build.py); without it, and in every case that it
  does not cover, the torch code runs, which is the reference
- it has kernels for several kinds of processors, written once (common.h): float32 for AVX2, AVX-512 and NEON, bfloat16
  for AVX-512 BF16 and AMX. For each dtype the best kernels that this processor can run are used
- `INFINIMEM_NATIVE` in the environment names the best level that may be used (`amx`, `avx512`, `avx2`, `neon`), or
  `none`, which switches the library off
- it works in torch's own threads, because a second pool of threads would compete with them
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidSetting
from .sources import library_of

if TYPE_CHECKING:
    from ..rules.state import Part

LIBRARY = library_of(Path(__file__).parent)
RUNS = 3
# The C code's numbers for the dtypes of keys and values (`kind` in common.h).
KINDS = {torch.int8: 0, torch.float32: 1, torch.bfloat16: 2}
NAMES = ("keys", "values", "keys_scale", "values_scale", "counts")
NOTHING = [0] * (4 * len(NAMES) + 3)
PARTS = 3
# From the best on; a processor that runs the kernels of a level runs those of all later levels for its architecture.
LEVELS = ("amx", "avx512", "avx2", "neon")
# Tensors for the C code are made on the CPU, whatever torch's default device is.
CPU = torch.device("cpu")
NO_PART = [0] * (4 * 5 + 1)
# With fewer queries, laying out the keys and values takes longer than the C code saves.
FEWEST_QUERIES = 16


class Job(NamedTuple):
    """The work of making one state from up to three runs of places.

    runs: states of keys (B, G, M, D), values (B, G, M, Dv), counts (B, G, M) and, for int8, scales (B, G, M); packed as
        int8 or not at all, without empty places.
    capacity: the largest number of places of the result.
    order: (N,) int64, all places in the order in which even places meet odd ones (`slots.shuffled`).
    """

    runs: Sequence[dict[str, Tensor]]
    capacity: int
    order: Tensor


class Kernels(NamedTuple):
    """The functions of the library that multiply numbers of one dtype; `name` has the dtype and the level."""

    name: str
    attend: Any
    pool: Any
    rotate: Any
    norm: Any
    gate: Any


@lru_cache(maxsize=1)
def library() -> dict[torch.dtype, Kernels] | None:
    """The best kernels for each dtype, float32 among them; None where none are built or can run.

    Raises InvalidSetting where INFINIMEM_NATIVE has an unknown value.
    """
    levels = allowed_levels()
    if not levels:
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    kernels: dict[torch.dtype, Kernels] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for level in levels:
            name = f"{str(dtype).removeprefix('torch.')}_{level}"
            if dtype not in kernels and hasattr(found, f"runs_{name}") and found[f"runs_{name}"]():
                kernels[dtype] = _kernels(found, name)
    return kernels or None


def allowed_levels() -> tuple[str, ...]:
    """The levels that INFINIMEM_NATIVE allows, the best first; none where it switches the library off.

    Raises InvalidSetting where it has an unknown value.
    """
    asked = os.environ.get("INFINIMEM_NATIVE") or "1"
    # Older releases knew only 0, for none.
    if asked in ("none", "0"):
        return ()
    if asked == "1":
        return LEVELS
    if asked not in LEVELS:
        raise InvalidSetting(
            f"INFINIMEM_NATIVE is '{asked}'; set it to one of {', '.join(LEVELS)}, none, or leave it out"
        )
    return LEVELS[LEVELS.index(asked) :]


def _kernels(found: ctypes.CDLL, name: str) -> Kernels:
    functions = [found[f"{function}_{name}"] for function in Kernels._fields[1:]]
    attend, pool, rotate, norm, gate = functions
    attend.argtypes = [ctypes.c_void_p, ctypes.c_double, ctypes.c_void_p, ctypes.c_int64]
    pool.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p, ctypes.c_int64]
    rotate.argtypes = gate.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    norm.argtypes = [ctypes.c_void_p, ctypes.c_double, ctypes.c_double, ctypes.c_void_p, ctypes.c_int64]
    rotate.restype = norm.restype = gate.restype = None
    return Kernels(name, *functions)


def knows(dtype: torch.dtype) -> bool:
    """Whether the library is there, and multiplies numbers of this dtype."""
    found = library()
    return found is not None and dtype in found


def _of(dtype: torch.dtype) -> Kernels:
    """The kernels for a dtype. Raises RuntimeError without them."""
    found = library()
    if found is None or dtype not in found:
        raise RuntimeError(f"the C library is not there for {dtype}; ask native.knows({dtype}) first")
    return found[dtype]


@lru_cache(maxsize=1)
def _team() -> ctypes.c_void_p | None:
    """The function that gives work to torch's own threads; None where torch has an OpenMP without that function."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except AttributeError:
        return None


def pool(jobs: Sequence[Job], balance: float, search: torch.dtype) -> list[dict[str, Tensor]]:
    """Merge the places of each job by Ward's criterion down to its capacity, and pack them as int8.

    The results are those of `slots.ward_merge` and `packing.pack`, up to rounding, and equal for any number of threads.

    balance: weight of value distance against key distance.
    search: precision of the search for partners, bfloat16 or float32.
    Raises RuntimeError where the library does not know `search`, and ValueError for tensors that do not fit together.
    """
    found = _of(search)
    numbers, results = array("q"), []
    kept: list[Tensor] = []  # keeps the tensors alive that the numbers point to, until the work is done
    for job in jobs:
        sizes = [run["counts"].shape[2] for run in job.runs]
        batch, heads = job.runs[0]["counts"].shape[:2]
        if len(job.runs) > RUNS or job.capacity < 1:
            raise ValueError(f"a job needs at most {RUNS} runs, and a capacity of at least 1")
        if job.order.shape != (sum(sizes),) or job.order.dtype != torch.int64:
            raise ValueError(f"the order should be one int64 number for each of the {sum(sizes)} places")
        widths = [job.runs[0][name].shape[-1] for name in ("keys", "values")]
        shape = batch, heads, min(sum(sizes), job.capacity)
        keys, values = (torch.empty(*shape, width, dtype=torch.int8, device=CPU) for width in widths)
        scales_and_counts = {name: torch.empty(shape, dtype=torch.float32, device=CPU) for name in NAMES[2:]}
        result = {"keys": keys, "values": values, **scales_and_counts}
        for run in job.runs:
            numbers.extend(_run(run, (batch, heads), widths, kept))
        numbers.extend(NOTHING * (RUNS - len(job.runs)))
        numbers.extend(_run(result, (batch, heads), widths, kept))
        numbers.extend((batch, heads, job.capacity, *widths, job.order.data_ptr()))
        results.append(result)
    if found.pool(numbers.buffer_info()[0], len(jobs), balance, _team(), torch.get_num_threads()):
        raise MemoryError("there is too little memory left to end a segment; close other programs")
    return results


def _run(state: dict[str, Tensor], shape: Sequence[int], widths: Sequence[int], kept: list[Tensor]) -> list[int]:
    """A state as the C code's `run`: the pointers, strides and kinds of its tensors.

    shape: (B, G), of all states of a job.
    widths: (D, Dv), of all states of a job.
    kept: the tensors that the pointers point to are added to this list.
    Raises ValueError where the tensors have other shapes or dtypes.
    """
    places = (*shape, state["counts"].shape[2])
    for name, width in zip(("keys", "values"), widths, strict=True):
        vectors, scale = state[name], state.get(f"{name}_scale")
        if vectors.shape != (*places, width) or vectors.dtype not in KINDS:
            raise ValueError(f"{name} are {tuple(vectors.shape)} {vectors.dtype}, but should be {(*places, width)}")
        if vectors.dtype == torch.int8 and (scale is None or scale.shape != places or scale.dtype != torch.float32):
            raise ValueError(f"{name} of 8 bits need a float32 scale each, {places}")
    if state["counts"].shape != places or state["counts"].dtype != torch.float32:
        raise ValueError(f"counts are {tuple(state['counts'].shape)}, but should be {places} in float32")
    numbers = [number for name in NAMES for number in _tensor(state.get(name), kept)]
    return [*numbers, state["counts"].shape[2], KINDS[state["keys"].dtype], KINDS[state["values"].dtype]]


def _tensor(tensor: Tensor | None, kept: list[Tensor]) -> list[int]:
    """A tensor (B, G, N) or (B, G, N, width) as the C code's `tensor`: its pointer, and its strides in bytes.

    Raises ValueError where the tensor is not on the CPU.
    """
    if tensor is None:
        return [0, 0, 0, 0]
    if tensor.device != CPU:
        raise ValueError(f"the C library reads tensors on the CPU, not on {tensor.device}")
    if tensor.ndim == 4 and tensor.stride(3) != 1:
        tensor = tensor.contiguous()
    kept.append(tensor)
    size = tensor.element_size()
    return [tensor.data_ptr(), *(size * stride for stride in tensor.stride()[:3])]


def attends(parts: Sequence[Part], softcap: float | None, causal: bool) -> bool:
    """Whether `attention` covers this case: many queries; each bias depends on keys or on queries alone."""
    queries = parts[0].queries
    return (
        knows(queries.dtype)
        and queries.device.type == "cpu"
        and queries.shape[2] >= FEWEST_QUERIES
        and (queries.dtype == torch.float32 or queries.shape[3] % 2 == 0)
        and softcap is None
        and len(parts) <= PARTS
        and not (torch.is_grad_enabled() and any(x.requires_grad for part in parts for x in (*part[:3], *part.biases)))
        and all(x.dtype == queries.dtype for part in parts for x in part[:3])
        and not (causal and parts[-1].keys.shape[2] != queries.shape[2])
        and all(bias.shape[2] == 1 or bias.shape[3] == 1 for part in parts for bias in part.biases)
        and any(part.keys.shape[2] for part in parts)
    )


def attention(parts: Sequence[Part], scaling: float, causal: bool, hidden: float) -> Tensor:
    """The result of `softmax.joined_attention`, values (B, H, T, Dv), for cases that `attends` accepts.

    hidden: the lowest bias; lower ones, such as -inf, are raised to it.
    Raises RuntimeError where the library does not know the dtype, and ValueError for tensors that do not fit together.
    """
    found = _of(parts[0].queries.dtype)
    batch, heads, tokens, width = parts[0].queries.shape
    groups, value_width = parts[0].keys.shape[1], parts[0].values.shape[3]
    # In memory this is (B, T, H, Dv), as the output of the layer wants it.
    result = parts[0].queries.new_empty(batch, tokens, heads, value_width).transpose(1, 2)
    numbers = array("q")
    kept: list[Tensor] = []
    for part in parts:
        size = part.keys.shape[2]
        fitting = (batch, heads, tokens, width), (batch, groups, size, width), (batch, groups, size, value_width)
        if tuple(x.shape for x in part[:3]) != fitting or (causal and part is parts[-1] and size != tokens):
            raise ValueError(f"queries, keys and values should be {fitting}, and as many keys as queries if causal")
        of_keys: Tensor | None = None
        of_queries: Tensor | None = None
        for bias in part.biases:
            shown = bias.float().clamp_min(hidden)
            if bias.shape[2] == 1:
                of_keys = shown if of_keys is None else of_keys + shown
            else:
                of_queries = shown if of_queries is None else of_queries + shown
        if of_keys is not None:
            of_keys = of_keys.squeeze(2).expand(batch, groups, size)
        if of_queries is not None:
            # Heads that share keys share the bias.
            of_queries = of_queries.squeeze(3).repeat_interleave(heads // of_queries.shape[1], dim=1)
            of_queries = of_queries.expand(batch, heads, tokens)
        for tensor in (part.queries, part.keys, part.values, of_keys, of_queries):
            numbers.extend(_tensor(tensor, kept))
        numbers.append(size)
    numbers.extend(NO_PART * (PARTS - len(parts)))
    numbers.extend(_tensor(result, kept))
    numbers.extend((batch, heads, groups, tokens, width, value_width, causal))
    if found.attend(numbers.buffer_info()[0], scaling, _team(), torch.get_num_threads()):
        raise MemoryError("there is too little memory left for attention; close other programs")
    return result


def rotates(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether `rotate` covers this case: many vectors on the CPU, without gradients."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and cos.dtype == sin.dtype == torch.float32
        and x.shape[2] >= FEWEST_QUERIES
        and x.stride(3) == cos.stride(2) == sin.stride(2) == 1
        and cos.shape[2] % 2 == 0
        and cos.shape[2] <= x.shape[3]
        and not (torch.is_grad_enabled() and any(one.requires_grad for one in (x, cos, sin)))
        and knows(torch.float32)
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """The result of `rotary.rotate` for cases that `rotates` accepts: x (B, H, T, D), rotated.

    dtype: of the result, float32 or bfloat16.
    Raises RuntimeError without the library, and ValueError for tables that do not fit `x`.
    """
    if cos.shape != sin.shape or cos.shape[:2] not in ((1, x.shape[2]), (x.shape[0], x.shape[2])):
        raise ValueError(f"tables {tuple(cos.shape)} and {tuple(sin.shape)} do not fit vectors {tuple(x.shape)}")
    return _turned(x, None, (cos, sin), dtype)


def unpacks(x: Tensor, scale: Tensor) -> bool:
    """Whether `unpack` covers this case: many vectors on the CPU, without gradients."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.int8
        and scale.dtype == torch.float32
        and x.shape[2] >= FEWEST_QUERIES
        and not (torch.is_grad_enabled() and scale.requires_grad)
        and knows(torch.float32)
    )


def unpack(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The result of `packing.unpacked` for cases that `unpacks` accepts: x (B, G, M, D) times scale (B, G, M).

    dtype: of the result, float32 or bfloat16.
    Raises RuntimeError without the library, and ValueError for scales that do not fit `x`.
    """
    if scale.shape != x.shape[:3]:
        raise ValueError(f"scales {tuple(scale.shape)} do not fit vectors {tuple(x.shape)}")
    return _turned(x, scale, None, dtype)


def _turned(x: Tensor, scale: Tensor | None, tables: tuple[Tensor, Tensor] | None, dtype: torch.dtype) -> Tensor:
    found = _of(torch.float32)
    result = torch.empty(x.shape, dtype=dtype, device=CPU)
    kept: list[Tensor] = []
    spread = (None, None) if tables is None else (one.expand(x.shape[0], -1, -1).unsqueeze(1) for one in tables)
    numbers = array("q", [number for tensor in (x, result, scale, *spread) for number in _tensor(tensor, kept)])
    numbers.extend((*x.shape, 0 if tables is None else tables[0].shape[2], KINDS[x.dtype], KINDS[dtype]))
    found.rotate(numbers.buffer_info()[0], _team(), torch.get_num_threads())
    return result
