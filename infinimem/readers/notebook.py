"""Jupyter notebooks: text, code, and the text of its output, in sections that begin at headings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DamagedSource
from .about import about
from .html import Section, html_sections
from .markdown import markdown_sections
from .page import Page
from .plain import read_text
from .prose import section_pages, tidy


def notebook_pages(path: Path) -> Iterator[Page]:
    """Yield the sections of a notebook as pages."""
    try:
        book = json.loads(read_text(path))
        # Before format 4, cells were in worksheets.
        cells = book["cells"] if "cells" in book else [cell for sheet in book["worksheets"] for cell in sheet["cells"]]
        sections, lost = _sections(cells)
        meta = book.get("metadata", {})
        authors = [one.get("name") if isinstance(one, dict) else one for one in meta.get("authors", ())]
        fields = about(title=meta.get("title"), author=authors, date=meta.get("date"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedSource(f"'{path.name}' is no Jupyter notebook inside; save it again with Jupyter") from error
    pages = section_pages(sections)
    for page in islice(pages, 1):
        yield replace(page, about=fields, left_out={"outputs without text": lost} if lost else {})
    yield from pages


def _sections(cells: list[dict[str, Any]]) -> tuple[list[Section], int]:
    """The sections, and the number of outputs that have no text, such as pictures."""
    sections: list[Section] = [(None, [])]
    lost = 0
    for cell in cells:
        source = _joined(cell.get("source", cell.get("input", "")))
        if cell.get("cell_type") == "markdown":
            (_, texts), *others = markdown_sections(source)
            sections[-1][1].extend(texts)
            sections += others
            continue
        texts = [tidy(source, verbatim=True)]
        for output in cell.get("outputs", ()):
            data = output.get("data", output)
            html = _joined(data.get("text/html", ""))
            if "<table" in html:
                texts += [text for _, found in html_sections(html) for text in found]
            else:
                text = _joined(output.get("text") or data.get("text/plain") or output.get("evalue") or "")
                texts.append(tidy(text, verbatim=True))
                lost += not text.strip()
        sections[-1][1].extend(filter(None, texts))
    return sections, lost


def _joined(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)
