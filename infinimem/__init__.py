"""infinimem: documents in, one small memory file, answers out.

    from infinimem import DocumentMemory

Importing this package loads neither torch nor a model; both are loaded with the first document or question.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .errors import InfinimemError
from .renamed import OldModules

if TYPE_CHECKING:
    from .answering.answer import Answer as Answer
    from .answering.conversation import Reply as Reply
    from .answering.conversation import complete as complete
    from .answering.conversation import reply as reply
    from .answering.decoding import Decoding as Decoding
    from .document_memory import DocumentMemory as DocumentMemory
    from .ingest.progress import Progress as Progress
    from .ingest.stream import read_passages as read_passages
    from .model.infini_model import InfiniModel as InfiniModel
    from .model.settings import MemorySettings as MemorySettings
    from .model.shared import shared_model as shared_model
    from .readers import Page as Page
    from .readers import ReaderLimits as ReaderLimits
    from .readers import Source as Source
    from .readers import find_sources as find_sources
    from .readers import open_source as open_source
    from .readers import read_pages as read_pages
    from .search.search import Search as Search
    from .text.passages import Passage as Passage

__version__ = "0.1.0"
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
__all__ = ["InfinimemError", "__version__", *_HOMES]

sys.meta_path.append(OldModules())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
