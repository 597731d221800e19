"""Ask for values of generated tables: is the row found, with its value and the name of its column?

pip install 'infinimem[office,examples]' python-docx
python docs/measure_tables.py [--seed N] [--model M]

Forty tables in eight formats, five of each, with four questions "What is the COLUMN of ROW?" each. A question counts as
right where one line of the best passage has the row's label and the value, and the passage has the column's name.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import docx
import openpyxl
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import LongTable, SimpleDocTemplate, TableStyle

from infinimem import DocumentMemory

TABLES, QUESTIONS = 5, 4
FIRST = (
    "Alder",
    "Birch",
    "Cedar",
    "Dogwood",
    "Elm",
    "Fir",
    "Gorse",
    "Hazel",
    "Ivy",
    "Juniper",
    "Larch",
    "Maple",
    "Oak",
)
SECOND = (
    "Bridge",
    "Creek",
    "Dam",
    "Ferry",
    "Gate",
    "Harbour",
    "Island",
    "Lock",
    "Mill",
    "Pier",
    "Quay",
    "Ridge",
    "Weir",
)
COLUMNS: dict[str, Callable[[random.Random], str]] = {
    "Opened": lambda chance: str(chance.randint(1821, 1989)),
    "Depth (m)": lambda chance: f"{chance.uniform(2, 60):.1f}",
    "Keeper": lambda chance: (
        chance.choice(("Ada", "Bo", "Carl", "Dora", "Emil", "Frida")) + f" {chance.choice(FIRST)}son"
    ),
    "Boats": lambda chance: str(chance.randint(2, 900)),
    "Permit": lambda chance: f"{chance.choice('ABCDEF')}-{chance.randint(100, 999)}",
    "Light": lambda chance: f"{chance.choice(('white', 'red', 'green'))}, every {chance.randint(3, 30)} s",
    "Last visit": lambda chance: (
        f"{chance.randint(1, 28)} {chance.choice(('March', 'June', 'October'))} 19{chance.randint(10, 99)}"
    ),
}


class Table(NamedTuple):
    """A title, names of columns, and rows, which begin with their labels; empty cells are empty texts."""

    title: str
    names: list[str]
    rows: list[list[str]]


def make(chance: random.Random) -> Table:
    """A table of chance."""
    names = chance.sample(list(COLUMNS), chance.randint(3, 5))
    labels = chance.sample([f"{one} {two}" for one in FIRST for two in SECOND], chance.randint(8, 40))
    rows = [[label, *("" if chance.random() < 0.05 else COLUMNS[name](chance) for name in names)] for label in labels]
    return Table(f"Stations of the {chance.choice(SECOND)} district", ["Station", *names], rows)


def ruled_pdf(table: Table, path: Path) -> None:
    """Cells in boxes; the names of the columns stand on every page."""
    grid = LongTable([table.names, *table.rows], repeatRows=1)
    grid.setStyle(TableStyle([("GRID", (0, 0), (-1, -1), 0.5, colors.black), ("FONT", (0, 0), (-1, 0), "Times-Bold")]))
    SimpleDocTemplate(str(path), pagesize=A4).build([grid])


def striped_pdf(table: Table, path: Path) -> None:
    """Grey stripes, numbers to the right, no lines."""
    grid = LongTable([table.names, *table.rows], colWidths=[110, *[80] * (len(table.names) - 1)])
    style = [("ROWBACKGROUNDS", (0, 0), (-1, -1), [colors.whitesmoke, colors.white])]
    grid.setStyle(TableStyle([*style, ("ALIGN", (1, 0), (-1, -1), "RIGHT"), ("FONTSIZE", (0, 0), (-1, -1), 8)]))
    SimpleDocTemplate(str(path), pagesize=A4).build([grid])


def plain_pdf(table: Table, path: Path) -> None:
    """Each cell is drawn by itself, column after column."""
    canvas = Canvas(str(path), pagesize=A4)
    canvas.drawString(60, 790, table.title)
    for column in range(len(table.names)):
        for number, row in enumerate([table.names, *table.rows]):
            canvas.setFont("Helvetica-Bold" if number == 0 else "Helvetica", 9)
            canvas.drawString(60 + 92 * column, 760 - 16 * number, row[column])
    canvas.save()


def cells(row: Sequence[str], tag: str = "td") -> str:
    """The cells of a row in HTML."""
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in row) + "</tr>"


def spanned_html(table: Table, path: Path) -> None:
    """A head of two rows, and cells that span columns and rows."""
    head = f"<tr><th rowspan=2>{table.names[0]}</th><th colspan={len(table.names) - 1}>Records</th></tr>"
    head += cells(table.names[1:], "th")
    path.write_text(f"<h1>{table.title}</h1><table><thead>{head}</thead>{''.join(map(cells, table.rows))}</table>")


def rich_html(table: Table, path: Path) -> None:
    """Cells with paragraphs, lists and links, and without any head."""
    rows = [
        [
            row[0],
            *(
                f"<p><a href='#'>{cell}</a></p>" if n % 2 else f"<ul><li>{cell}</li></ul>"
                for n, cell in enumerate(row[1:])
            ),
        ]
        for row in table.rows
    ]
    head = cells([f"<b>{name}</b>" for name in table.names])
    path.write_text(f"<p>{table.title}</p><table>{head}{''.join(map(cells, rows))}</table>")


def markdown(table: Table, path: Path) -> None:
    """A pipe table."""
    lines = [table.names, ["---"] * len(table.names), *table.rows]
    path.write_text(f"# {table.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n")


def word(table: Table, path: Path) -> None:
    """A table of a Word file."""
    document = docx.Document()
    document.add_heading(table.title, 1)
    grid = document.add_table(0, len(table.names))
    for row in [table.names, *table.rows]:
        for cell, text in zip(grid.add_row().cells, row, strict=True):
            cell.text = text
    document.save(str(path))


def excel(table: Table, path: Path) -> None:
    """A sheet with a title above the table, and numbers as numbers."""
    book = openpyxl.Workbook()
    book.active.append([table.title])
    book.active.append([])
    for row in [table.names, *table.rows]:
        book.active.append([float(cell) if cell.replace(".", "").isdigit() else cell or None for cell in row])
    book.save(path)


FORMATS: dict[str, tuple[str, Callable[[Table, Path], None]]] = {
    "PDF, ruled": (".pdf", ruled_pdf),
    "PDF, striped": (".pdf", striped_pdf),
    "PDF, cell by cell": (".pdf", plain_pdf),
    "HTML, spans": (".html", spanned_html),
    "HTML, rich cells": (".html", rich_html),
    "Markdown": (".md", markdown),
    "DOCX": (".docx", word),
    "XLSX": (".xlsx", excel),
}


def is_right(text: str, label: str, value: str, name: str) -> bool:
    """Whether a passage answers a question."""
    return name in text and any(label in line and value in line for line in text.split("\n"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    counts: dict[str, int] = {}
    for name, (suffix, write) in FORMATS.items():
        counts[name] = 0
        for _ in range(TABLES):
            table = make(chance)
            with tempfile.TemporaryDirectory() as folder:
                write(table, Path(folder, f"table{suffix}"))
                memory = DocumentMemory.ingest(Path(folder, f"table{suffix}"), model=given.model)
            places = [(r, c) for r, row in enumerate(table.rows) for c, cell in enumerate(row) if c and cell]
            for row, column in chance.sample(places, QUESTIONS):
                label, value = table.rows[row][0], table.rows[row][column]
                best = memory.retrieve(f"What is the {table.names[column]} of {label}?", 1)
                right = bool(best) and is_right(best[0].text, label, value, table.names[column])
                counts[name] += right
                if not right:
                    print(
                        f"# {name}: {table.names[column]} of {label} is {value}; found {best[0].text[:200]!r}"
                        if best
                        else "# nothing found"
                    )
    asked = TABLES * QUESTIONS
    total = sum(counts.values()) / (asked * len(FORMATS))
    print(json.dumps({"questions": asked * len(FORMATS), "right": round(total, 3), "of_20_each": counts}, indent=1))


if __name__ == "__main__":
    main()
