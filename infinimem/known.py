"""Directories of models and adapters that the user of this machine has named.

A memory file says which model made it. Where that is a directory, it is loaded unasked only if someone here has named
it before: files come from strangers, and so may directories. Kept in the cache directory, a JSON string a line, or in
the file that INFINIMEM_KNOWN_DIRECTORIES names.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

FILE = "known-directories.jsonl"
VARIABLE = "INFINIMEM_KNOWN_DIRECTORIES"
_named: set[str] = set()


def remember(directory: Path) -> None:
    """The user has named this directory. Where that cannot be written down, it holds for this process."""
    place = os.path.realpath(directory)
    if place in _named or place in _kept():
        return
    _named.add(place)
    with contextlib.suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        # One write of one line: processes that do this at once do not mix. A line that was cut off is ended first.
        with _file().open("a", encoding="utf-8") as kept:
            kept.write(f"\n{json.dumps(place)}\n")


def is_known(directory: Path | None) -> bool:
    """Whether the user has named this directory, in this process or before; no directory is no stranger's."""
    if directory is None:
        return True
    place = os.path.realpath(directory)
    return place in _named or place in _kept()


def _file() -> Path:
    from .pretrained import cache_directory

    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else cache_directory() / FILE


def _kept() -> set[str]:
    places = set()
    with contextlib.suppress(OSError):
        for line in _file().read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                place = json.loads(line)
                if isinstance(place, str):
                    places.add(place)
    return places
