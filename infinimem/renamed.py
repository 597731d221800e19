"""Names under which older releases could be imported, beside those of `infinimem.errors`; the next release drops them.

Python finds a module that is gone with `OldModules`. A package that is still there finds the names that it had with
`__getattr__ = moved(__name__)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import warn_renamed

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # importing importlib.abc takes longer than the rest of this package

MOVED = {
    "infinimem.asking.checked_question": "infinimem.text.words.checked_question",
    "infinimem.chat.complete": "infinimem.complete",
    "infinimem.chat.reply": "infinimem.reply",
    "infinimem.generation.Decoding": "infinimem.Decoding",
    "infinimem.model.InfiniModel": "infinimem.InfiniModel",
    "infinimem.model.shared_model": "infinimem.shared_model",
    "infinimem.passages.PassageCutter": "infinimem.text.passages.PassageCutter",
    "infinimem.reading.Progress": "infinimem.Progress",
    "infinimem.reading.SEPARATOR": "infinimem.ingest.record.SEPARATOR",
    "infinimem.search.Search": "infinimem.Search",
}
MODULES = {old.rpartition(".")[0] for old in MOVED}


def moved(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that finds what older releases had in it, with a DeprecationWarning."""

    def find(name: str) -> Any:
        old = f"{module}.{name}"
        if old not in MOVED:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(old, MOVED[old])
        home, _, name = MOVED[old].rpartition(".")
        return getattr(import_module(home), name)

    return find


class OldModules(Loader):
    """Finds the modules of older releases where no file of that name is found."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The description of a module of older releases; None for all others."""
        return ModuleSpec(name, self) if name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its old names."""
        module.__dict__["__getattr__"] = moved(module.__name__)
