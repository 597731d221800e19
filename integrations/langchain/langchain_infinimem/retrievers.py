"""`InfinimemRetriever`: the passages of memory files as LangChain documents."""

from __future__ import annotations

import threading
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from infinimem import DocumentMemory, Passage
from infinimem.asking import checked_question
from infinimem.errors import NoPassages
from infinimem.recall import LexicalRanker
from langchain_infinimem._common import document, opened


class InfinimemRetriever(BaseRetriever):
    """Finds the passages of one or several document memories that fit a query.

    Setup:
        ```bash
        pip install langchain-infinimem
        infinimem ingest examples/handbook.pdf -o handbook.safetensors
        ```

    Instantiate:
        ```python
        from langchain_infinimem import InfinimemRetriever

        retriever = InfinimemRetriever(memory="handbook.safetensors", k=4)
        ```
        `memory` is a path, a `DocumentMemory`, or a list of them, which are searched as one. No language model is
        loaded.

    Invoke:
        ```python
        documents = retriever.invoke("What is the violet ink made of?")
        documents = retriever.invoke("What is the violet ink made of?", k=1)
        documents[0].metadata["page"]
        ```

    Async:
        ```python
        documents = await retriever.ainvoke("What is the violet ink made of?")
        ```

    Response metadata:
        `metadata` of each document: `source`, `page`, `title`, `start` and `end` (characters of the source's text),
        `score` (higher is better; comparable within one query), `memory` (fingerprint of the memory).
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    memory: Any
    """A path, a `DocumentMemory`, or a list of them."""
    k: int = Field(default=4, ge=1)
    """Most passages that are returned."""
    score_threshold: float | None = None
    """Passages with lower scores are left out."""

    _index: tuple[list[list[Passage]], list[tuple[Passage, str]], LexicalRanker] | None = PrivateAttr(default=None)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @field_validator("memory")
    @classmethod
    def _opened(cls, memory: Any) -> list[DocumentMemory]:
        memories = [opened(one) for one in (memory if isinstance(memory, (list, tuple)) else [memory])]
        if not memories:
            raise ValueError("there is no memory to search; give one or several")
        return memories

    def _ranker(self) -> tuple[list[tuple[Passage, str]], LexicalRanker]:
        """All passages with the fingerprint of their memory, ranked as one; made anew where a memory has grown."""
        with self._lock:
            # All of them, not their number: appended text can also lengthen the last one.
            now = [memory.passages for memory in self.memory]
            if self._index is None or self._index[0] != now:
                passages = []
                for memory in self.memory:
                    info = memory.info()
                    if info["tokens"] and not memory.passages:
                        raise NoPassages("a memory was made without passages; ingest it again with them")
                    passages += [(passage, info["fingerprint"]) for passage in memory.passages]
                self._index = (now, passages, LexicalRanker([passage for passage, _ in passages]))
            return self._index[1], self._index[2]

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        score_threshold: float | None = None,
    ) -> list[Document]:
        count = self.k if k is None else k
        if count < 1:
            raise ValueError(f"k is {count}; ask for at least one passage")
        threshold = self.score_threshold if score_threshold is None else score_threshold
        if len(self.memory) == 1:
            found = self.memory[0].retrieve(query, count)
            fingerprint = self.memory[0].info()["fingerprint"]
            chosen = [(passage, fingerprint) for passage in found]
        else:
            passages, ranker = self._ranker()
            ranked = ranker.rank(checked_question(query), count)
            chosen = [(passages[i][0].scored(score), passages[i][1]) for i, score in ranked]
        return [
            document(passage, fingerprint)
            for passage, fingerprint in chosen
            if threshold is None or passage.score >= threshold
        ]
