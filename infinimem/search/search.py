"""Searching the passages of one or several memories together.

- lexical: BM25, without any model
- learned: by the term weights that the model gave the words of the passages during ingestion
- hybrid: both; the default, and equal to lexical where passages have no term weights
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..errors import InvalidSetting, NoPassages, NoTermWeights
from ..text.passages import Passage
from ..text.sentences import CELLS
from ..text.words import checked_question, stems
from .ranking import HybridRanker, LearnedRanker, LexicalRanker, Ranker, distinct
from .rows import by_best_rows

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel

# The number of passages from which on the rarity of words says something.
ENOUGH = 4
# Sentences for candidate prompts; each stands alone in one prompt and between its neighbours in another.
SENTENCES = 3
# The log weight of a candidate prompt is WEIGHT times its score. A candidate prompt whose log weight is more than LIGHT
# below the heaviest is left out.
WEIGHT = 0.3
LIGHT = 4.5
RANKINGS = ("hybrid", "learned", "lexical")
# A page that a question names, by its number or by the number printed on it.
_PLACE = re.compile(r"\b(page|slide|sheet)\s+(?:no\.?\s*)?(\d{1,6}|[ivxlc]{1,8})\b", re.IGNORECASE)


class Searchable(Protocol):
    """A memory whose passages can be searched."""

    @property
    def keeps_passages(self) -> bool:
        """Whether the text is kept."""

    @property
    def passages(self) -> list[Passage]:
        """All passages, in reading order."""

    @property
    def model(self) -> InfiniModel:
        """The model, loaded on first use."""

    def searchable(self) -> tuple[list[Passage], Callable[[], list[bytes] | None]]:
        """The passages as they are now, and a function that gives their term weights (None without term weights)."""


M = TypeVar("M", bound=Searchable)


class Search(Generic[M]):
    """The passages of several memories, ranked together.

    The first search that needs the models loads them. Raises NoPassages where a memory does not keep passages.
    """

    def __init__(self, memories: Sequence[M]) -> None:
        self._memories = memories
        self._parts, self._weights = zip(*(memory.searchable() for memory in memories), strict=True)
        if any(not memory.keeps_passages for memory in memories):
            raise NoPassages(
                "this memory was made without passages; ingest again with passages, or ask with answer_from='memory'"
            )
        self.passages: list[Passage] = [passage for part in self._parts for passage in part]
        self._lexical = LexicalRanker(self.passages)
        self._rankers: dict[str, Ranker] = {"lexical": self._lexical}
        self._least = 0.0  # the least coverage of a question that has an answer
        self._lock = threading.Lock()

    @property
    def is_current(self) -> bool:
        """Whether the memories still have the passages of this search."""
        # Their number is not enough, because appended text can also lengthen the last passage.
        return list(self._parts) == [memory.passages for memory in self._memories]

    def memory_of(self, index: int) -> M:
        """The memory that a passage belongs to."""
        for memory, part in zip(self._memories, self._parts, strict=True):
            if index < len(part):
                return memory
            index -= len(part)
        raise IndexError(f"there are {len(self.passages)} passages")

    def find(self, query: str, k: int = 4, rank_by: str = "hybrid") -> list[tuple[Passage, M]]:
        """The k passages that fit a query best, with their scores, and the memory of each; fewer if fewer fit at all.

        Raises EmptyQuestion, and the errors of `rank`.
        """
        ranked = self.rank(checked_question(query), k, rank_by)
        return [(self.passages[index].scored(score), self.memory_of(index)) for index, score in ranked]

    def rank(self, query: str, k: int, rank_by: str = "hybrid") -> list[tuple[int, float]]:
        """At most k pairs (index of the passage, score), best first.

        rank_by: "hybrid", "learned" or "lexical".

        Passages that do not fit at all are left out; of passages with the same text, only the best stays. Raises
        NoTermWeights, InvalidSetting.
        """
        if k < 1:
            raise InvalidSetting(f"k is {k}; ask for at least one passage")
        if rank_by not in RANKINGS:
            raise InvalidSetting(f"there is no ranking {rank_by!r}; choose one of {', '.join(RANKINGS)}")
        if rank_by != "lexical":
            self.prepare()
        if rank_by == "learned" and rank_by not in self._rankers:
            raise NoTermWeights(
                "these passages have no term weights of this model: they were ingested without a term head, or with "
                "another term head; ingest the documents again, or rank with rank_by='lexical'"
            )
        ranker = self._rankers.get(rank_by, self._lexical)
        ranked = by_best_rows(self.passages, query, ranker.rank(query, len(self.passages)))
        if named := self._named(query):
            ranked = _first(named, ranked)
        return distinct(self.passages, ranked, k)

    def _named(self, query: str) -> list[int]:
        """Indexes of the passages on the page that a query names; where it is printed on a page, those of that page."""
        match = _PLACE.search(query)
        if match is None:
            return []
        unit, number = match[1].lower(), match[2].lower()
        printed = [i for i, p in enumerate(self.passages) if p.unit == unit and (p.label or "").lower() == number]
        return printed or [i for i, p in enumerate(self.passages) if p.unit == unit and str(p.page) == number]

    def has_answer(self, query: str) -> bool:
        """False where the passages cover so little of the query that they hardly answer it.

        True without term weights, and for fewer than ENOUGH passages, where the model itself decides; and where the
        query names a page that is there.
        """
        if len(self.passages) < ENOUGH or self._named(query):
            return True
        self.prepare()
        ranker = self._rankers.get("learned")
        return not isinstance(ranker, LearnedRanker) or ranker.coverage(query) >= self._least

    def scored(self, ranked: Sequence[tuple[int, float]]) -> list[Passage]:
        """The passages of pairs (index, score), with their scores."""
        return [self.passages[index].scored(score) for index, score in ranked]

    def within(self, query: str, spans: Sequence[tuple[int, int]], k: int) -> list[tuple[int, float]]:
        """Like `rank`, for the passages that stand in spans of characters or reach into them.

        spans: (start, end) in the document's text, in characters.

        Passages that do not fit the query at all come last, with the score 0. Raises InvalidSetting where no passage
        stands in the spans.
        """
        if k < 1:
            raise InvalidSetting(f"k is {k}; ask for at least one passage")
        self.prepare()
        scores = dict(self._rankers["hybrid"].rank(query, len(self.passages)))
        inside = [
            i for i, p in enumerate(self.passages) if any(p.start < end and start < p.end for start, end in spans)
        ]
        if not inside:
            raise InvalidSetting(f"no passage stands at the characters {list(spans)}; give spans of the document")
        return sorted(((i, scores.get(i, 0.0)) for i in inside), key=lambda pair: -pair[1])[:k]

    def candidates(self, query: str, ranked: Sequence[tuple[int, float]]) -> list[tuple[Passage, float]]:
        """The parts of some passages that candidate prompts show, and the log of each part's weight.

        ranked: pairs (index of the passage, score), best first.

        The parts are the best passage, and the SENTENCES best sentences of all these passages, each once between its
        neighbours and once alone; of rows of a table, the row that fits best is alone with the names of the columns.
        Without term weights, every passage is a part. Parts of next to no weight are left
        out (see LIGHT).
        """
        self.prepare()
        ranker = self._rankers.get("learned")
        found = [(self.passages[index], score) for index, score in ranked]
        if ranked and isinstance(ranker, LearnedRanker):
            sentences = ranker.sentences(query, ranked)[:SENTENCES]
            found = found[:1]
            found += [(self.passages[one.passage].part(*one.around), one.score) for one in sentences]
            found += [(_best_row(self.passages[one.passage].part(*one.span), query), one.score) for one in sentences]
        texts: dict[str, tuple[Passage, float]] = {}
        for shown, score in found:
            before = texts.get(shown.text)
            texts[shown.text] = (shown, score) if before is None else (before[0], max(before[1], score))
        least = max((score for _, score in found), default=0.0) - LIGHT / WEIGHT
        return [(shown, WEIGHT * score) for shown, score in texts.values() if score >= least]

    def prepare(self) -> None:
        """Index the term weights, if there are any; the first ranking that needs the index calls this itself."""
        with self._lock:
            if "hybrid" in self._rankers:
                return
            self._rankers["hybrid"] = self._lexical
            weights: list[bytes] = []
            for weights_of in self._weights:
                part = weights_of()
                if part is None:
                    return
                weights += part
            # Imported here, because these modules load torch, which lexical search does not need.
            from .query import weigh
            from .word_vectors import WordVectors

            model = self._memories[0].model
            head = model.term_head
            heads = [memory.model.term_head for memory in self._memories]
            if head is None or any(other is None or other.sha256 != head.sha256 for other in heads):
                return
            vectors = WordVectors.of(model)
            ranker = LearnedRanker(self.passages, weights, partial(weigh, model), vectors)
            self._least = head.settings.least
            self._rankers["learned"] = ranker
            self._rankers["hybrid"] = HybridRanker(ranker, self._lexical, head.settings.lexical)


def _first(named: Sequence[int], ranked: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The ranking with these passages first, in its order, then in theirs; no score is less than one after it."""
    scores = dict(ranked)
    top = ranked[0][1] if ranked else 0.0
    ordered = sorted(named, key=lambda index: -scores.get(index, 0.0))
    front = set(named)
    return [(index, top + scores.get(index, 0.0)) for index in ordered] + [one for one in ranked if one[0] not in front]


def _best_row(part: Passage, query: str) -> Passage:
    """Of rows of a table, the first, which may name the columns, and the one with most words of the query."""
    first, *rows = part.text.split("\n")
    if len(rows) < 2 or CELLS not in first:
        return part
    wanted = set(stems(query))
    shared = [len(wanted.intersection(stems(row))) for row in rows]
    best = max(shared)
    return replace(part, text=f"{first}\n{rows[shared.index(best)]}") if shared.count(best) == 1 else part
