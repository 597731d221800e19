"""Access to the LangChain components, which are in another distribution: langchain-infinimem."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import LangChainMissing


def component(name: str) -> Any:
    """The class of that name in the package langchain_infinimem. Raises LangChainMissing."""
    try:
        return getattr(import_module("langchain_infinimem"), name)
    except ImportError as error:
        raise LangChainMissing(
            f"the LangChain components cannot be imported ({error}); run: pip install langchain-infinimem"
        ) from error
