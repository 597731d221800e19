"""Rankers: which passages fit a query.

- `Ranker` is the interface: built once from the passages, asked often
- `LexicalRanker` is BM25 (the library bm25s) over stemmed words, the passage's title included
- `LearnedRanker` ranks by term weights: the model weighs the words of passages during ingestion, and those of a query
  when it is asked
- `HybridRanker` adds the two scores
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import DamagedMemoryFile
from ..text.passages import Passage
from ..text.sentences import around, sentences
from ..text.term_weights import from_bytes
from ..text.words import WORD, rarity, spans, stems

# Chinese and Japanese have no spaces between words, so a run of their characters is searched by pairs of neighbours.
UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]{2,}")
# The least rarity of a word in the coverage. The words that a short text is about are in all of its passages, so they
# are not rare at all, and yet questions ask for them.
COMMON = 1.0
# The share of its passage's score that a sentence gets beside its own score.
OF_THE_PASSAGE = 0.3
# Two words are related where the cosine of their vectors is above NOT_RELATED; from THE_SAME on, they count as the same
# word.
NOT_RELATED = 0.2
THE_SAME = 0.5
# The most related words that count beside one word of a query.
RELATED = 32
# A related word counts only this share where the document also has the query's own word.
BESIDE_IT = 0.5

# From words to the indexes of the words that have a vector, (F,), and these vectors, (F, E); see word_vectors.py.
Vectors = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
# The number of a query's words that are compared at a time with all words of the document.
CHUNK = 64


class Ranker(Protocol):
    """Orders passages by how well they fit a query."""

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """At most k pairs (index of the passage, score), best first; passages that do not fit at all are left out."""


class LexicalRanker:
    """BM25 over stemmed words.

    stem: False leaves the words as they are.
    """

    def __init__(self, passages: Sequence[Passage], stem: bool = True) -> None:
        import bm25s
        import Stemmer

        # bm25s sets its own logger to DEBUG, so every index would show in programs whose root logger has a handler.
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

        texts = [UNSPACED.sub(_pairs, text) for text in texts]
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


def _pairs(run: re.Match[str]) -> str:
    # The spaces at both ends keep the pairs apart from letters and digits beside the run.
    return f" {' '.join(map(''.join, pairwise(run[0])))} "


class LearnedRanker:
    """Ranks passages by term weights.

    A passage's score is a sum over the query's words: the word's weight in the query, times its rarity (idf), times its
    highest weight in the passage. Words are compared by their stems. A word that is related to a query's word can
    count in its place, in proportion to their relation, and never as rarer than the query's word.

    passages: the passages to rank.
    weights: term weights of each passage (text/term_weights.py).
    weigh: gives the weights of a query's words.
    vectors: gives vectors of words (word_vectors.py); None where related words do not count.
    Raises DamagedMemoryFile where a passage does not have one weight a word.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        weights: Sequence[bytes],
        weigh: Callable[[str], Sequence[float]],
        vectors: Vectors | None = None,
    ) -> None:
        self._weigh = weigh
        self._size = len(passages)
        self._vocabulary: dict[str, int] = {}
        self._passages = passages
        self._given = weights
        rows: list[tuple[int, int, float]] = []
        spelled: dict[str, str] = {}
        for index, (passage, given) in enumerate(zip(passages, weights, strict=True)):
            words = stems(passage.text)
            if len(words) != len(given):
                raise DamagedMemoryFile(
                    f"a passage of {len(words)} words has {len(given)} term weights; ingest the document again"
                )
            spelled.update(zip((word.lower() for word in WORD.findall(passage.text)), words, strict=True))
            for stem, weight in _heaviest(words, from_bytes(given)).items():
                rows.append((self._vocabulary.setdefault(stem, len(self._vocabulary)), index, weight))
        rows.sort()
        kinds, places, columns = (np.array(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
        self._places, self._weights = np.asarray(places, np.int64), np.asarray(columns, np.float32)
        counts = np.bincount(np.asarray(kinds, np.int64), minlength=len(self._vocabulary))
        self._starts = np.concatenate(([0], counts.cumsum()))
        self._rarity = rarity(self._size, counts)
        self._stems = list(self._vocabulary)
        self._vectors = vectors
        if vectors is not None:
            places, found = vectors(list(spelled))
            kinds = np.array([self._vocabulary[stem] for stem in spelled.values()], np.int64)[places]
            self._meant, self._meanings = _of_stems(kinds, found)
        # Calls about one query come one after the other, and weighing its words is most of the work.
        self._last: tuple[str, _Wanted] | None = None

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """See `Ranker`."""
        return best(self.scores(query), k)

    def scores(self, query: str) -> np.ndarray:
        """Every passage's score, (P,) float32."""
        return self._look(query).scores

    def coverage(self, query: str) -> float:
        """The best passage's score, divided by the score of a passage that has all words of the query with weight 1.

        The coverage is at least 0. Related words do not count here, and every word has a rarity of at least COMMON.
        """
        return self._look(query).coverage

    def sentences(self, query: str, ranked: Sequence[tuple[int, float]]) -> list[Sentence]:
        """The sentences of some passages, the best first.

        ranked: pairs (index of the passage, score).

        A sentence is scored as a passage is, and gets the share OF_THE_PASSAGE of its passage's score in addition.
        """
        wanted, found = self._look(query).words, []
        for index, score in ranked:
            text = self._passages[index].text
            words, weights = stems(text), from_bytes(self._given[index])
            starts, borders = [start for start, _ in spans(text)], sentences(text)
            for number, (start, end) in enumerate(borders):
                part = slice(bisect_left(starts, start), bisect_left(starts, end))
                heaviest = _heaviest(words[part], weights[part])
                fits = sum(_fits(worth, heaviest) for worth in wanted) + OF_THE_PASSAGE * score
                found.append(Sentence(index, (start, end), around(borders, number), fits))
        return sorted(found, key=lambda one: -one.score)

    def _look(self, query: str) -> _Wanted:
        # `_last` is read only once, because another thread may replace it meanwhile.
        last = self._last
        if last is not None and last[0] == query:
            return last[1]
        scores, covered = np.zeros((2, self._size), np.float32)
        words, highest = [], 0.0
        # A word that stands in the query twice counts as one word with the sum of both weights.
        asked: dict[tuple[str, str], float] = {}
        for word, stem, weight in zip(WORD.findall(query), stems(query), self._weigh(query), strict=True):
            if weight > 0:
                asked[word.lower(), stem] = asked.get((word.lower(), stem), 0.0) + weight
        alike = self._related([word for word, _ in asked])
        for row, ((_, stem), weight) in enumerate(asked.items()):
            own = self._vocabulary.get(stem)
            rare = float(rarity(self._size, 0) if own is None else self._rarity[own])
            worth = {
                kind: weight * (share if own is None else share * BESIDE_IT) * min(float(self._rarity[kind]), rare)
                for kind, share in alike.get(row, [])
            }
            highest += weight * max(rare, COMMON)
            if own is not None:
                worth[own] = weight * rare
                part = slice(self._starts[own], self._starts[own + 1])
                covered[self._places[part]] += weight * max(rare, COMMON) * self._weights[part]
            fits = np.zeros_like(scores)
            for kind, value in worth.items():
                part = slice(self._starts[kind], self._starts[kind + 1])
                places = self._places[part]
                fits[places] = np.maximum(fits[places], value * self._weights[part])
            scores += fits
            words.append({self._stems[kind]: value for kind, value in worth.items()})
        wanted = _Wanted(words, scores, float(covered.max(initial=0)) / highest if highest else 0.0)
        self._last = query, wanted
        return wanted

    def _related(self, words: Sequence[str]) -> dict[int, list[tuple[int, float]]]:
        """For each word of a query, by its index, pairs (index of a related stem in `_stems`, strength from 0 to 1)."""
        found: dict[int, list[tuple[int, float]]] = {}
        if self._vectors is None:
            return found
        places, vectors = self._vectors(words)
        for start in range(0, len(places), CHUNK):
            cosines = vectors[start : start + CHUNK] @ self._meanings.T  # (CHUNK, V)
            for place, row in zip(places[start : start + CHUNK], cosines, strict=True):
                near = np.nonzero(row > NOT_RELATED)[0]
                near = near[np.argsort(-row[near], kind="stable")[:RELATED]]
                shares = ((row[near] - NOT_RELATED) / (THE_SAME - NOT_RELATED)).clip(0, 1)
                found[int(place)] = list(zip(self._meant[near].tolist(), shares.tolist(), strict=True))
        return found


def _of_stems(kinds: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stems that have words with vectors, (M,), and the direction of the mean of each stem's vectors, (M, E).

    kinds: (F,), the stem of each word.
    vectors: (F, E), the vector of each word.
    """
    meant, rows = np.unique(kinds, return_inverse=True)
    sums = np.zeros((len(meant), vectors.shape[1]), np.float32)
    np.add.at(sums, rows, vectors)
    return meant, sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-12)


class Sentence(NamedTuple):
    """A sentence of a passage.

    passage: index of the passage.
    span: (start, end) of the sentence in the passage's text, in characters.
    around: (start, end) of the sentence together with its neighbours.
    score: how well the sentence fits the query.
    """

    passage: int
    span: tuple[int, int]
    around: tuple[int, int]
    score: float


class _Wanted(NamedTuple):
    """A query and how well it fits.

    words: for each word of the query, the stems that count and the worth of each stem.
    scores: of all passages, (P,) float32.
    coverage: see `LearnedRanker.coverage`.
    """

    words: list[dict[str, float]]
    scores: np.ndarray
    coverage: float


def _fits(worth: dict[str, float], heaviest: dict[str, float]) -> float:
    """The score of one word of a query among stems with weights; 0 where none of its stems is there."""
    return max((worth[stem] * heaviest[stem] for stem in worth.keys() & heaviest.keys()), default=0.0)


def _heaviest(words: Iterable[str], weights: Iterable[float]) -> dict[str, float]:
    """Each word once, with its highest weight."""
    found: dict[str, float] = {}
    for word, weight in zip(words, weights, strict=True):
        found[word] = max(found.get(word, 0.0), float(weight))
    return found


class HybridRanker:
    """Adds the share `share` of BM25's score to the score by term weights."""

    def __init__(self, learned: LearnedRanker, lexical: LexicalRanker, share: float) -> None:
        self._learned = learned
        self._lexical = lexical
        self._share = share

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """See `Ranker`."""
        return best(self._learned.scores(query) + self._share * self._lexical.scores(query), k)


def best(scores: np.ndarray, k: int) -> list[tuple[int, float]]:
    """At most k pairs (index, score) with scores above 0, best first; equal scores in the order of their indexes."""
    order = np.argsort(-scores, kind="stable")[:k]
    return [(int(index), float(scores[index])) for index in order if scores[index] > 0]


def distinct(passages: Sequence[Passage], ranked: Sequence[tuple[int, float]], k: int) -> list[tuple[int, float]]:
    """The first k pairs (index, score) whose passage does not repeat the text of a passage before it."""
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
