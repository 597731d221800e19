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

# Chinese and Japanese have no spaces: what stands between other characters is searched by pairs.
UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]{2,}")
# What a word that many passages have is rare at least, where coverage is concerned: what all of a short text is about
# is in all of its passages, and asked for all the same.
COMMON = 1.0
# Of its passage's score that a sentence has beside its own.
OF_THE_PASSAGE = 0.3
# Cosines of words' vectors from which on they are related, and as good as the same; words that are counted beside one
# of a query, and their share where the document has that one too.
NOT_RELATED = 0.2
THE_SAME = 0.5
RELATED = 32
BESIDE_IT = 0.5

# Of words: the places of those that have a vector, (F,), and the vectors, (F, E); see word_vectors.py.
Vectors = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
# Words of a query whose cosines with all of a document's are computed at a time.
CHUNK = 64


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
    # Apart from letters and digits that stand beside it.
    return f" {' '.join(map(''.join, pairwise(run[0])))} "


class LearnedRanker:
    """Ranks by term weights: a passage's score is the sum, over the query's words, of the word's weight in the query
    times its rarity (idf) times its highest weight in the passage. Words are compared by their stems.

    Words related to a query's word count too: in proportion to their relation, and as no rarer than the query's word.

    weights: term weights of each passage (text/term_weights.py).
    weigh: gives the weights of a query's words.
    vectors: gives vectors of words (word_vectors.py); without it only the words themselves count.
    Raises DamagedMemoryFile where a passage has another number of words than weights.
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
                    f"a passage of {len(words)} words has term weights for {len(given)}; read the document again"
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
            words, weights = stems(text), from_bytes(self._given[index])
            starts, borders = [start for start, _ in spans(text)], sentences(text)
            for number, (start, end) in enumerate(borders):
                part = slice(bisect_left(starts, start), bisect_left(starts, end))
                heaviest = _heaviest(words[part], weights[part])
                fits = sum(_fits(worth, heaviest) for worth in wanted) + OF_THE_PASSAGE * score
                found.append(Sentence(index, (start, end), around(borders, number), fits))
        return sorted(found, key=lambda one: -one.score)

    def _look(self, query: str) -> _Wanted:
        # Read once: another thread may ask something else meanwhile.
        last = self._last
        if last is not None and last[0] == query:
            return last[1]
        scores, covered = np.zeros((2, self._size), np.float32)
        words, highest = [], 0.0
        # Twice the same word is one that weighs as much as both.
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
        """For each word of a query, by its place, the document's words that are related to it, and how much, 0 to 1."""
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
    """Stems that have words with vectors, (M,), and the direction of the mean of those, (M, E).

    kinds: (F,) the stem of each word; vectors: (F, E).
    """
    meant, rows = np.unique(kinds, return_inverse=True)
    sums = np.zeros((len(meant), vectors.shape[1]), np.float32)
    np.add.at(sums, rows, vectors)
    return meant, sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-12)


class Sentence(NamedTuple):
    """A sentence of a passage (its index): where it stands in the passage's text, alone and with its neighbours."""

    passage: int
    span: tuple[int, int]
    around: tuple[int, int]
    score: float


class _Wanted(NamedTuple):
    """A query: for each of its words the stems that count and what each is worth, the scores of all passages, (P,)
    float32, and its coverage, which is of the words themselves."""

    words: list[dict[str, float]]
    scores: np.ndarray
    coverage: float


def _fits(worth: dict[str, float], heaviest: dict[str, float]) -> float:
    """What one word of a query finds among weighed stems."""
    return max((worth[stem] * heaviest[stem] for stem in worth.keys() & heaviest.keys()), default=0.0)


def _heaviest(words: Iterable[str], weights: Iterable[float]) -> dict[str, float]:
    """Each word once, with its highest weight."""
    found: dict[str, float] = {}
    for word, weight in zip(words, weights, strict=True):
        found[word] = max(found.get(word, 0.0), float(weight))
    return found


class HybridRanker:
    """The score by term weights, and `share` of BM25's score."""

    def __init__(self, learned: LearnedRanker, lexical: LexicalRanker, share: float) -> None:
        self._learned = learned
        self._lexical = lexical
        self._share = share

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """See `Ranker`."""
        return best(self._learned.scores(query) + self._share * self._lexical.scores(query), k)


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
