"""Find the documents that a path, a directory or a glob pattern stands for."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import SourceNotFound, SourceUnreadable, UnsupportedSource

KINDS = {
    ".pdf": "pdf",
    ".epub": "epub",
    ".txt": "text",
    ".text": "text",
    ".rst": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
}
"""The kind of document that each suffix promises. In a directory, only files with these suffixes are found."""


def find_sources(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the files that `paths` stand for, each once, in the order given.

    A directory stands for the documents in it and below it, sorted by path; hidden files and files of unknown
    kinds are skipped. A glob pattern (`*.pdf`, `books/**/*.md`) stands for its sorted matches.

    Raises SourceNotFound where a path or pattern leads to nothing, SourceUnreadable where it cannot be read, and
    UnsupportedSource where a directory or pattern has no document.
    """
    named = [paths] if isinstance(paths, (str, Path)) else list(paths)
    # An empty name most likely comes from an unset variable. As a path it would mean the whole current directory.
    if "" in named:
        raise SourceNotFound("there is no name of a document; name a file, a directory or a glob pattern")
    found: dict[Path, Path] = {}
    for name in named:
        for path in _expand(Path(name).expanduser()):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expand(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            return _documents_in(path)
        if path.exists():
            return [path]
    except OSError as error:
        raise SourceUnreadable(f"'{path}' cannot be read ({error.strerror}); check its permissions") from error
    pattern = str(path)
    if not glob.has_magic(pattern):
        raise SourceNotFound(f"no file at '{path}'; check the spelling and the directory")
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    if not matches:
        raise SourceNotFound(f"no file matches '{path}'; check the pattern and the directory")
    files = [match for match in matches if match.is_file()]
    if glob.has_magic(path.suffix) or not path.suffix:
        # `notes/*` selects only files of known kinds, as the directory `notes` does. `notes/*.log` selects all matches.
        files = [file for file in files if file.suffix.lower() in KINDS]
    if not files:
        raise UnsupportedSource(f"'{path}' matches no document; infinimem reads {_suffixes()}")
    return files


def _documents_in(directory: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise SourceUnreadable(
            f"'{error.filename}' cannot be read ({error.strerror}); check its permissions"
        ) from error

    files: list[Path] = []
    for folder, folders, names in os.walk(directory, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.suffix.lower() in KINDS and path.is_file():
                files.append(path)
    if not files:
        raise UnsupportedSource(f"'{directory}' has no document in it; infinimem reads {_suffixes()}")
    return sorted(files)


def _suffixes() -> str:
    return ", ".join(sorted(KINDS))
