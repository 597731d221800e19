"""infinimem: `DocumentMemory` as users have it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

from ..chat import Reply
from ..document_memory import DocumentMemory
from ..errors import InvalidSetting
from ..generation import NO_REPEAT
from ..memory_file import read_memory_file
from ..model import InfiniModel
from ..reading import Reading, Record
from ..tokens import TextEncoder, split_blocks
from .plain import matrix_parameters
from .task import DECODED, WARM_UP, Clock, Task, clock_of, first_and_rest, peak_gpu_mb, timed_loads


def measure(task: Task) -> dict[str, Any]:
    """Reads, saves, loads, and asks in both modes."""
    device = task.device or "cpu"
    clock = clock_of(device)
    started = clock()
    model = InfiniModel.from_pretrained(task.model, adapter=task.adapter, device=device)
    model_load = clock() - started
    text = text_of_tokens(task.read_text(), task.tokens, model.encoder)
    warm = DocumentMemory.from_text(text_of_tokens(text, WARM_UP, model.encoder), model=model)
    for mode in ("recall", "memory"):
        warm.ask(task.question, mode=mode, max_new_tokens=2)
    del warm

    started = clock()
    memory = DocumentMemory.from_text(text, name="text", model=model)
    # The unfinished last segment is read with whatever needs it first.
    tokens = int(memory.info()["tokens"])
    seconds = clock() - started
    path = task.state_path(".safetensors")
    file_bytes = memory.save(path)
    del memory

    loaded, load_ms = timed_loads(lambda: DocumentMemory.load(path, model=model), clock)
    started = clock()
    loaded.open(ready=True)
    ready_ms = (clock() - started) * 1e3
    recall = _ask(loaded, task.question, "recall", model, path, clock)
    alone = _ask(loaded, task.question, "memory", model, path, clock)
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "file_bytes": file_bytes,
        "load_ms": load_ms,
        "ready_ms": ready_ms,
        **recall,
        **{f"memory_mode_{name}": value for name, value in alone.items()},
        "model_load_ms": model_load * 1e3,
        "matrix_parameters": matrix_parameters(model.model),
        **peak_gpu_mb(device),
    }


def _ask(
    memory: DocumentMemory, question: str, mode: str, model: InfiniModel, path: Path, clock: Clock
) -> dict[str, float]:
    """What a question costs from a memory that is ready."""
    started = clock()
    reply: Reply = memory.reply([{"role": "user", "content": question}], mode=mode)
    next(iter(reply), None)
    first = clock() - started
    reply.close()
    if not reply.prompt_tokens:
        raise InvalidSetting(f"the text has too little of the question {question!r} to be asked it; give --question")
    view = None
    if not reply.passages:
        file = read_memory_file(path)
        view = Reading.from_file(model, file, Record.from_file(file)).complete()
    # A real answer may end with its second token, which would leave nothing to time.
    steps = model.generate(
        [reply.prompt.tokens], view, max_new_tokens=DECODED + 1, stop_at_eos=False, no_repeat=NO_REPEAT
    )
    return {"first_token_ms": first * 1e3, "decode_tokens_per_second": first_and_rest(steps, clock)[1]}


def text_of_tokens(text: str, tokens: int, encoder: TextEncoder) -> str:
    """The start of the text with so many tokens, or a few more; from the start again where there are not enough."""
    blocks, rest = split_blocks(text)
    parts: Iterable[str] = cycle([*blocks, f"{rest}\n\n"])
    taken, count = [], 0
    for part in parts:
        if count >= tokens:
            break
        taken.append(part)
        count += len(encoder.encode_blocks([part]))
    return "".join(taken)
