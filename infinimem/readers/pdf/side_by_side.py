"""Lines of a PDF page that stand side by side: letters of a word, cells of a table's rows, or columns of prose.

Many programs write each cell of a table as a line of its own, so that nothing but its place says which row and which
column it belongs to. Cells are joined to one line a row; empty cells keep their place. Some write each letter as a line
of its own, and some draw a text twice, a little apart, to make it bold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ...text.sentences import CELLS
from ..table import line_of
from .by_column import by_rows
from .layout import Line
from .measure import level, width

# Of the size of the letters: the largest step from a row to the next.
_STEP = 4.0
# Of the size of the letters: how far apart a text is drawn twice, and the gaps between words and between cells.
_TWICE, _WORD_GAP, _CELL_GAP = 0.12, 0.15, 1.5
_FEWEST_LETTERS = 4
_NEAR = 20  # rows of a table that tell where its cells begin
# Columns of prose: characters and words of a line, on average, in each of them.
_PROSE_LENGTH, _PROSE_WORDS = 18, 3


def joined(lines: Sequence[Line]) -> list[Line]:
    """The lines of a page, with one line for each row of a table, and with columns of prose one after the other."""
    result: list[Line] = []
    for region in _regions([_with_words(band) for band in _bands(by_rows(_once(lines)))]):
        columns = _columns(region)
        if columns is None:
            result += [line for band in region for line in band]
        elif _is_prose(columns):
            result += [line for column in columns for line in column if line is not None]
        else:
            result += [_row(cells) for cells in zip(*columns, strict=True)]
    return result


def _once(lines: Sequence[Line]) -> list[Line]:
    """Without lines that are drawn again over themselves; a copy follows within a few lines."""
    kept: list[Line] = []
    for line in lines:
        near = _TWICE * line.size
        again = (
            other.text == line.text and abs(other.x - line.x) <= near and abs(other.y - line.y) <= near
            for other in kept[-4:]
        )
        if not any(again):
            kept.append(line)
    return kept


def _with_words(band: list[Line]) -> list[Line]:
    """Lines at one height, where letters that were set one by one are joined to words."""
    letters = sum(1 for line in band if len(line.text) == 1)
    if letters < _FEWEST_LETTERS or letters * 10 < len(band) * 8:
        return band
    first, *rest = band
    text, end = first.text, first.x + width(first)
    lines: list[Line] = []
    for line in rest:
        gap = (line.x - end) / max(line.size, 1)
        if gap > _CELL_GAP:
            lines.append(replace(first, text=text))
            first, text = line, line.text
        else:
            text += (" " if gap > _WORD_GAP else "") + line.text
        end = line.x + width(line)
    return [*lines, replace(first, text=text)]


def _bands(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that follow each other at one height, from left to right."""
    bands: list[list[Line]] = []
    for line in lines:
        last = bands[-1][-1] if bands else None
        if last is not None and line.upright and last.upright and level(last, line) and line.x > last.x:
            bands[-1].append(line)
        else:
            bands.append([line])
    return bands


def _regions(bands: Sequence[list[Line]]) -> list[list[list[Line]]]:
    """Bands in groups: those that may be rows of one table, and each other band by itself."""
    regions: list[list[list[Line]]] = []
    for band in bands:
        region = regions[-1] if regions else None
        if region is not None and len(region[0]) > 1 and _goes_on(region, band):
            region.append(band)
        else:
            regions.append([band])
    return regions


def _goes_on(region: list[list[Line]], band: list[Line]) -> bool:
    above, line = region[-1][0], band[0]
    if not 0 < above.y - line.y < _STEP * max(line.size, above.size) or line.kind == "code":
        return False
    # One line alone is a row with one cell only where a cell has stood there before, in letters of the same size.
    starts = [cell for row in region[-_NEAR:] for cell in row if abs(cell.x - line.x) < 1 and cell.size == line.size]
    return len(band) > 1 or (bool(starts) and len(line.text) <= 2 * max(len(cell.text) for cell in starts))


def _columns(region: list[list[Line]]) -> list[list[Line | None]] | None:
    """The lines by column, with None for empty cells; None where the lines are no table."""
    if sum(1 for band in region if len(band) > 1) < 2:
        return None
    spans: list[tuple[float, float]] = []
    for start, end in sorted((line.x, line.x + 0.85 * width(line)) for row in region for line in row):
        if spans and start < spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    columns: list[list[Line | None]] = [[None] * len(region) for _ in spans]
    for number, band in enumerate(region):
        for line in band:
            place = max(index for index, (start, _) in enumerate(spans) if start <= line.x)
            if columns[place][number] is not None:
                # Columns that overlap: the widths of letters are a guess.
                return _in_order(region)
            columns[place][number] = line
    return columns if len(columns) > 1 else None


def _in_order(region: list[list[Line]]) -> list[list[Line | None]] | None:
    """The cells by their order; None where rows differ in their number of cells."""
    widths = {len(band) for band in region}
    if len(widths) != 1:
        return None
    return [list(column) for column in zip(*region, strict=True)]


def _is_prose(columns: list[list[Line | None]]) -> bool:
    for column in columns:
        texts = [line.text for line in column if line is not None]
        words = sum(len(text.split()) for text in texts)
        if sum(map(len, texts)) < _PROSE_LENGTH * len(texts) or words < _PROSE_WORDS * len(texts):
            return False
        if any(CELLS in text for text in texts):
            return False
    return True


def _row(cells: Sequence[Line | None]) -> Line:
    there = [line for line in cells if line is not None]
    first = there[0]
    text = line_of(["" if line is None else line.text for line in cells])
    bold = all(line.bold for line in there)
    return Line(text, first.x, first.y, first.size, bold, first.upright, "row")


def is_table_head(line: Line, below: Sequence[Line]) -> bool:
    """Tell whether a row stands at the head of rows: the next line is a row with as many cells."""
    count = line.text.count(CELLS)
    after = next((two for one, two in pairwise(below) if one is line), None)
    return line.kind == "row" and count > 0 and after is not None and after.text.count(CELLS) == count
