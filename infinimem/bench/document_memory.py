"""infinimem: `DocumentMemory` as its users call it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

from ..answering.conversation import Reply
from ..answering.decoding import NO_REPEAT
from ..answering.plan import ANSWER_FROM
from ..answering.rows import generate
from ..document_memory import DocumentMemory
from ..errors import InvalidSetting
from ..ingest.opening import ingestion_of
from ..ingest.record import Record
from ..model.infini_model import InfiniModel
from ..storage.memory_file import read_memory_file
from ..text.tokens import TextEncoder, split_blocks
from .task import DECODED, WARM_UP, Clock, Task, clock_of, first_and_rest, peak_gpu_mb, timed_loads
from .transformers_model import matrix_parameters


def measure(task: Task) -> dict[str, Any]:
    """Reads, saves, loads, and asks: from passages, and from the memory alone."""
    device = task.device or "cpu"
    clock = clock_of(device)
    started = clock()
    model = InfiniModel.from_pretrained(task.model, adapter=task.adapter, weights=task.weights, device=device)
    model_load = clock() - started
    text = text_of_tokens(task.read_text(), task.tokens, model.encoder)
    warm = DocumentMemory.from_text(text_of_tokens(text, WARM_UP, model.encoder), model=model)
    for answer_from in ANSWER_FROM:
        warm.ask(task.question, answer_from=answer_from, max_new_tokens=2)
    del warm

    started = clock()
    memory = DocumentMemory.from_text(text, name="text", model=model)
    # `info` weighs the words of the last, unfinished segment too, so the time of that segment counts.
    tokens = int(memory.info()["tokens"])
    seconds = clock() - started
    path = task.state_path(".safetensors")
    file_bytes = memory.save(path)
    del memory

    loaded, load_ms = timed_loads(lambda: DocumentMemory.load(path, model=model), clock)
    started = clock()
    loaded.open(ready=True)
    ready_ms = (clock() - started) * 1e3
    found = _ask(loaded, task.question, "passages", model, path, clock)
    alone = _ask(loaded, task.question, "memory", model, path, clock)
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "file_bytes": file_bytes,
        "load_ms": load_ms,
        "ready_ms": ready_ms,
        **found,
        **{f"memory_mode_{name}": value for name, value in alone.items()},
        "model_load_ms": model_load * 1e3,
        "matrix_parameters": matrix_parameters(model.model),
        **peak_gpu_mb(device),
    }


def _ask(
    memory: DocumentMemory, question: str, answer_from: str, model: InfiniModel, path: Path, clock: Clock
) -> dict[str, float]:
    """Time to the first token of an answer, and speed after it, from a memory that is ready."""
    started = clock()
    reply: Reply = memory.reply([{"role": "user", "content": question}], answer_from=answer_from)
    next(iter(reply), None)
    first = clock() - started
    reply.close()
    if not reply.prompt_tokens:
        raise InvalidSetting(f"the text has too few words of the question {question!r}; give another with --question")
    view = None
    if not reply.passages:
        file = read_memory_file(path)
        view = ingestion_of(model, file, Record.from_file(file)).complete()
    # Decoding goes on past the end of the answer: an answer of two tokens would leave nothing to time.
    steps = generate(
        model, reply.plan.prompts[:1], view, max_new_tokens=DECODED + 1, stop_at_eos=False, no_repeat=NO_REPEAT
    )
    return {"first_token_ms": first * 1e3, "decode_tokens_per_second": first_and_rest(steps, clock)[1]}


def text_of_tokens(text: str, tokens: int, encoder: TextEncoder) -> str:
    """The start of the text, `tokens` tokens long or a little longer. A text that is too short is repeated."""
    blocks, rest = split_blocks(text)
    parts: Iterable[str] = cycle([*blocks, f"{rest}\n\n"])
    taken, count = [], 0
    for part in parts:
        if count >= tokens:
            break
        taken.append(part)
        count += len(encoder.encode_blocks([part]))
    return "".join(taken)
