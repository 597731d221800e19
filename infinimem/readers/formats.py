"""Formats: the kind of a file, its number of pages, and its pages, all parsed in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ..errors import DamagedSource, UnsupportedSource
from .about import with_front
from .find import KINDS
from .page import LONGEST_TITLE, Page, Visits

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
# Characters of the number that a heading on the page has and its title in the outline has not, or the other way round.
_NUMBERING = 12
_OFFICE = {"word/": "a Word file", "xl/": "an Excel file", "ppt/": "a PowerPoint file"}
_ADVICE = "infinimem reads PDF, EPUB, HTML, Markdown and plain text; convert it to one of these first"


def kind_by_head(path: Path, head: bytes) -> str:
    """Return the kind of a file by its suffix and its first bytes; "zip" where the content must decide.

    path: only its name is used; the file is not opened.
    head: the first bytes of the file.

    Raises UnsupportedSource for binary files, DamagedSource where the name promises a PDF or an EPUB and the bytes are
    something else.
    """
    from .plain import looks_binary

    # Junk in front of the header is common; PDF programs accept a header anywhere in the first kilobyte.
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
    """Return the kind of a file, now certain, and its number of pages.

    kind: as `kind_by_head` returned it.

    The number is None where only reading the whole file would tell. Raises SourceError where the file cannot be read.
    """
    if kind == "zip":
        kind = _zip_kind(path)
    if kind == "pdf":
        from .pdf.pages import page_count

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
    """Yield the pages of a file that have text, in order.

    visits: pages to leave out, and functions to call on the way; by default every page is read, and a page that cannot
        be read raises its error.
    """
    pages = _pages(path, kind, visits or Visits())
    for page in islice(pages, 1):
        yield with_front(_with_sound_headings(page), page.about)
    yield from map(_with_sound_headings, pages)


def _with_sound_headings(page: Page) -> Page:
    """A page whose titles are short, and whose sections are more than their headings: those begin the section below."""

    def short(title: str | None) -> str | None:
        return title if title is None or len(title) <= LONGEST_TITLE else f"{title[:LONGEST_TITLE]}…"

    sections: list[tuple[int, str | None]] = [(0, page.title)]
    for place, title in page.headings:
        begin, before = sections[-1]
        if before is not None and _is_heading(page.text[begin:place], before):
            sections[-1] = begin, title
        else:
            sections.append((place, title))
    return replace(
        page, title=short(sections[0][1]), headings=tuple((place, short(title)) for place, title in sections[1:])
    )


def _is_heading(text: str, title: str) -> bool:
    """Whether a text is nothing but the heading that has this title, with or without its number."""
    printed, named = ("".join(filter(str.isalnum, one)).casefold() for one in (text, title))
    return abs(len(printed) - len(named)) <= _NUMBERING and (printed.endswith(named) or named.endswith(printed))


def _pages(path: Path, kind: str, visits: Visits) -> Iterator[Page]:
    if kind == "pdf":
        from .pdf.pages import pdf_pages

        yield from pdf_pages(path, visits)
    elif kind == "epub":
        from .epub import epub_pages

        yield from epub_pages(path, visits)
    elif kind == "text":
        from .plain import text_pages

        for number, text in text_pages(path):
            yield Page(number, text)
    elif kind == "html":
        from .html import html_pages

        yield from html_pages(path)
    else:
        from .markdown import markdown_pages

        yield from markdown_pages(path)
