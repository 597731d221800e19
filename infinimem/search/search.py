"""Searching the passages of one or several memories, as one.

- lexical: BM25, without any model
- learned: by the term weights that the model gave the words of the passages during ingestion
- hybrid: both; the default, and equal to lexical where passages have no term weights
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..errors import InvalidSetting, NoPassages, NoTermWeights
from ..text.passages import Passage
from ..text.words import checked_question
from .ranking import HybridRanker, LearnedRanker, LexicalRanker, Ranker, distinct

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel

# Passages from which on the rarity of words says something.
ENOUGH = 4
# Sentences in candidate prompts, each alone and with its neighbours.
SENTENCES = 3
# Log of a candidate's weight for a score of 1. A candidate that weighs less than the heaviest by LIGHT is left out.
WEIGHT = 0.3
LIGHT = 4.5
RANKINGS = ("hybrid", "learned", "lexical")


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
        """The passages as they are now, and a function that gives their term weights, None where they have none."""


M = TypeVar("M", bound=Searchable)


class Search(Generic[M]):
    """The passages of memories, ranked as one. Raises NoPassages where a memory that has read something has none.

    Models are loaded with the first search that needs them.
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
        self._least = 0.0  # coverage of a question that has an answer
        self._lock = threading.Lock()

    @property
    def is_current(self) -> bool:
        """Whether the memories have the passages that they had."""
        # All of them, not their number: appended text can also lengthen the last one.
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

        Errors: those of `rank`, and EmptyQuestion.
        """
        ranked = self.rank(checked_question(query), k, rank_by)
        return [(self.passages[index].scored(score), self.memory_of(index)) for index, score in ranked]

    def rank(self, query: str, k: int, rank_by: str = "hybrid") -> list[tuple[int, float]]:
        """At most k pairs (index of the passage, score), best first, without passages that do not fit at all; of
        passages with the same words the best. Raises NoTermWeights, InvalidSetting."""
        if k < 1:
            raise InvalidSetting(f"k is {k}; ask for at least one passage")
        if rank_by not in RANKINGS:
            raise InvalidSetting(f"there is no ranking {rank_by!r}; choose one of {', '.join(RANKINGS)}")
        if rank_by != "lexical":
            self.prepare()
        if rank_by == "learned" and rank_by not in self._rankers:
            raise NoTermWeights(
                "these passages have no term weights: the model that read them has no term head, or another one; "
                "ingest the documents again, or rank with rank_by='lexical'"
            )
        ranker = self._rankers.get(rank_by, self._lexical)
        return distinct(self.passages, ranker.rank(query, len(self.passages)), k)

    def has_answer(self, query: str) -> bool:
        """False where the passages have so little of the query that they hardly answer it.

        True without term weights, and where the passages are so few that the model itself decides.
        """
        if len(self.passages) < ENOUGH:
            return True
        self.prepare()
        ranker = self._rankers.get("learned")
        return not isinstance(ranker, LearnedRanker) or ranker.coverage(query) >= self._least

    def scored(self, ranked: Sequence[tuple[int, float]]) -> list[Passage]:
        """The passages of pairs (index, score)."""
        return [self.passages[index].scored(score) for index, score in ranked]

    def within(self, query: str, spans: Sequence[tuple[int, int]], k: int) -> list[tuple[int, float]]:
        """Like `rank`, of the passages that stand in or reach into spans of characters; all of them may be ranked, and
        those that do not fit at all come last. Raises InvalidSetting where there are none."""
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

        The parts are the best passage, and the SENTENCES sentences of any passage that fit best, each with its
        neighbours and by itself; without term weights, every passage. Parts of next to no weight are left out.

        ranked: pairs (index of the passage, score), best first.
        """
        self.prepare()
        ranker = self._rankers.get("learned")
        found = [(self.passages[index], score) for index, score in ranked]
        if ranked and isinstance(ranker, LearnedRanker):
            sentences = ranker.sentences(query, ranked)[:SENTENCES]
            found = found[:1]
            found += [(self.passages[one.passage].part(*one.around), one.score) for one in sentences]
            found += [(self.passages[one.passage].part(*one.span), one.score) for one in sentences]
        texts: dict[str, tuple[Passage, float]] = {}
        for shown, score in found:
            before = texts.get(shown.text)
            texts[shown.text] = (shown, score) if before is None else (before[0], max(before[1], score))
        least = max((score for _, score in found), default=0.0) - LIGHT / WEIGHT
        return [(shown, WEIGHT * score) for shown, score in texts.values() if score >= least]

    def prepare(self) -> None:
        """Index the term weights, if there are any; ranking does so when it is first needed."""
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
            # Torch is not needed before this.
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
