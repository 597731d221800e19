"""Find the documents that a path, a directory or a glob pattern stands for."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError, SourceNotFound, SourceUnreadable, UnsupportedSource
from .kinds import ADVICE, HEAD, KINDS, kind_by_head


@dataclass(frozen=True, slots=True)
class Found:
    """A file to read. optional: it was found in a directory, so it is left out where it is no document."""

    path: Path
    optional: bool = False


def find_sources(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the files that `paths` stand for, each once, in the order given.

    A directory stands for the files in it and below it that look like documents, sorted by path; hidden files are
    skipped. A glob pattern (`*.pdf`, `books/**/*.md`) stands for its sorted matches.

    Raises SourceNotFound where a path or pattern leads to nothing, SourceUnreadable where it cannot be read, and
    UnsupportedSource where a directory or pattern has no document.
    """
    found = find_files(paths)
    documents = [one.path for one in found if not one.optional or _looks_like_a_document(one.path)]
    if found and not documents:
        raise UnsupportedSource(f"'{found[0].path.parent}' has no document in it; {ADVICE}")
    return documents


def find_files(paths: str | Path | Iterable[str | Path]) -> list[Found]:
    """Like `find_sources`, with all files of directories, documents or not."""
    named = [paths] if isinstance(paths, (str, Path)) else list(paths)
    # An empty name most likely comes from an unset variable. As a path it would mean the whole current directory.
    if "" in named:
        raise SourceNotFound("there is no name of a document; name a file, a directory or a glob pattern")
    found: dict[Path, Found] = {}
    for name in named:
        for one in _expand(Path(name).expanduser()):
            found.setdefault(one.path.resolve(), one)
    return list(found.values())


def _expand(path: Path) -> list[Found]:
    try:
        if path.is_dir():
            return _files_in(path)
        if path.exists():
            return [Found(path)]
    except OSError as error:
        raise SourceUnreadable(f"'{path}' cannot be read ({error.strerror}); check its permissions") from error
    pattern = str(path)
    if not glob.has_magic(pattern):
        raise SourceNotFound(f"no file at '{path}'; check the spelling and the directory")
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    if not matches:
        raise SourceNotFound(f"no file matches '{path}'; check the pattern and the directory")
    files = [match for match in matches if match.is_file()]
    # `notes/*` stands for what the directory `notes` has. `notes/*.log` names what it matches.
    optional = glob.has_magic(path.suffix) or not path.suffix
    if not files:
        raise UnsupportedSource(f"'{path}' matches no document; {ADVICE}")
    return [Found(file, optional) for file in files]


def _files_in(directory: Path) -> list[Found]:
    def refuse(error: OSError) -> None:
        raise SourceUnreadable(
            f"'{error.filename}' cannot be read ({error.strerror}); check its permissions"
        ) from error

    files: list[Path] = []
    for folder, folders, names in os.walk(directory, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        files += [path for path in paths if path.is_file()]
    if not files:
        raise UnsupportedSource(f"'{directory}' has no document in it; {ADVICE}")
    return [Found(path, optional=True) for path in sorted(files)]


def _looks_like_a_document(path: Path) -> bool:
    if path.suffix.lower() in KINDS:
        return True
    try:
        with path.open("rb") as file:
            kind_by_head(path, file.read(HEAD))
    except (SourceError, OSError):
        return False
    return True
