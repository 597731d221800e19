"""Searching the passages of one or several memories, as one.

- lexical: BM25, without any model
- memory: the addresses that the model gave the passages while it read them
- hybrid: both; the default, and the same as lexical where passages have no addresses
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import InvalidSetting, NoAddresses, NoPassages
from .passages import Passage
from .recall import AddressRanker, HybridRanker, LexicalRanker, Ranker, distinct

if TYPE_CHECKING:
    from .document_memory import DocumentMemory

# Passages from which on the rarity of words says something.
ENOUGH = 4
# Sentences that are read, alone and with their neighbours; the log of a reading's weight for a score of 1; what is
# lighter by so much than the heaviest one is not read.
SENTENCES = 3
WEIGHT = 0.3
LIGHT = 4.5
RANKINGS = ("hybrid", "memory", "lexical")


class Search:
    """The passages of memories, ranked as one. Raises NoPassages where a memory that has read something has none.

    Models are loaded with the first search that needs them.
    """

    def __init__(self, memories: Sequence[DocumentMemory]) -> None:
        self._memories = memories
        self._parts, self._addresses = zip(*(memory.searchable() for memory in memories), strict=True)
        if any(not memory.keeps_passages for memory in memories):
            raise NoPassages(
                "this memory was made without passages; ingest again with passages, or ask with mode='memory'"
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

    def memory_of(self, index: int) -> DocumentMemory:
        """The memory that a passage belongs to."""
        for memory, part in zip(self._memories, self._parts, strict=True):
            if index < len(part):
                return memory
            index -= len(part)
        raise IndexError(f"there are {len(self.passages)} passages")

    def rank(self, query: str, k: int, mode: str = "hybrid") -> list[tuple[int, float]]:
        """At most k pairs (index of the passage, score), best first, without passages that do not fit at all; of
        passages with the same words the best. Raises NoAddresses, InvalidSetting."""
        if k < 1:
            raise InvalidSetting(f"k is {k}; ask for at least one passage")
        if mode not in RANKINGS:
            raise InvalidSetting(f"there is no ranking {mode!r}; choose one of {', '.join(RANKINGS)}")
        if mode != "lexical":
            self.prepare()
        if mode == "memory" and mode not in self._rankers:
            raise NoAddresses(
                "these passages have no addresses: the model that read them has no head for that, or another one; read "
                "the documents again, or rank with mode='lexical'"
            )
        ranker = self._rankers.get(mode, self._lexical)
        return distinct(self.passages, ranker.rank(query, len(self.passages)), k)

    def has_answer(self, query: str) -> bool:
        """False where the passages have so little of the query that they hardly answer it.

        True without addresses, and where the passages are so few that reading them decides.
        """
        if len(self.passages) < ENOUGH:
            return True
        self.prepare()
        ranker = self._rankers.get("memory")
        return not isinstance(ranker, AddressRanker) or ranker.coverage(query) >= self._least

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

    def pieces(self, query: str, ranked: Sequence[tuple[int, float]]) -> list[tuple[Passage, float]]:
        """What a reader is shown of some passages, pairs (index, score), best first, and the log of each one's weight:
        the best passage, and the SENTENCES of any passage that fit best, each with its neighbours and by itself;
        without addresses every passage. None that weighs next to nothing.
        """
        self.prepare()
        ranker = self._rankers.get("memory")
        found = [(self.passages[index], score) for index, score in ranked]
        if ranked and isinstance(ranker, AddressRanker):
            sentences = ranker.sentences(query, ranked)[:SENTENCES]
            found = found[:1]
            found += [(self.passages[one.passage].part(*one.around), one.score) for one in sentences]
            found += [(self.passages[one.passage].part(*one.span), one.score) for one in sentences]
        texts: dict[str, tuple[Passage, float]] = {}
        for shown, score in found:
            known = texts.get(shown.text)
            texts[shown.text] = (shown, score) if known is None else (known[0], max(known[1], score))
        least = max((score for _, score in found), default=0.0) - LIGHT / WEIGHT
        return [(shown, WEIGHT * score) for shown, score in texts.values() if score >= least]

    def prepare(self) -> None:
        """Index the addresses, if there are any; ranking does so when it is first needed."""
        with self._lock:
            if "hybrid" in self._rankers:
                return
            self._rankers["hybrid"] = self._lexical
            addresses: list[bytes] = []
            for addresses_of in self._addresses:
                part = addresses_of()
                if part is None:
                    return
                addresses += part
            model = self._memories[0].model
            head = model.addresses
            heads = [memory.model.addresses for memory in self._memories]
            if head is None or any(other is None or other.sha256 != head.sha256 for other in heads):
                return
            ranker = AddressRanker(self.passages, addresses, model.weigh, model.word_vectors)
            self._least = head.settings.least
            self._rankers["memory"] = ranker
            self._rankers["hybrid"] = HybridRanker(ranker, self._lexical, head.settings.lexical)
