"""Perplexity of texts that are read with the memory, and in other ways that could take its place.

All systems predict the same tokens:

- memory: each segment is read after all earlier segments, with the model's carried tokens and its memory
- window: each segment is read alone
- sliding: plain attention with real positions over the previous segment and the current one; what a user would do
  without a memory
- exact: in place of the memory, all older keys and values are kept as they are, and read at the memory's virtual
  distance; shows what compression loses
- recent: carried tokens alone, as many as fit into the bytes of memory and carried tokens at the end of the text
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attention.cache import InfiniCache
from ..attention.rules.packing import packed_layout
from ..attention.rules.recent import RecentRule
from ..errors import EmptySource, InvalidSetting, check_names
from .continuations import state_bytes
from .intervals import mean

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel

SYSTEMS = ("memory", "window", "sliding", "exact", "recent")
DISTANCE = 512  # virtual distance in the system exact, where the model's own rule has none


def perplexity(
    model: InfiniModel,
    documents: str | Sequence[tuple[str, str]],
    *,
    limit: int | None = None,
    skip: int = 0,
    systems: Sequence[str] = ("memory", "window"),
    on_segment: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Perplexity per token of one text or of several, over all segments but the first of each text.

    The first segment is left out because it has no past in any system. The first token of every segment is context
    only.

    documents: a text, or pairs (title, text). Each text needs more tokens than a segment.
    limit: tokens of each text to use, after `skip`; None for all.
    skip: tokens to leave out at the start of each text.
    systems: names of SYSTEMS, which the top of this module explains.
    on_segment: called after each segment with the numbers of segments read and in all.

    Returns a perplexity per system over all scored tokens, and in `documents` per text. With the systems memory and
    window there are also `mean_change` and `worst_change`: the mean and the highest memory / window - 1 of the texts.
    Raises EmptySource where there is no text or one is too short, and InvalidSetting.
    """
    check_names("system", systems, SYSTEMS)
    if skip < 0 or (limit is not None and limit < 1):
        raise InvalidSetting(f"skip ({skip}) must be at least 0 and limit ({limit}) at least 1")
    chosen = [system for system in SYSTEMS if system in systems]
    if "sliding" in chosen and (most := 2 * model.segment_length + len(model.prefix)) > model.context_length:
        raise InvalidSetting(f"sliding needs a context of {most} tokens, but the model's has {model.context_length}")
    texts = [("text", documents)] if isinstance(documents, str) else documents
    cut = [(title, _segments(model, title, text, skip, limit)) for title, text in texts]
    if not cut:
        raise EmptySource("there are no texts; give at least one")
    total = sum(len(segments) for _, segments in cut) * len(_order(chosen))
    losses = dict.fromkeys(chosen, 0.0)
    rows, scored, done = [], 0, 0
    for title, segments in cut:
        counted = sum(len(segment) - 1 for segment in segments[1:])
        row: dict[str, Any] = {"title": title, "tokens": sum(map(len, segments)), "scored_tokens": counted}
        memory_bytes = 0
        for system in _order(chosen):
            reader = _Reader(model, system, memory_bytes)
            loss = 0.0
            for segment in segments:
                loss += reader.loss(segment)
                done += 1
                if on_segment is not None:
                    on_segment(done, total)
            if system == "memory":
                row["memory_bytes"] = memory_bytes = state_bytes(reader.cache)
            if system in losses:
                row[system] = math.exp(loss / counted)
                losses[system] += loss
        if "recent" in chosen:
            row["recent_tokens"] = recent_tokens(model, memory_bytes)
        scored += counted
        rows.append(row)
    result: dict[str, Any] = {
        "tokens": sum(row["tokens"] for row in rows),
        "scored_tokens": scored,
        **model.describe(),
        **{system: math.exp(loss / scored) for system, loss in losses.items()},
    }
    if {"memory", "window"} <= set(chosen):
        changes = [row["memory"] / row["window"] - 1 for row in rows]
        result |= {"mean_change": mean(changes), "worst_change": max(changes)}
    return {**result, "documents": rows}


def recent_tokens(model: InfiniModel, memory_bytes: int) -> int:
    """The number of carried tokens that fit into `memory_bytes`, counting all heads of all layers.

    At least 2, and at most as many as the model's context has room for beside a segment.
    """
    width = model.attachment.modules[0].head_dim
    heads = int(model.model.config.get_text_config().num_key_value_heads) * model.num_layers
    layout = packed_layout(model.rule.packing, 1, width, width)
    token_bytes = sum(dtype.itemsize * math.prod(size for size in sizes if size) for dtype, sizes in layout.values())
    room = model.context_length - model.segment_length - len(model.prefix)
    return max(2, min(room, memory_bytes // (token_bytes * heads)))


def _order(chosen: Sequence[str]) -> list[str]:
    """The systems to run. `recent` takes its size from `memory`, which therefore also runs where it was not chosen."""
    return list(chosen) if "recent" not in chosen or "memory" in chosen else ["memory", *chosen]


def _segments(model: InfiniModel, title: str, text: str, skip: int, limit: int | None) -> list[list[int]]:
    tokens = model.encoder.encode(text)[skip : None if limit is None else skip + limit]
    length = model.segment_length
    if len(tokens) < length + 2:
        raise EmptySource(
            f"{title!r} has {len(tokens)} tokens to use; perplexity needs more than one segment ({length} tokens)"
        )
    segments = list(model.segmenter.split(tokens))
    if all(len(segment) < 2 for segment in segments[1:]):
        raise EmptySource(
            f"no segment of {title!r} after the first has two tokens; perplexity needs longer segments or more text"
        )
    return segments


class _Reader:
    """Reads one text with one system, segment by segment."""

    def __init__(self, model: InfiniModel, system: str, memory_bytes: int) -> None:
        distance = DISTANCE if model.rule.distance is None else model.rule.distance
        if system == "exact":
            model = model.with_rule(RecentRule(tokens=1 << 40, distance=distance, packing="float32"))
        self.model, self.system = model, system
        self.cache = model.new_cache()
        if system == "recent":
            self.cache = InfiniCache(
                model.rule, model.num_layers, {}, recent_tokens(model, memory_bytes), len(model.prefix)
            )
        self._before: list[int] | None = None

    @torch.no_grad()
    def loss(self, segment: list[int]) -> float:
        """Negative log-likelihood, summed over all tokens but the first, natural logarithm; 0 for the first segment."""
        before, self._before = self._before, segment
        scored = before is not None and len(segment) > 1
        logits: Tensor | None = None
        if self.system == "sliding":
            logits = self._plain(before or [], segment) if scored else None
        elif self.system != "window":
            logits = self.model.read_segment(torch.tensor([segment]), self.cache, logits=scored)
        elif scored:
            logits = self.model.read_segment(torch.tensor([segment]), self.model.new_cache(), logits=True)
        if logits is None:
            return 0.0
        targets = torch.tensor(segment[1:], device=self.model.device)
        return F.cross_entropy(logits[0, :-1].float(), targets, reduction="sum").item()

    def _plain(self, before: list[int], segment: list[int]) -> Tensor:
        """Logits (1, T, V) of `segment` after the segment `before`, without any memory."""
        ids = torch.tensor([[*self.model.prefix, *before, *segment]], device=self.model.device)
        output = self.model.model(input_ids=ids, use_cache=False, logits_to_keep=len(segment))
        return output.logits  # type: ignore[no-any-return]
