"""Tables: a row is a line, its cells apart; spans are expanded, and column names stay near their rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..text.sentences import CELLS

# Characters of a part of a table. A cut of passages looks for a paragraph's end over at least this length, so parts of
# this size are not cut, and a passage with rows has their column names.
PART = 240
# A hostile page may ask for a billion columns, and for as many rows.
MOST_COLUMNS, MOST_REPEATED = 200, 10_000


def line_of(cells: Sequence[str]) -> str:
    """The line of a row. Empty cells keep their place."""
    return " ".join(CELLS.join(cells).split()) if any(cells) else ""


def parts_of(rows: Sequence[Sequence[str]], heads: int) -> Iterator[str]:
    """The paragraphs of a table: as many lines as fit into PART, at least two, after the line of the column names.

    heads: the number of rows, from the first on, that hold column names.
    """
    head = [line for line in [line_of(_names(rows[:heads]))] if line]
    body = [line for line in map(line_of, rows[heads:]) if line]
    if not body:
        if head:
            yield "\n".join(head)
        return
    part: list[str] = []
    for line in body:
        size = sum(len(one) + 1 for one in (*head, *part, line))
        if len(part) > 1 and size > PART:
            yield "\n".join([*head, *part])
            part = []
        part.append(line)
    yield "\n".join([*head, *part])


def _names(heads: Sequence[Sequence[str]]) -> list[str]:
    """The name of each column; a name of several rows is written "upper: lower", which each says once."""
    width = max(map(len, heads), default=0)
    columns = ([row[column] for row in heads if column < len(row)] for column in range(width))
    return [": ".join(filter(None, dict.fromkeys(" ".join(name.split()) for name in column))) for column in columns]


class Grid:
    """The rows of a table whose cells may span several columns and rows: each place that a cell covers has its text."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self.heads = 0
        self._row: list[str] | None = None
        self._names = True
        # Column to text and number of further rows of a cell that spans them.
        self._below: dict[int, tuple[str, int]] = {}
        self._left = MOST_REPEATED  # places that cells may cover beside their own

    def begin_row(self) -> None:
        """Begin a row, and end the one before."""
        self.end_row()
        self._row, self._names = [], True

    def add(self, text: str, columns: int = 1, rows: int = 1, *, name: bool = False) -> None:
        """Add a cell. name: whether it holds the name of a column (or row)."""
        if self._row is None:
            self.begin_row()
        row = self._row if self._row is not None else []
        self._fill(row)
        self._names = self._names and name
        count = max(1, min(columns, MOST_COLUMNS - len(row), 1 + self._left))
        self._left -= count - 1
        for _ in range(count):
            if rows > 1:
                self._below[len(row)] = text, rows - 1
            row.append(text)

    def end_row(self) -> None:
        """End the row, if one was begun."""
        row, self._row = self._row, None
        if row is None:
            return
        self._fill(row)
        if self._names and row and len(self.rows) == self.heads:
            self.heads += 1
        self.rows.append(row)

    def _fill(self, row: list[str]) -> None:
        """Add the cells that begin in rows above, up to the first free place."""
        while len(row) in self._below:
            text, left = self._below.pop(len(row))
            self._left -= 1
            if left > 1 and self._left > 0:
                self._below[len(row)] = text, left - 1
            row.append(text)


def guessed_heads(rows: Sequence[Sequence[str]]) -> int:
    """How many of the first rows hold the names of columns where nothing says so: one without digits above numbers."""
    first, rest = (rows[0], rows[1:]) if rows else ((), ())
    named = sum(1 for cell in first if cell.strip())
    if named < 2 or not rest or any(map(str.isdigit, "".join(first))):
        return 0
    return int(any(map(str.isdigit, "".join("".join(row) for row in rest[:20]))))


def tables_of(rows: Iterable[Sequence[str]]) -> Iterator[tuple[list[list[str]], int]]:
    """Yield the tables of a sheet, which empty rows separate, and how many of their first rows hold names of columns.

    Columns that are empty in the whole table are left out. A row of one cell above a table is its title, and a table by
    itself.
    """
    table: list[Sequence[str]] = []
    for row in [*rows, ()]:
        filled = sum(1 for cell in row if cell.strip())
        if filled and not (filled == 1 and not table):
            table.append(row)
            continue
        if table:
            yield _trimmed(table)
            table = []
        if filled:
            yield [[cell for cell in row if cell.strip()]], 0


def _trimmed(table: Sequence[Sequence[str]]) -> tuple[list[list[str]], int]:
    width = max(len(row) for row in table)
    full = [[*row, *[""] * (width - len(row))] for row in table]
    used = [column for column in range(width) if any(row[column].strip() for row in full)]
    rows = [[row[column] for column in used] for row in full]
    # The first row of a sheet names its columns even where no cell below has a number.
    names = len(rows) > 1 and len(used) > 1 and all(map(str.strip, rows[0]))
    return rows, int(names and not any(map(str.isdigit, "".join(rows[0])))) or guessed_heads(rows)
