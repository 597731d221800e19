"""Directories: the cache, and the trusted directories of models and adapters.

A memory file says which model made it, and that may be a directory. Memory files come from strangers, and so may
directories. So a directory that only the file names is loaded only if the user of this machine has named it before,
which makes it a trusted directory. Trusted directories are listed in a file in the cache directory, or in the file that
INFINIMEM_TRUSTED_DIRECTORIES names, one JSON string a line.
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
    """The directory at that path, `~` expanded; None if no directory is there, or if the name cannot be a path."""
    try:
        path = Path(name).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


def model_place(name: str | os.PathLike[str]) -> Path | None:
    """The directory, or the GGUF file, at the path that names a model; None if neither is there."""
    if (directory := directory_at(name)) is not None:
        return directory
    try:
        path = Path(name).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


FILE, OLD_FILE = "trusted-directories.jsonl", "known-directories.jsonl"
VARIABLE, OLD_VARIABLE = "INFINIMEM_TRUSTED_DIRECTORIES", "INFINIMEM_KNOWN_DIRECTORIES"
# The directory of the answer adapter inside the adapter's directory, and its name in older releases.
ANSWER, OLD_ANSWER = "answer", "reader"
# Stands for no adapter where the name of an adapter is expected.
NO_ADAPTER = "none"
_named: set[str] = set()


def trust(directory: Path) -> None:
    """Remember that the user has named this directory, which makes it a trusted directory.

    Where the list cannot be written, the directory is trusted in this process alone.
    """
    place = os.path.realpath(directory)
    if place in _named or place in _kept():
        return
    _named.add(place)
    file = _files()[0]
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Each line is one write, so that lines of several processes do not mix. The line end in front ends a line that
        # was cut off.
        with file.open("a", encoding="utf-8") as kept:
            kept.write(f"\n{json.dumps(place)}\n")


def is_trusted(directory: Path | None) -> bool:
    """Whether the user has named this directory, in this process or before; True where there is no directory."""
    if directory is None:
        return True
    place = os.path.realpath(directory)
    return place in _named or place in _kept()


def _files() -> list[Path]:
    """The file that is written, and after it the file of older releases, which is read too."""
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
