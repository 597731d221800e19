"""The time of reading a segment into a full memory, and of the plain forward of the same model on as many tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..model.infini_model import InfiniModel
from ..model.pretrained import load_base
from .task import Task, clock_of, repeated
from .transformers_model import matrix_parameters

# Segments read before the first timed one. From the fourth on, carried tokens and slots have their full number.
SEGMENTS_BEFORE = 4
PAIRS = 4  # timed segments per repeat, each read in both ways


@torch.no_grad()
def measure(task: Task) -> dict[str, Any]:
    """Seconds of every timed segment, in both ways in turn, both without the language-model head."""
    device = task.device or "cpu"
    clock = clock_of(device)
    model = InfiniModel.from_pretrained(task.model, adapter=task.adapter, weights=task.weights, device=device)
    decoder = load_base(task.model, device=device)[0].get_decoder()
    pairs, length = PAIRS * task.samples, model.segment_length
    tokens = repeated(model.encoder.encode(task.read_text()), length * (SEGMENTS_BEFORE + pairs))
    cache = model.new_cache()

    def ours(segment: Sequence[int]) -> None:
        model.read_tokens(segment, cache, None if model.term_head is None else bytearray())

    def plain(segment: Sequence[int]) -> None:
        decoder(input_ids=torch.tensor([[*model.prefix, *segment]], device=device), use_cache=False)

    taken: dict[Callable[[Sequence[int]], None], list[float]] = {ours: [], plain: []}
    for number, start in enumerate(range(0, len(tokens), length)):
        # Each way goes first as often as the other.
        for read in (ours, plain) if number % 2 else (plain, ours):
            started = clock()
            read(tokens[start : start + length])
            if number >= SEGMENTS_BEFORE:
                taken[read].append(clock() - started)
    return {
        "segment_length": length,
        "matrix_parameters": matrix_parameters(model.model),
        "infinimem_seconds": taken[ours],
        "plain_seconds": taken[plain],
    }
