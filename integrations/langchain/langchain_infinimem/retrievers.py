"""`InfinimemRetriever`: the passages of memory files as LangChain documents."""

from __future__ import annotations

import threading
from typing import Any, Literal

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from infinimem import DocumentMemory, Search
from langchain_infinimem._common import Documents, opened, renamed_mode

OLD_MODES = {"memory": "learned"}


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
        `memory` is a path, a `DocumentMemory`, or a list of them, which are searched as one. The model is loaded with
        the first search; `rank_by="lexical"` loads no model.

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
        `metadata` of each document: `source`, `page`, `title` (of the section), `start` and `end` (characters of the
        source's text), `score` (higher is better; comparable within one query), `label` (number printed on the page),
        `unit` ("page", "section", "slide" or "sheet"), `memory` (fingerprint of the memory); and, where the document
        says so, `document_title`, `author`, `date` and `language`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    memory: Any
    """A path, a `DocumentMemory`, or a list of them."""
    k: int = Field(default=4, ge=1)
    """Most passages that are returned."""
    score_threshold: float | None = None
    """Passages with lower scores are left out."""

    rank_by: Literal["hybrid", "learned", "lexical"] = "hybrid"
    """learned: by the term weights that the model gave the passages; lexical: by BM25; hybrid: by both."""

    _search: Search[DocumentMemory] | None = PrivateAttr(default=None)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        return renamed_mode(values, "rank_by", OLD_MODES)

    @field_validator("memory")
    @classmethod
    def _opened(cls, memory: Any) -> list[DocumentMemory]:
        memories = [opened(one) for one in (memory if isinstance(memory, (list, tuple)) else [memory])]
        if not memories:
            raise ValueError("there is no memory to search; give one or several")
        return memories

    def _current(self) -> Search[DocumentMemory]:
        """The search over the passages of all memories; made anew where a memory has grown."""
        with self._lock:
            if self._search is None or not self._search.is_current:
                self._search = Search(self.memory)
            return self._search

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        score_threshold: float | None = None,
        rank_by: str | None = None,
        mode: str | None = None,
    ) -> list[Document]:
        count = self.k if k is None else k
        if count < 1:
            raise ValueError(f"k is {count}; ask for at least one passage")
        threshold = self.score_threshold if score_threshold is None else score_threshold
        if mode is not None:
            rank_by = renamed_mode({"mode": mode}, "rank_by", OLD_MODES)["rank_by"]
        found = self._current().find(query, count, self.rank_by if rank_by is None else rank_by)
        made = {id(memory): Documents(memory) for memory in {id(memory): memory for _, memory in found}.values()}
        return [
            made[id(memory)].of(passage) for passage, memory in found if threshold is None or passage.score >= threshold
        ]
