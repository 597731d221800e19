"""infinimem: documents in, one small memory file, answers out.

    from infinimem import DocumentMemory

Importing this package loads neither torch nor a model; both are loaded with the first document or question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import InfinimemError

if TYPE_CHECKING:
    from .answering.answer import Answer
    from .answering.conversation import Reply, complete, reply
    from .answering.decoding import Decoding
    from .document_memory import DocumentMemory
    from .ingest.progress import Progress
    from .ingest.stream import read_passages
    from .model.infini_model import InfiniModel
    from .model.settings import MemorySettings
    from .model.shared import shared_model
    from .readers import Page, ReaderLimits, Source, find_sources, open_source, read_pages
    from .search.search import Search
    from .text.passages import Passage

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Decoding",
    "DocumentMemory",
    "InfiniModel",
    "InfinimemError",
    "MemorySettings",
    "Page",
    "Passage",
    "Progress",
    "ReaderLimits",
    "Reply",
    "Search",
    "Source",
    "__version__",
    "complete",
    "find_sources",
    "open_source",
    "read_pages",
    "read_passages",
    "reply",
    "shared_model",
]

_HOMES = {
    "Answer": "answering.answer",
    "Decoding": "answering.decoding",
    "DocumentMemory": "document_memory",
    "InfiniModel": "model.infini_model",
    "MemorySettings": "model.settings",
    "Page": "readers",
    "Passage": "text.passages",
    "Progress": "ingest.progress",
    "ReaderLimits": "readers",
    "Reply": "answering.conversation",
    "Search": "search.search",
    "Source": "readers",
    "complete": "answering.conversation",
    "find_sources": "readers",
    "open_source": "readers",
    "read_pages": "readers",
    "read_passages": "ingest.stream",
    "reply": "answering.conversation",
    "shared_model": "model.shared",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
