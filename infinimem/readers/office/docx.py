"""Word files: converted to HTML by mammoth, then read as HTML."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ..html import html_sections
from ..page import Page, Visits
from ..prose import section_pages, tidy
from .package import LIBRARIES, checked, damage, library, parsed, properties

_STYLES = "comment-reference => sup\np[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => p:fresh"
_HEADER = ("word/header", "word/footer")
_TEXT = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}t"
_PARAGRAPH = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}p"


def docx_pages(path: Path, visits: Visits) -> Iterator[Page]:
    """Yield the sections of a Word file as pages: text, tables, notes, comments; then headers and footers once."""
    mammoth = library(LIBRARIES["docx"], path, "docx")
    names = checked(path)
    with damage(path), path.open("rb") as file:
        pictures = 0

        def picture(image: object) -> list[object]:
            nonlocal pictures
            pictures += 1
            described = getattr(image, "alt_text", None)
            return [mammoth.html.text(f" {described} ")] if described else []

        # Files outside of the archive are never read, whatever the document links to.
        converted = mammoth.convert_to_html(
            file,
            convert_image=picture,
            external_file_access=False,
            style_map=_STYLES,
        ).value
    sections = html_sections(converted)
    if running := _headers(path, names):
        sections.append((None, ["\n".join(running)]))
    pages = section_pages(sections)
    left_out = {"pictures without a description": pictures} if pictures else {}
    for page in islice(pages, 1):
        visits.check_size(page.number, len(converted), path.name)
        yield replace(page, about=properties(path, names), left_out=left_out)
    yield from pages


def _headers(path: Path, names: set[str]) -> list[str]:
    """The lines of all headers and footers, each once; page numbers are no text there."""
    lines: dict[str, None] = {}
    with damage(path), zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in names if name.startswith(_HEADER) and name.endswith(".xml")):
            for paragraph in parsed(archive.read(name)).iter(_PARAGRAPH):
                text = tidy("".join(node.text or "" for node in paragraph.iter(_TEXT)))
                if any(map(str.isalpha, text)):
                    lines[text] = None
    return list(lines)
