"""Directories: the cache, and the trusted directories of models and adapters.

A memory file says which model made it. Where that is a directory, it is loaded unasked only if the user of this machine
has named it before, which makes it a trusted directory: files come from strangers, and so may directories. Trusted
directories are kept in the cache directory, a JSON string a line, or in the file that INFINIMEM_TRUSTED_DIRECTORIES
names.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from ..errors import warn_renamed


def cache_directory() -> Path:
    """Where infinimem keeps what it can rebuild: `INFINIMEM_CACHE`, or the platform's user cache directory."""
    chosen = os.environ.get("INFINIMEM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("infinimem", appauthor=False))


def directory_at(name: str | os.PathLike[str]) -> Path | None:
    """The directory at that path, `~` expanded; None if there is none, or if no path can be called that."""
    try:
        path = Path(name).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


FILE, OLD_FILE = "trusted-directories.jsonl", "known-directories.jsonl"
VARIABLE, OLD_VARIABLE = "INFINIMEM_TRUSTED_DIRECTORIES", "INFINIMEM_KNOWN_DIRECTORIES"
_named: set[str] = set()


def trust(directory: Path) -> None:
    """The user has named this directory. Where that cannot be written down, it holds for this process."""
    place = os.path.realpath(directory)
    if place in _named or place in _kept():
        return
    _named.add(place)
    file = _files()[0]
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        # One write of one line: processes that do this at once do not mix. A line that was cut off is ended first.
        with file.open("a", encoding="utf-8") as kept:
            kept.write(f"\n{json.dumps(place)}\n")


def is_trusted(directory: Path | None) -> bool:
    """Whether the user has named this directory, in this process or before; True where there is no directory."""
    if directory is None:
        return True
    place = os.path.realpath(directory)
    return place in _named or place in _kept()


def _files() -> list[Path]:
    """The file that is written, and the file of older releases that is read too."""
    if chosen := os.environ.get(VARIABLE):
        return [Path(chosen)]
    if chosen := os.environ.get(OLD_VARIABLE):
        warn_renamed(f"the variable {OLD_VARIABLE}", VARIABLE)
        return [Path(chosen)]
    return [cache_directory() / FILE, cache_directory() / OLD_FILE]


def _kept() -> set[str]:
    places = set()
    for file in _files():
        with contextlib.suppress(OSError):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    place = json.loads(line)
                    if isinstance(place, str):
                        places.add(place)
    return places
