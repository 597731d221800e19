"""Perplexity of a text, read with the memory, and with the local window alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from ..errors import EmptySource

if TYPE_CHECKING:
    from ..model import InfiniModel


def perplexity(
    model: InfiniModel,
    text: str,
    *,
    limit: int | None = None,
    on_segment: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Perplexity per token over all segments but the first, which has no past in either case.

    In every segment the first token is context only, so both figures are over the same tokens. memory: each segment
    read after all earlier ones went into the memory. window: each segment read for itself. limit: tokens of the text
    to use. The text needs more tokens than a segment.
    """
    tokens = model.encoder.encode(text)[:limit]
    length = model.segment_length
    if len(tokens) < length + 2:
        raise EmptySource(f"the text has {len(tokens)} tokens; perplexity needs more than one segment ({length})")
    segments = list(model.segmenter.split(tokens))
    cache = model.new_cache()
    losses = {"memory": 0.0, "window": 0.0}
    scored = 0
    for index, ids in enumerate(segments):
        segment = torch.tensor([ids])
        counts = index > 0 and len(ids) > 1
        with torch.no_grad():
            past = model.read_segment(segment, cache, logits=counts)
            alone = model.read_segment(segment, model.new_cache(), logits=True) if counts else None
        targets = segment[0, 1:].to(model.device)
        for name, logits in (("memory", past), ("window", alone)):
            if logits is not None:
                losses[name] += F.cross_entropy(logits[0, :-1].float(), targets, reduction="sum").item()
        scored += len(targets) if counts else 0
        if on_segment is not None:
            on_segment(index + 1, len(segments))
    if not scored:
        raise EmptySource("no segment after the first has two tokens; perplexity needs longer segments or more text")
    return {
        "tokens": len(tokens),
        "scored_tokens": scored,
        "rule": model.rule.name,
        "rule_settings": model.rule.settings(),
        "segment_length": length,
        **{name: math.exp(loss / scored) for name, loss in losses.items()},
    }
