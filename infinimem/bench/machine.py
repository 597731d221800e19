"""The machine: processor, cores, versions, number format, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from ..attention import native
from ..errors import InvalidSetting
from ..model.pretrained import best_dtype
from .task import Task, clock_of

# Edge of the matrices, so large that larger ones would not be faster, and how often they are multiplied.
EDGE = {"cpu": 2048, "cuda": 8192}
PRODUCTS = 10


def measure(task: Task) -> dict[str, Any]:
    """The machine, as plain values. Raises InvalidSetting where the device cannot be used."""
    device = task.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = str(torch.empty(0, device=device).device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidSetting(f"the device '{device}' cannot be used ({reason}); leave --device out") from error
    dtype = best_dtype(device)
    edge, peak = _matrix_products(device, dtype)
    on_gpu = device.startswith("cuda")
    kind = str(dtype).removeprefix("torch.")
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "device": device,
        "dtype": kind,
        "c_library": native.library() is not None,
        "bfloat16_in_hardware": _bfloat16_in_hardware(on_gpu),
        "matmul_flops": peak,
        "matmul": f"{edge} x {edge} x {edge}, {kind}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _matrix_products(device: str, dtype: torch.dtype) -> tuple[int, float]:
    """Edge of the matrices, and floating-point operations per second of the fastest product."""
    edge, clock = EDGE.get(device.partition(":")[0], EDGE["cpu"]), clock_of(device)
    left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    product, best = left @ right, float("inf")
    for _ in range(PRODUCTS):
        started = clock()
        torch.mm(left, right, out=product)
        best = min(best, clock() - started)
    return edge, 2 * edge**3 / best


def _bfloat16_in_hardware(on_gpu: bool) -> bool:
    return bool(torch.cuda.is_bf16_supported(False) if on_gpu else torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _processor() -> str:
    if sys.platform == "darwin":
        named = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(named, capture_output=True, text=True, check=False).stdout.strip() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
