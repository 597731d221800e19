"""One measurement: `python -m infinimem.bench.child TASK.json RESULT.json`.

The result is an object with the measured values, or with `skipped` (why a package is missing) or `error` (the name of
one of infinimem's errors, and its message).
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import InfinimemError, MiniLmMissing, SystemMissing
from .task import Task, peak_rss_mb, resident_mb

# What is measured, and the module whose `measure` does it. A module imports no more than its system needs.
MODULES = {
    "machine": "machine",
    "forward": "forward",
    "infinimem": "document_memory",
    "transformers": "full_attention",
    "langchain-minilm": "langchain_minilm",
    "llama.cpp": "llama_cpp",
}


def measure(task: Task) -> dict[str, Any]:
    """The values that the task asks for, and the memory of this process: the peak, and what it has in the end."""
    module = import_module(f".{MODULES[task.what]}", __package__)
    try:
        found: dict[str, Any] = module.measure(task)
    except (SystemMissing, MiniLmMissing) as error:
        return {"skipped": str(error)}
    except InfinimemError as error:
        return {"error": [type(error).__name__, str(error)]}
    return found | {"peak_rss_mb": peak_rss_mb(), "resident_mb": resident_mb()}


if __name__ == "__main__":
    given, wanted = map(Path, sys.argv[1:])
    wanted.write_text(json.dumps(measure(Task(**json.loads(given.read_text(encoding="utf-8"))))), encoding="utf-8")
