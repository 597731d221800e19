"""infinimem: documents in, one small memory file, answers out.

    from infinimem import DocumentMemory

Importing this package loads neither torch nor a model; both come with the first document or question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import InfinimemError

if TYPE_CHECKING:
    from .answer import Answer
    from .chat import Reply
    from .document_memory import DocumentMemory
    from .model import InfiniModel
    from .passages import Passage
    from .readers import ReaderLimits
    from .reading import Progress

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "DocumentMemory",
    "InfiniModel",
    "InfinimemError",
    "Passage",
    "Progress",
    "ReaderLimits",
    "Reply",
    "__version__",
]

_HOMES = {
    "Answer": "answer",
    "DocumentMemory": "document_memory",
    "InfiniModel": "model",
    "Passage": "passages",
    "Progress": "reading",
    "ReaderLimits": "readers",
    "Reply": "chat",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
