"""Readers: turn files into pages of clean prose, one page at a time.

    for path in find_sources("papers/"):
        source = open_source(path)
        for page in read_pages(source):
            ...

What has to be parsed (PDF, EPUB, HTML, Markdown) is parsed in a process of its own, with limits on memory and time. The
libraries that know the formats are imported there, when a file needs them.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from infinimem.errors import EmptySource, NoTextInSource, SourceError, SourceTooLarge, UnsupportedSource

from . import formats, isolated
from .find import KINDS, find_sources
from .formats import Page, readable
from .limits import ReaderLimits

__all__ = [
    "Page",
    "ReaderLimits",
    "Source",
    "find_sources",
    "name_of",
    "open_source",
    "read_pages",
    "unread_source",
]

_HEAD = 1 << 16


@dataclass(frozen=True, slots=True)
class Source:
    """A file that can be read: its name for citations, its kind, and the SHA-256 of its bytes.

    `kind` is "pdf", "text", "markdown", "html" or "epub". `page_count` is None where only reading would tell.
    `problem` is what every reading of it raises; None where it could be opened.
    """

    name: str
    path: Path
    kind: str
    size: int
    sha256: str | None
    page_count: int | None
    problem: SourceError | None = None


def open_source(path: str | Path, limits: ReaderLimits | None = None) -> Source:
    """Find out what kind of document a file is; raise a `SourceError` that says why where it cannot be read."""
    path = Path(path)
    with readable(path):
        if path.is_dir():
            raise UnsupportedSource(f"'{path}' is a directory; name the files in it, or search it with find_sources")
        # A pipe may never be written to, a device may never end, and both give what they have once.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnsupportedSource(f"'{path}' is a pipe or a device, not a file; copy what it gives into a file first")
        digest = hashlib.sha256()
        size = 0
        with path.open("rb") as file:
            head = file.read(_HEAD)
            block = head
            while block:
                digest.update(block)
                size += len(block)
                block = file.read(1 << 20)
        if not head:
            raise EmptySource(f"'{path.name}' is empty (0 bytes); check that it was saved or downloaded completely")
        kind, count = formats.kind_by_head(path, head), None
        if kind in ("pdf", "epub", "zip"):
            kind, count = isolated.look_inside(path, kind, limits or ReaderLimits())
        return Source(name_of(path), path, kind, size, digest.hexdigest(), count)


def name_of(path: Path) -> str:
    """The file's name as text that can be stored: file systems have names that are none."""
    return path.name.encode("utf-8", "replace").decode("utf-8")


def unread_source(path: str | Path, problem: SourceError) -> Source:
    """A file that could not be opened, in the place of what it would have been."""
    path = Path(path)
    return Source(name_of(path), path, KINDS.get(path.suffix.lower(), "text"), 0, None, None, problem)


def read_pages(
    source: Source,
    *,
    limits: ReaderLimits | None = None,
    left_out: Collection[int] = (),
    failed: Callable[[int | None, str], None] | None = None,
) -> Iterator[Page]:
    """Yield the pages of a document that have text, in order and as they are read.

    left_out: numbers of pages of a PDF or an EPUB that are not to be touched. failed: is told the number of each page
    that cannot be read, or None for the rest of the file, and why; without it, that is an error.

    Raises the `SourceError` that names the cause; `NoTextInSource` or `EmptySource` at the end where no page had text
    and none failed.
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
                    f"'{source.name}' has more than the {limits.characters:,} characters that are read; raise the "
                    "limit 'characters' if that is meant"
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
        yield from isolated.pages_of(source.path, source.kind, limits, left_out, failed)
        return
    with readable(source.path):
        yield from formats.pages_of(source.path, source.kind)


def _without_text(source: Source) -> SourceError:
    if source.kind == "pdf":
        pages = "1 page" if source.page_count == 1 else f"{source.page_count} pages"
        return NoTextInSource(
            f"'{source.name}' has {pages} but no text layer; run OCR on it first (for example ocrmypdf)"
        )
    if source.kind == "epub":
        return NoTextInSource(f"'{source.name}' has chapters but no text in them; it may be a book of images")
    return EmptySource(
        f"'{source.name}' has no text in it, only white space or markup; check that it is the right file"
    )
