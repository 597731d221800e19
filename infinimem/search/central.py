"""Passages that stand for a whole document, for summaries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..text.passages import Passage
from .ranking import LexicalRanker

# Passages of a part of a document that is summarized by itself.
STRETCH = 16


def central_passages(passages: Sequence[Passage], k: int) -> list[Passage]:
    """k passages that stand for the whole, in reading order.

    The document is cut into k equal stretches; from each comes the passage that says most of what the document's
    frequent words are about.
    """
    if len(passages) <= k:
        return list(passages)
    ranker = LexicalRanker(passages)
    scores = ranker.centrality()
    bounds = [len(passages) * i // k for i in range(k + 1)]
    return [passages[max(range(start, end), key=scores.__getitem__)] for start, end in pairwise(bounds)]


def central_parts(passages: Sequence[Passage], k: int, most: int) -> list[list[Passage]]:
    """Central passages, k at most, of each of several equal parts of a long document; of a short one, of all of it.

    most: parts. Each has `STRETCH` passages or more.
    """
    count = max(1, min(most, len(passages) // STRETCH))
    bounds = [len(passages) * i // count for i in range(count + 1)]
    return [central_passages(passages[start:end], k) for start, end in pairwise(bounds)]
