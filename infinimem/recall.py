"""Recall: which passages answer a question.

- `Ranker` is the interface: built once from the passages, asked often
- `LexicalRanker` is BM25 (the library bm25s) over stemmed words, the passage's title included
- `AddressRanker` weighs words as the model does: those of passages while it reads them, those of a query when it is
  asked
- `HybridRanker` adds the two
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from .addresses import from_bytes, rarity, spans, stems
from .errors import DamagedMemoryFile
from .passages import Passage
from .readers.prose import around, sentences

# Passages of a part of a document that is summarized by itself.
STRETCH = 16
# What a word that many passages have is rare at least, where coverage is concerned: what all of a short text is about
# is in all of its passages, and asked for all the same.
COMMON = 1.0
# Of its passage's score that a sentence has beside its own.
OF_THE_PASSAGE = 0.3


class Ranker(Protocol):
    """Orders passages by how well they fit a query."""

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """At most k pairs (index of the passage, score), best first; passages that do not fit at all are left out."""


class LexicalRanker:
    """BM25 over stemmed words; stem: False leaves them as they are."""

    def __init__(self, passages: Sequence[Passage], stem: bool = True) -> None:
        import bm25s
        import Stemmer

        # It logs every index at a level of its own, which shows wherever a program has a handler at the root.
        logging.getLogger("bm25s").setLevel(logging.WARNING)
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
        return best(self.scores(query), k)

    def scores(self, query: str) -> np.ndarray:
        """Every passage's score, (P,)."""
        words = [word for word in self._words([query])[0] if self._index and word in self._index.vocab_dict]
        return np.asarray(self._index.get_scores(words)) if words else np.zeros(self._size, np.float32)

    def centrality(self, words: int = 40) -> list[float]:
        """Each passage's score for the most frequent words of all passages together."""
        if self._index is None:
            return [0.0] * self._size
        frequent = [word for word, _ in Counter(self._all_words).most_common(words)]
        return [float(score) for score in self._index.get_scores(frequent)]


class AddressRanker:
    """Ranks by addresses: the sum, over a query's words, of their weight in the query, their rarity (idf), and their
    highest weight in the passage. Words are compared by their stems.

    addresses: of the passages, see `addresses`. weigh: the weights of a query's words. Raises DamagedMemoryFile where
    an address is not that of its passage.
    """

    def __init__(
        self, passages: Sequence[Passage], addresses: Sequence[bytes], weigh: Callable[[str], Sequence[float]]
    ) -> None:
        self._weigh = weigh
        self._size = len(passages)
        self._vocabulary: dict[str, int] = {}
        self._passages = passages
        self._addresses = addresses
        rows = []
        for index, (passage, address) in enumerate(zip(passages, addresses, strict=True)):
            words = stems(passage.text)
            if len(words) != len(address):
                raise DamagedMemoryFile(
                    f"a passage of {len(words)} words has an address for {len(address)}; read the document again"
                )
            for stem, weight in _heaviest(words, from_bytes(address)).items():
                rows.append((self._vocabulary.setdefault(stem, len(self._vocabulary)), index, weight))
        rows.sort()
        kinds, places, weights = (np.array(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
        self._places, self._weights = np.asarray(places, np.int64), np.asarray(weights, np.float32)
        counts = np.bincount(np.asarray(kinds, np.int64), minlength=len(self._vocabulary))
        self._starts = np.concatenate(([0], counts.cumsum()))
        # All that is asked about a query is asked one after the other, and weighing it is most of the work.
        self._last: tuple[str, _Wanted] | None = None

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """See `Ranker`."""
        return best(self.scores(query), k)

    def scores(self, query: str) -> np.ndarray:
        """Every passage's score, (P,) float32."""
        return self._look(query).scores

    def coverage(self, query: str) -> float:
        """The best passage's score over what it would be if it had all words of the query with weight 1; 0 and up.

        No word's rarity is less than COMMON here.
        """
        return self._look(query).coverage

    def sentences(self, query: str, ranked: Sequence[tuple[int, float]]) -> list[Sentence]:
        """The sentences of some passages, pairs (index, score), those that fit a query best first.

        A sentence's score is that of a passage, and a share of its passage's.
        """
        wanted, found = self._look(query).words, []
        for index, score in ranked:
            text = self._passages[index].text
            words, weights = stems(text), from_bytes(self._addresses[index])
            starts, borders = [start for start, _ in spans(text)], sentences(text)
            for number, (start, end) in enumerate(borders):
                part = slice(bisect_left(starts, start), bisect_left(starts, end))
                heaviest = _heaviest(words[part], weights[part])
                fits = sum(worth * heaviest.get(stem, 0.0) for stem, worth in wanted) + OF_THE_PASSAGE * score
                found.append(Sentence(index, (start, end), around(borders, number), fits))
        return sorted(found, key=lambda one: -one.score)

    def _look(self, query: str) -> _Wanted:
        # Read once: another thread may ask something else meanwhile.
        last = self._last
        if last is not None and last[0] == query:
            return last[1]
        scores, covered = np.zeros((2, self._size), np.float32)
        words, highest = [], 0.0
        for stem, weight in zip(stems(query), self._weigh(query), strict=True):
            word = self._vocabulary.get(stem)
            part = slice(0, 0) if word is None else slice(self._starts[word], self._starts[word + 1])
            rare = float(rarity(self._size, part.stop - part.start))
            words.append((stem, weight * rare))
            highest += weight * max(rare, COMMON)
            scores[self._places[part]] += weight * rare * self._weights[part]
            covered[self._places[part]] += weight * max(rare, COMMON) * self._weights[part]
        wanted = _Wanted(words, scores, float(covered.max(initial=0)) / highest if highest else 0.0)
        self._last = query, wanted
        return wanted


class Sentence(NamedTuple):
    """A sentence of a passage (its index): where it stands in the passage's text, alone and with its neighbours."""

    passage: int
    span: tuple[int, int]
    around: tuple[int, int]
    score: float


class _Wanted(NamedTuple):
    """A query: its words with their weight times rarity, the scores of all passages, (P,) float32, and its coverage."""

    words: list[tuple[str, float]]
    scores: np.ndarray
    coverage: float


def _heaviest(words: Iterable[str], weights: Iterable[float]) -> dict[str, float]:
    """Each word once, with its highest weight."""
    found: dict[str, float] = {}
    for word, weight in zip(words, weights, strict=True):
        found[word] = max(found.get(word, 0.0), float(weight))
    return found


class HybridRanker:
    """The score by addresses, and `share` of BM25's."""

    def __init__(self, memory: AddressRanker, lexical: LexicalRanker, share: float) -> None:
        self._memory = memory
        self._lexical = lexical
        self._share = share

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """See `Ranker`."""
        return best(self._memory.scores(query) + self._share * self._lexical.scores(query), k)


def best(scores: np.ndarray, k: int) -> list[tuple[int, float]]:
    """At most k pairs (index, score) with scores above 0, best first, equal ones in order."""
    order = np.argsort(-scores, kind="stable")[:k]
    return [(int(index), float(scores[index])) for index in order if scores[index] > 0]


def distinct(passages: Sequence[Passage], ranked: Sequence[tuple[int, float]], k: int) -> list[tuple[int, float]]:
    """The first k whose words none before them has."""
    seen: set[str] = set()
    found = []
    for index, score in ranked:
        words = " ".join(passages[index].text.casefold().split())
        if words not in seen:
            seen.add(words)
            found.append((index, score))
        if len(found) == k:
            break
    return found


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
