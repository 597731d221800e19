"""Sources: files that can be read, and their pages, one at a time.

All but plain text is parsed in a separate process, with limits on memory and time. That process imports the library
for a format when a file needs it.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import EmptySource, NoTextInSource, SourceError, SourceTooLarge, UnsupportedSource
from . import formats
from .kinds import HEAD, KINDS, kind_by_head
from .page import Page, readable
from .process import parent
from .process.limits import ReaderLimits


@dataclass(frozen=True, slots=True)
class Source:
    """A file that can be read, or one that could not be opened.

    name: the file's name, for citations.
    kind: "pdf", "epub", "docx", "pptx", "xlsx", "odt", "rtf", "mail", "notebook", "html", "markdown", "csv", "code",
        "image" or "text".
    size: bytes of the file.
    sha256: hash of the file's bytes; None where the file could not be opened.
    page_count: number of pages; None where only reading the whole file would tell.
    problem: the error that every attempt to read the file raises; None where the file could be opened.
    optional: whether the file was found in a directory, rather than named; what cannot be read of it is left out.
    parser: the process that looked into the file and waits to read it; None where no process waits.
    """

    name: str
    path: Path
    kind: str
    size: int
    sha256: str | None
    page_count: int | None
    problem: SourceError | None = None
    optional: bool = False
    parser: parent.WaitingParser | None = field(default=None, compare=False, repr=False)


def open_source(path: str | Path, limits: ReaderLimits | None = None, *, wait: bool = False) -> Source:
    """Find out what kind of document a file is.

    limits: for looking into a PDF, an EPUB or an Office file; default `ReaderLimits()`.
    wait: keep the process that looks into such a file, so that the same process reads the file later; otherwise
        another process is started to read the file. Such a source cannot be pickled; the process ends with the source,
        or with `source.parser.close()`.

    Raises the `SourceError` that says why the file cannot be read.
    """
    path = Path(path)
    with readable(path):
        if path.is_dir():
            raise UnsupportedSource(f"'{path}' is a directory; name the files in it, or search it with find_sources")
        # A pipe may stay empty for ever, a device may never end, and both give their bytes only once.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnsupportedSource(f"'{path}' is a pipe or a device, not a file; copy its content into a file first")
        digest = hashlib.sha256()
        size = 0
        with path.open("rb") as file:
            head = file.read(HEAD)
            block = head
            while block:
                digest.update(block)
                size += len(block)
                block = file.read(1 << 20)
        if not head:
            raise EmptySource(f"'{path.name}' is empty (0 bytes); check that it was saved or downloaded completely")
        kind, count, parser = kind_by_head(path, head, limits is not None and limits.ocr), None, None
        if kind in formats.LOOKED_INTO:
            kind, count, parser = parent.look_inside(path, kind, limits or ReaderLimits(), wait)
        return Source(name_of(path), path, kind, size, digest.hexdigest(), count, parser=parser)


def name_of(path: Path) -> str:
    """The file's name as text that can be stored as UTF-8; on some file systems, names need not be valid text."""
    return path.name.encode("utf-8", "replace").decode("utf-8")


def unread_source(path: str | Path, problem: SourceError) -> Source:
    """A `Source` for a file that could not be opened; an attempt to read it raises `problem`."""
    path = Path(path)
    return Source(name_of(path), path, KINDS.get(path.suffix.lower(), "text"), 0, None, None, problem)


def read_pages(
    source: Source,
    *,
    limits: ReaderLimits | None = None,
    left_out: Collection[int] = (),
    failed: Callable[[int | None, str], None] | None = None,
) -> Iterator[Page]:
    """Yield the pages of a document that have text, in order, each page as soon as it is read.

    limits: for the process that parses; default `ReaderLimits()`.
    left_out: numbers of pages that must not be parsed; of a PDF, an EPUB, slides or sheets.
    failed: is called with the number of each page that cannot be read, or None for the rest of the file, and the
        reason; without this function, the error is raised.

    Raises the `SourceError` that names the cause; `NoTextInSource` or `EmptySource` at the end where no page had text
    and none failed or was left out.
    """
    limits = limits or ReaderLimits()
    characters, lost = 0, len(left_out)

    def report(number: int | None, reason: str) -> None:
        nonlocal lost
        lost += 1
        if failed is not None:
            failed(number, reason)

    try:
        if source.problem is not None:
            raise source.problem
        for page in _pages(source, limits, left_out, None if failed is None else report):
            characters += len(page.text)
            if characters > limits.characters:
                raise SourceTooLarge(
                    f"'{source.name}' has more than the {limits.characters:,} characters that are read; to read all "
                    "of it, raise the limit 'characters'"
                )
            yield page
        if not characters and not lost:
            raise _without_text(source)
    except SourceError as error:
        if failed is None:
            raise
        failed(None, str(error))


def _pages(
    source: Source,
    limits: ReaderLimits,
    left_out: Collection[int],
    failed: Callable[[int | None, str], None] | None,
) -> Iterator[Page]:
    if source.kind != "text":
        yield from parent.pages_of(source.path, source.kind, limits, left_out, failed, source.parser)
        return
    with readable(source.path):
        yield from formats.pages_of(source.path, source.kind)


def _without_text(source: Source) -> SourceError:
    if source.kind == "pdf":
        pages = "1 page" if source.page_count == 1 else f"{source.page_count} pages"
        return NoTextInSource(
            f"'{source.name}' has {pages} but no text layer; if they are scans, recognize their text with --ocr "
            "(ocr=True)"
        )
    if source.kind == "epub":
        return NoTextInSource(f"'{source.name}' has chapters without text; it may be a book of images and need OCR")
    return EmptySource(
        f"'{source.name}' has no text in it, only white space or markup; check that it is the right file"
    )
