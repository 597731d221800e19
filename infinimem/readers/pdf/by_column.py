"""Tables of a PDF page that are drawn column by column: their cells in the order of rows.

Columns of prose are drawn in the same way, and are read in the order in which they are drawn. So are the columns of an
index, all of which look alike: the columns of a table are unlike each other, or have names in bold letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .layout import Line
from .measure import level, width

# Of the size of the letters: the largest step from a cell to the next one below.
_STEP = 4.0
# The share of a column's cells that must stand at the height of cells of the first column.
_LEVEL_SHARE = 0.8
_FEWEST = 3  # cells of a column
# Characters of a cell, on average, from which on columns are prose.
_PROSE = 40
# By how much the shares of cells with digits differ in columns that are unlike each other.
_UNLIKE = 0.5


def by_rows(lines: Sequence[Line]) -> list[Line]:
    """The lines of a page, with those of tables that are drawn column by column in the order of rows."""
    runs = _runs(lines)
    result: list[Line] = []
    at = 0
    while at < len(runs):
        group = [runs[at]]
        at += 1
        while at < len(runs):
            if _stands_beside(runs[at], group):
                group.append(runs[at])
            elif len(group) > 1 and _goes_on(runs[at], group):
                group[-1] = [*group[-1], *runs[at]]
            else:
                break
            at += 1
        result += _in_rows(group) if len(group) > 1 and _is_table(group) else [line for run in group for line in run]
    return result


def _runs(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that follow each other downwards, each below a part of the one before."""
    runs: list[list[Line]] = []
    for line in lines:
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and line.upright
            and last.upright
            and 0.5 * line.size < last.y - line.y < _STEP * max(line.size, last.size)
            and line.x < last.x + width(last)
            and last.x < line.x + width(line)
        ):
            runs[-1].append(line)
        else:
            runs.append([line])
    return runs


def _stands_beside(run: list[Line], group: list[list[Line]]) -> bool:
    """Whether a run stands to the right of the last column, its lines at the height of lines of the first column."""
    first, last = group[0], group[-1]
    beside = min(line.x for line in run) > max(line.x for line in last)
    return beside and min(len(run), len(first)) >= _FEWEST and _at_height(run, first)


def _goes_on(run: list[Line], group: list[list[Line]]) -> bool:
    """Whether a run is the rest of the last column, after empty cells."""
    last, line = group[-1][-1], run[0]
    over = line.x < last.x + width(last) and last.x < line.x + width(line)
    return over and line.y < last.y and _at_height(run, group[0])


def _at_height(run: Sequence[Line], first: Sequence[Line]) -> bool:
    there = sum(1 for line in run if any(level(line, other) for other in first))
    return there >= _LEVEL_SHARE * len(run)


def _is_table(group: Sequence[Sequence[Line]]) -> bool:
    if any(sum(len(line.text) for line in run) > _PROSE * len(run) for run in group):
        return False
    if all(run[0].bold and not any(line.bold for line in run[1:]) for run in group[1:]):
        return True
    digits = [sum(any(map(str.isdigit, line.text)) for line in run) / len(run) for run in group]
    return max(digits) - min(digits) >= _UNLIKE


def _in_rows(group: Sequence[Sequence[Line]]) -> list[Line]:
    ordered = sorted((line for run in group for line in run), key=lambda line: -line.y)
    rows = [[ordered[0]]]
    for before, line in pairwise(ordered):
        if level(before, line):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda one: one.x)]
