"""Recall: which passages answer a question.

- `Ranker` is the interface: built once from the passages, asked often
- `LexicalRanker` is BM25 (the library bm25s) over stemmed words, the passage's title included
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

from .passages import Passage


class Ranker(Protocol):
    """Orders passages by how well they fit a query."""

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """At most k pairs (index of the passage, score), best first; passages that do not fit at all are left out."""


class LexicalRanker:
    """BM25 over stemmed words; stem: False leaves them as they are."""

    def __init__(self, passages: Sequence[Passage], stem: bool = True) -> None:
        import bm25s
        import Stemmer

        self._stemmer = Stemmer.Stemmer("english").stemWords if stem else None
        self._size = len(passages)
        texts = [f"{p.title}\n{p.text}" if p.title else p.text for p in passages]
        words = self._words(texts)
        self._index: Any = None
        self._all_words = [word for row in words for word in row]
        if self._all_words:
            self._index = bm25s.BM25()
            self._index.index(words, show_progress=False)

    def _words(self, texts: list[str]) -> list[list[str]]:
        import bm25s

        split = bm25s.tokenize(texts, stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False)
        return [list(words) for words in split]

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """See `Ranker`; scores are BM25's."""
        words = [word for word in self._words([query])[0] if self._index and word in self._index.vocab_dict]
        if not words:
            return []
        found, scores = self._index.retrieve([words], k=min(k, self._size), show_progress=False)
        return [(int(i), float(s)) for i, s in zip(found[0], scores[0], strict=True) if s > 0]

    def centrality(self, words: int = 40) -> list[float]:
        """Each passage's score for the most frequent words of all passages together."""
        if self._index is None:
            return [0.0] * self._size
        frequent = [word for word, _ in Counter(self._all_words).most_common(words)]
        return [float(score) for score in self._index.get_scores(frequent)]


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
