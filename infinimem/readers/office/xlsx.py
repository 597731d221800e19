"""Excel files: a sheet is a page, its rows are lines; formulas are read as the values that the file keeps."""

from __future__ import annotations

import datetime
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..page import Page, Visits
from ..prose import tidy
from ..table import parts_of, tables_of
from .package import LIBRARIES, checked, damage, library, properties


def xlsx_pages(path: Path, visits: Visits) -> Iterator[Page]:
    """Yield the sheets that have text: tables, which empty rows separate, and the comments of cells."""
    openpyxl = library(LIBRARIES["xlsx"], path, "xlsx")
    about = properties(path, checked(path))
    with damage(path), warnings.catch_warnings():
        # About drawings and other parts that openpyxl does not keep when it writes.
        warnings.simplefilter("ignore")
        book = openpyxl.load_workbook(path, data_only=True, keep_links=False)
        formulas = openpyxl.load_workbook(path, keep_links=False) if _has_formulas(path) else book
    for number, sheet in enumerate(book.worksheets, start=1):
        if number in visits.left_out:
            continue
        visits.begun(number)
        with damage(path):
            rows = _rows(sheet, formulas[sheet.title])
            noted = [cell for row in sheet.iter_rows() for cell in row if cell.comment]
            notes = [f"{cell.coordinate}: {tidy(cell.comment.text)}" for cell in noted]
        texts = [part for table, heads in tables_of(rows) for part in parts_of(table, heads)]
        texts += ["\n".join(notes)] if notes else []
        text = "\n\n".join(texts)
        visits.check_size(number, len(text), path.name)
        if text:
            yield Page(number, text, sheet.title, about=about)
            about = {}


def _has_formulas(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        sheets = [name for name in archive.namelist() if name.startswith("xl/worksheets/") and name.endswith(".xml")]
        return any(mark in archive.read(name) for name in sheets for mark in (b"<f>", b"<f "))


def _rows(sheet: Any, formulas: Any) -> list[list[str]]:
    """The rows as texts; each cell that a merged cell covers has its text.

    formulas: the same sheet with formulas, which stand for values that no program has computed yet.
    """
    covered = {
        (row, column): (area.min_row, area.min_col)
        for area in sheet.merged_cells.ranges
        for row in range(area.min_row, min(area.max_row, area.min_row + 1000) + 1)
        for column in range(area.min_col, min(area.max_col, area.min_col + 100) + 1)
    }
    rows: list[list[str]] = []
    for row in sheet.iter_rows():
        texts = []
        for cell in row:
            place = covered.get((cell.row, cell.column), (cell.row, cell.column))
            value = sheet.cell(*place).value
            texts.append(_text(formulas.cell(*place).value if value is None else value))
        rows.append(texts)
    return rows


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ", "minutes")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, float):
        return f"{value:.12g}"
    return tidy(str(value)).replace("\n", " ")
