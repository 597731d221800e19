"""The formats: what kind a file is, how many pages it has, and its pages, parsed in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from infinimem.errors import (
    DamagedSource,
    SourceError,
    SourceNotFound,
    SourceTooLarge,
    SourceUnreadable,
    UnsupportedSource,
)

from .find import KINDS

_BINARY = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"\xd0\xcf\x11\xe0": "an old Office file",
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


LONGEST_TITLE = 300
"""Characters of a page's title; what is longer is no title, and every passage of the page would hold it."""


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
class Visits:
    """What happens on the way through the pages.

    left_out: numbers of pages that must not be touched. most_characters: of a page. begun: is told the number of each
    page before it is parsed. failed: is told the number of a page that cannot be read, and why; without it such a page
    is an error.
    """

    left_out: Collection[int] = frozenset()
    most_characters: int = sys.maxsize
    begun: Callable[[int], None] = lambda number: None
    failed: Callable[[int, str], None] | None = None

    def give_up(self, number: int, error: SourceError) -> None:
        """Leave a page out, or raise."""
        if self.failed is None:
            raise error
        self.failed(number, str(error))

    def check_size(self, number: int, characters: int, name: str) -> None:
        """Raise SourceTooLarge where a page has more characters than it may."""
        if characters > self.most_characters:
            raise SourceTooLarge(
                f"page {number} of '{name}' has more than the {self.most_characters:,} characters that are read; raise "
                "the limit 'page_characters' if that is meant"
            )


class readable:
    """Turns what the operating system says about a path into the errors of this library."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError) or isinstance(error, SourceError):
            return
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise SourceNotFound(f"no file at '{self._path}'; check the spelling and the directory") from error
        reason = (error.strerror or str(error) or type(error).__name__).lower()
        raise SourceUnreadable(f"'{self._path}' cannot be read ({reason}); check its permissions") from error


def kind_by_head(path: Path, head: bytes) -> str:
    """The kind that the first bytes of a file speak for, "zip" where only its inside tells. Raises UnsupportedSource,
    DamagedSource."""
    from .plain import looks_binary

    # Junk in front of the header is common, and readers accept it within the first kilobyte.
    if b"%PDF-" in head[:1024]:
        return "pdf"
    by_suffix = KINDS.get(path.suffix.lower())
    if head.startswith(b"PK\x03\x04"):
        return "epub" if by_suffix == "epub" else "zip"
    if by_suffix in ("pdf", "epub"):
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


def look_inside(path: Path, kind: str) -> tuple[str, int | None]:
    """The kind, now certain, and the number of pages, None where only reading would tell."""
    if kind == "zip":
        kind = _zip_kind(path)
    if kind == "pdf":
        from .pdf import page_count

        return kind, page_count(path)
    if kind == "epub":
        from .epub import chapter_count

        return kind, chapter_count(path)
    return kind, None


def _zip_kind(path: Path) -> str:
    import zipfile

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


def pages_of(path: Path, kind: str, visits: Visits | None = None) -> Iterator[Page]:
    """The pages of a file that have text, in order."""
    for number, text, title in _pages(path, kind, visits or Visits()):
        yield Page(number, text, title if title is None or len(title) <= LONGEST_TITLE else f"{title[:LONGEST_TITLE]}…")


def _pages(path: Path, kind: str, visits: Visits) -> Iterator[tuple[int, str, str | None]]:
    if kind == "pdf":
        from .pdf import pdf_pages

        yield from pdf_pages(path, visits)
    elif kind == "epub":
        from .epub import epub_pages

        yield from epub_pages(path, visits)
    elif kind == "text":
        from .plain import text_pages

        for number, text in text_pages(path):
            yield number, text, None
    else:
        from .markup import html_pages, markdown_pages

        pages = html_pages if kind == "html" else markdown_pages
        for number, (text, title) in enumerate(pages(path), start=1):
            yield number, text, title
