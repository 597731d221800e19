"""Passages that stand for a whole document, for summaries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..text.passages import Passage
from .ranking import LexicalRanker

# Where a document is summarized in parts, each part has at least this many passages.
STRETCH = 16


def central_passages(passages: Sequence[Passage], k: int) -> list[Passage]:
    """k passages that stand for the whole document, in reading order; all passages where there are no more than k.

    The document is cut into k equal stretches. From each stretch comes the passage that fits the document's most
    frequent words best.
    """
    if len(passages) <= k:
        return list(passages)
    ranker = LexicalRanker(passages)
    scores = ranker.centrality()
    bounds = [len(passages) * i // k for i in range(k + 1)]
    return [passages[max(range(start, end), key=scores.__getitem__)] for start, end in pairwise(bounds)]


def central_parts(passages: Sequence[Passage], k: int, most: int) -> list[list[Passage]]:
    """Central passages of each part of a document that is cut into equal parts; a short document is a single part.

    k: most passages of a part.
    most: most parts; several parts have at least `STRETCH` passages each.
    """
    count = max(1, min(most, len(passages) // STRETCH))
    bounds = [len(passages) * i // count for i in range(count + 1)]
    return [central_passages(passages[start:end], k) for start, end in pairwise(bounds)]
