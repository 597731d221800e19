"""RTF files, by striprtf; the rows of tables stay together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path

from ..about import about
from ..page import Page, Visits
from ..prose import section_pages, tidy
from ..table import guessed_heads, parts_of
from .package import LIBRARIES, damage, library

_INFO = re.compile(r"\{\\(title|author)\s+([^{}]*)\}")
_DATE = re.compile(r"\{\\(?:revtim|creatim)\\yr(\d{4})\\mo(\d{1,2})\\dy(\d{1,2})")
# striprtf ends each cell of a table with a stroke.
_ROW = re.compile(r".*\|\s*$")


def rtf_pages(path: Path, visits: Visits) -> Iterator[Page]:
    """Yield the text of an RTF file as pages."""
    striprtf = library(LIBRARIES["rtf"], path, "rtf")
    source = path.read_bytes().decode("latin-1")
    with damage(path):
        text: str = striprtf.rtf_to_text(source, errors="ignore")
    found = {name: striprtf.rtf_to_text(f"{{\\rtf1 {value}}}") for name, value in _INFO.findall(source[:20_000])}
    date = _DATE.search(source[:20_000])
    if date is not None:
        found["date"] = f"{date[1]}-{int(date[2]):02}-{int(date[3]):02}"
    pages = section_pages([(None, list(_paragraphs(text)))])
    for page in islice(pages, 1):
        visits.check_size(page.number, len(text), path.name)
        yield replace(page, about=about(**found))
    yield from pages


def _paragraphs(text: str) -> Iterator[str]:
    for is_table, lines in groupby(text.split("\n"), key=lambda line: _ROW.match(line) is not None):
        if is_table:
            rows = [[tidy(cell) for cell in line.rstrip().removesuffix("|").split("|")] for line in lines]
            yield from parts_of(rows, guessed_heads(rows))
        else:
            yield from filter(None, (tidy(line) for line in lines))
