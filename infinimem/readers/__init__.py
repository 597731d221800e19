"""Readers: turn files into pages of clean prose, one page at a time.

    for path in find_sources("papers/"):
        source = open_source(path)
        for page in read_pages(source):
            ...

The libraries that know the formats are imported when a file needs them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infinimem.errors import (
    EmptySource,
    NoTextInSource,
    SourceNotFound,
    SourceUnreadable,
    UnsupportedSource,
)

from .find import KINDS, find_sources

__all__ = ["Page", "Source", "find_sources", "open_source", "read_pages"]

_HEAD = 1 << 16
_BINARY = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"\xd0\xcf\x11\xe0": "an old Office file",
    b"PK\x03\x04": "a ZIP archive",
    b"PK\x05\x06": "an empty ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\x7fELF": "a program",
    b"SQLite format 3": "an SQLite database",
    b"{\\rtf": "an RTF file",
    b"%!PS": "a PostScript file",
}
_OFFICE = {"word/": "a Word file", "xl/": "an Excel file", "ppt/": "a PowerPoint file"}
_ADVICE = "infinimem reads PDF, EPUB, HTML, Markdown and plain text; convert it to one of these first"


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of a document that can be cited: a PDF page, a chapter, a section or a page of text.

    `text` is prose in NFC with one blank line between paragraphs. `number` counts from 1; for a PDF it is the
    physical page, for an EPUB the place in the spine. Pages without text are left out, their numbers too.
    `title` is the chapter or heading that the page belongs to, where the document says so.
    """

    number: int
    text: str
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A file that can be read: its name for citations, its kind, and the SHA-256 of its bytes.

    `kind` is "pdf", "text", "markdown", "html" or "epub". `page_count` is None where only reading would tell.
    """

    name: str
    path: Path
    kind: str
    size: int
    sha256: str
    page_count: int | None


def open_source(path: str | Path) -> Source:
    """Find out what kind of document a file is; raise a `SourceError` that says why where it cannot be read."""
    path = Path(path)
    with _readable(path):
        if path.is_dir():
            raise UnsupportedSource(f"'{path}' is a directory; name the files in it, or search it with find_sources")
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
        kind = _kind(path, head)
        return Source(path.name, path, kind, size, digest.hexdigest(), _page_count(path, kind))


def read_pages(source: Source) -> Iterator[Page]:
    """Yield the pages of a document that have text, in order and as they are read.

    Raises `NoTextInSource` or `EmptySource` at the end where no page had any.
    """
    found = False
    with _readable(source.path):
        for page in _pages(source):
            found = True
            yield page
    if found:
        return
    if source.kind == "pdf":
        pages = "1 page" if source.page_count == 1 else f"{source.page_count} pages"
        raise NoTextInSource(
            f"'{source.name}' has {pages} but no text layer; run OCR on it first (for example ocrmypdf)"
        )
    if source.kind == "epub":
        raise NoTextInSource(f"'{source.name}' has chapters but no text in them; it may be a book of images")
    raise EmptySource(f"'{source.name}' has no text in it, only white space or markup; check that it is the right file")


class _readable:
    """Turns what the operating system says about a path into the errors of this library."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError) or isinstance(error, SourceNotFound):
            return
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise SourceNotFound(f"no file at '{self._path}'; check the spelling and the directory") from error
        reason = (error.strerror or str(error) or type(error).__name__).lower()
        raise SourceUnreadable(f"'{self._path}' cannot be read ({reason}); check its permissions") from error


def _kind(path: Path, head: bytes) -> str:
    from .plain import looks_binary

    # Junk in front of the header is common, and readers accept it within the first kilobyte.
    if b"%PDF-" in head[:1024]:
        return "pdf"
    by_suffix = KINDS.get(path.suffix.lower())
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path, by_suffix)
    if by_suffix in ("pdf", "epub"):
        from infinimem.errors import DamagedSource

        raise DamagedSource(
            f"'{path.name}' is not {'a PDF' if by_suffix == 'pdf' else 'an EPUB'} inside, whatever its name says; "
            "get a fresh copy"
        )
    for magic, what in _BINARY.items():
        if head.startswith(magic):
            raise UnsupportedSource(f"'{path.name}' is {what}; {_ADVICE}")
    if looks_binary(head):
        raise UnsupportedSource(f"'{path.name}' is a binary file; {_ADVICE}")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith((b"<!doctype html", b"<html")) and by_suffix != "markdown":
        return "html"
    return by_suffix or "text"


def _zip_kind(path: Path, by_suffix: str | None) -> str:
    import zipfile

    if by_suffix == "epub":
        return "epub"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        names = []
    if "META-INF/container.xml" in names:
        return "epub"
    what = next(
        (what for start, what in _OFFICE.items() if any(name.startswith(start) for name in names)), "a ZIP file"
    )
    raise UnsupportedSource(f"'{path.name}' is {what}; {_ADVICE}")


def _page_count(path: Path, kind: str) -> int | None:
    if kind == "pdf":
        from .pdf import page_count

        return page_count(path)
    if kind == "epub":
        from .epub import chapter_count

        return chapter_count(path)
    return None


def _pages(source: Source) -> Iterator[Page]:
    if source.kind == "pdf":
        from .pdf import pdf_pages

        for number, text, title in pdf_pages(source.path):
            yield Page(number, text, title)
    elif source.kind == "epub":
        from .epub import epub_pages

        for number, text, title in epub_pages(source.path):
            yield Page(number, text, title)
    elif source.kind == "text":
        from .plain import text_pages

        for number, text in text_pages(source.path):
            yield Page(number, text)
    else:
        from .markup import html_pages, markdown_pages

        pages = html_pages if source.kind == "html" else markdown_pages
        for number, (text, title) in enumerate(pages(source.path), start=1):
            yield Page(number, text, title)
