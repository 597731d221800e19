"""The way to LangChain's components, which are a distribution of their own: langchain-infinimem."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import LangChainMissing


def component(name: str) -> Any:
    """A class of the package langchain_infinimem. Raises LangChainMissing."""
    try:
        return getattr(import_module("langchain_infinimem"), name)
    except ImportError as error:
        raise LangChainMissing(
            f"LangChain's components cannot be imported ({error}); run: pip install langchain-infinimem"
        ) from error
