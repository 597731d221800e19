"""OpenDocument texts: converted to Markdown by odfdo, then read as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ..about import about
from ..markdown import markdown_sections
from ..page import Page, Visits
from ..prose import section_pages
from .package import LIBRARIES, checked, damage, library


def odt_pages(path: Path, visits: Visits) -> Iterator[Page]:
    """Yield the sections of an OpenDocument text as pages."""
    odfdo = library(LIBRARIES["odt"], path, "odt")
    checked(path)
    with damage(path):
        document = odfdo.Document(str(path))
        meta = document.meta
        author = meta.creator or meta.initial_creator
        fields = about(title=meta.title, author=author, date=meta.date or meta.creation_date, language=meta.language)
        text = document.to_markdown()
    pages = section_pages(markdown_sections(text))
    for page in islice(pages, 1):
        visits.check_size(page.number, len(text), path.name)
        yield replace(page, about=fields)
    yield from pages
