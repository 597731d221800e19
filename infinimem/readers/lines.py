"""Files whose lines must stay as they are: source code, and tables of comma-separated values."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from .page import Page
from .plain import read_text
from .prose import paginate, tidy
from .table import parts_of, tables_of

_CODE = re.compile(
    r"[;{}\[\](]\s*$|^\s*(?:(?:async )?def|class|func|fn|function|let|const|var|return|if|for|while|elif|else)\b"
    r".*[:;{)(]\s*$|^\s*(?:import|#include|using|package|use)\b|^\s*(?://|/\*|\*/|#!|<\w|</)"
    r"|^\s*[\"']?[\w.-]+[\"']?\s*[:=]\s*\S|^\s*[\w.-]+:\s*$"
)
_SAMPLE = 400  # lines
_LONGEST_LINE = 1 << 17


def looks_like_code(sample: str) -> bool:
    """Whether the lines of a text are code, data or a configuration, rather than prose."""
    lines = [line for line in sample.split("\n")[:_SAMPLE] if line.strip()]
    return len(lines) > 2 and sum(1 for line in lines if _CODE.search(line[:400])) * 2 > len(lines)


def code_pages(path: Path) -> Iterator[Page]:
    """Yield code in pages that end at blank lines; no line is changed."""
    blocks = (tidy(block, verbatim=True) for block in re.split(r"\n[ \t]*\n", read_text(path).replace("\r\n", "\n")))
    for number, text in enumerate(paginate(filter(None, blocks)), start=1):
        yield Page(number, text)


def csv_pages(path: Path) -> Iterator[Page]:
    """Yield the rows of a table in pages; its first row names the columns, unless it has numbers."""
    source = read_text(path).replace("\0", "")
    csv.field_size_limit(_LONGEST_LINE)
    try:
        dialect: type[csv.Dialect] | csv.Dialect = csv.Sniffer().sniff(source[: 1 << 14], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel_tab if path.suffix.lower() == ".tsv" else csv.excel
    try:
        rows = [[tidy(cell).replace("\n", " ") for cell in row] for row in csv.reader(source.splitlines(True), dialect)]
    except csv.Error:
        yield from code_pages(path)
        return
    parts = (part for table, heads in tables_of(rows) for part in parts_of(table, heads))
    for number, text in enumerate(paginate(parts), start=1):
        yield Page(number, text)
