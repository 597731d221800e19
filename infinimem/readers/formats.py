"""Formats: the kind of a file, its number of pages, and its pages, all parsed in this process."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ..errors import UnsupportedSource
from .about import with_front
from .kinds import ADVICE, NAMES, ZIPPED, is_not
from .ocr import check_installed
from .office.package import LIBRARIES, library
from .page import LONGEST_TITLE, Page, Visits

# Module and function for each kind; imported when a file needs it.
_READERS = {
    "pdf": ("pdf.pages", "pdf_pages"),
    "image": ("pdf.scan", "image_pages"),
    "epub": ("epub", "epub_pages"),
    "docx": ("office.docx", "docx_pages"),
    "pptx": ("office.pptx", "pptx_pages"),
    "xlsx": ("office.xlsx", "xlsx_pages"),
    "odt": ("office.odt", "odt_pages"),
    "rtf": ("office.rtf", "rtf_pages"),
    "html": ("html", "html_pages"),
    "markdown": ("markdown", "markdown_pages"),
    "mail": ("mail", "mail_pages"),
    "notebook": ("notebook", "notebook_pages"),
    "csv": ("lines", "csv_pages"),
    "code": ("lines", "code_pages"),
}
LOOKED_INTO = ZIPPED | {"zip", "pdf", "rtf", "image"}
"""Kinds of which only a look into the file tells whether it can be read."""
_WITH_VISITS = ZIPPED | {"pdf", "rtf", "image"}
# Characters of the number that a heading on the page has and its title in the outline has not, or the other way round.
_NUMBERING = 12
# An entry that a ZIP archive of a kind has.
_ARCHIVES = {
    "META-INF/container.xml": "epub",
    "word/document.xml": "docx",
    "xl/workbook.xml": "xlsx",
    "ppt/presentation.xml": "pptx",
}
_ODT = b"application/vnd.oasis.opendocument.text"


def look_inside(path: Path, kind: str, ocr: bool = False) -> tuple[str, int | None]:
    """Return the kind of a file, now certain, and its number of pages.

    kind: as `kind_by_head` returned it.
    ocr: whether the text of images is to be recognized.

    The number is None where only reading the whole file would tell. Raises SourceError where the file cannot be read.
    """
    if kind in ZIPPED or kind == "zip":
        kind = _zip_kind(path, kind)
    if ocr and kind in ("pdf", "image"):
        check_installed(path)
    if kind in LIBRARIES:
        # To miss it now is better than after the files before this one were read.
        library(LIBRARIES[kind], path, kind)
    if kind == "pdf":
        from .pdf.pages import page_count

        return kind, page_count(path)
    if kind == "epub":
        from .epub import chapter_count

        return kind, chapter_count(path)
    return kind, None


def _zip_kind(path: Path, promised: str) -> str:
    """The kind of a ZIP archive by its entries. promised: the kind by its suffix, or "zip"."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = frozenset(archive.namelist())
            if "mimetype" in names and archive.read("mimetype").strip().startswith(_ODT):
                return "odt"
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError):
        names = frozenset()
    found = next((kind for name, kind in _ARCHIVES.items() if name in names), None)
    if found is not None:
        return found
    if promised == "epub":
        # Its reader says what is wrong with it.
        return "epub"
    if promised in NAMES:
        raise is_not(path, promised)
    raise UnsupportedSource(f"'{path.name}' is a ZIP file; {ADVICE}; convert it to one of these first")


def pages_of(path: Path, kind: str, visits: Visits | None = None) -> Iterator[Page]:
    """Yield the pages of a file that have text, in order.

    visits: pages to leave out, and functions to call on the way; by default every page is read, and a page that cannot
        be read raises its error.
    """
    pages = _pages(path, kind, visits or Visits())
    for page in islice(pages, 1):
        page = _with_sound_headings(page)
        # A mail begins with the same lines.
        yield page if kind == "mail" else with_front(page, page.about)
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
    if kind == "text":
        from .plain import text_pages

        for number, text in text_pages(path):
            yield Page(number, text)
        return
    module, name = _READERS[kind]
    read = getattr(importlib.import_module(f".{module}", __package__), name)
    yield from read(path, visits) if kind in _WITH_VISITS else read(path)
