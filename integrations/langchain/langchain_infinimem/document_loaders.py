"""`InfinimemLoader`: passages or pages of memory files and of source files, as LangChain documents."""

from __future__ import annotations

from collections.abc import Iterator
from glob import has_magic
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from infinimem import DocumentMemory, Source, find_sources, open_source, read_pages, read_passages
from langchain_infinimem._common import Documents, about

MEMORY_SUFFIX = ".safetensors"


class InfinimemLoader(BaseLoader):
    """Loads memory files, or files that infinimem can read (PDF, EPUB, HTML, Markdown, text), as documents.

    Setup:
        ```bash
        pip install langchain-infinimem
        ```

    Instantiate:
        ```python
        from langchain_infinimem import InfinimemLoader

        loader = InfinimemLoader("examples/handbook.pdf", unit="pages")
        ```
        `source` is a `DocumentMemory`, the path of a memory file, or a path, directory or glob pattern of documents,
        or a list of these. `unit` is "passages" (default), as answers cite them, or "pages". No model is needed.

    Load:
        ```python
        documents = loader.load()
        ```

    Lazy load:
        ```python
        for document in loader.lazy_load():
            print(document.metadata["page"], document.page_content[:60])
        ```

    Async:
        ```python
        documents = await loader.aload()
        ```
    """

    def __init__(self, source: Any, unit: Literal["passages", "pages"] = "passages") -> None:
        if unit not in ("passages", "pages"):
            raise ValueError(f"there is no unit {unit!r}; choose passages or pages")
        self.source = source
        self.unit = unit

    def lazy_load(self) -> Iterator[Document]:
        """Yield the documents, as they are read."""
        listed = self.source if isinstance(self.source, (list, tuple)) else [self.source]
        for one in listed:
            if isinstance(one, DocumentMemory):
                yield from self._of_memory(one)
                continue
            for path in _files(one):
                if path.suffix == MEMORY_SUFFIX:
                    yield from self._of_memory(DocumentMemory.load(path))
                else:
                    yield from self._of_source(open_source(path))

    def _of_memory(self, memory: DocumentMemory) -> Iterator[Document]:
        made = Documents(memory)
        if self.unit == "passages":
            for passage in memory.passages:
                found = made.of(passage)
                found.metadata.pop("score")
                yield found
            return
        for (source, page), group in groupby(memory.passages, lambda p: (p.source, p.page)):
            passages = list(group)
            yield Document(
                page_content="\n\n".join(passage.text for passage in passages),
                metadata={"source": source, "page": page, "title": passages[0].title, **made.shared(source)},
            )

    def _of_source(self, source: Source) -> Iterator[Document]:
        known: dict[str, str] = {}
        if self.unit == "pages":
            for page in read_pages(source):
                known |= about(page.about)
                place = {"source": source.name, "page": page.number, "title": page.title}
                yield Document(page_content=page.text, metadata={**place, **known})
            return
        for passage in read_passages(source, begun=lambda page: known.update(about(page.about))):
            metadata = passage.to_dict()
            del metadata["score"]
            yield Document(page_content=str(metadata.pop("text")), metadata={**metadata, **known})


def _files(name: str | Path) -> list[Path]:
    path = Path(name)
    return [path] if path.suffix == MEMORY_SUFFIX and not has_magic(path.name) else find_sources(path)
