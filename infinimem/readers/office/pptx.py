"""PowerPoint files: a slide is a page, with its title, texts, tables, charts and notes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..page import Page, Visits
from ..prose import tidy
from ..table import Grid, guessed_heads, parts_of
from .package import LIBRARIES, checked, damage, library, properties

_PICTURE = 13


def pptx_pages(path: Path, visits: Visits) -> Iterator[Page]:
    """Yield the slides that have text."""
    pptx = library(LIBRARIES["pptx"], path, "pptx")
    about = properties(path, checked(path))
    with damage(path):
        slides = list(pptx.Presentation(str(path)).slides)
    pictures = 0
    for number, slide in enumerate(slides, start=1):
        if number in visits.left_out:
            continue
        visits.begun(number)
        with damage(path):
            shapes = list(_shapes(slide.shapes))
            texts = [text for shape in shapes for text in _texts(shape)]
            if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
                notes = tidy(slide.notes_slide.notes_text_frame.text)
                texts += [f"Notes: {notes}"] if notes else []
            pictures += sum(1 for shape in shapes if shape.shape_type == _PICTURE)
            title = None if slide.shapes.title is None else tidy(slide.shapes.title.text).replace("\n", " ") or None
        text = "\n\n".join(filter(None, texts))
        visits.check_size(number, len(text), path.name)
        if text:
            yield Page(number, text, title, about=about, left_out={"pictures": pictures} if pictures else {})
            about, pictures = {}, 0


def _shapes(shapes: Any) -> Iterator[Any]:
    """The shapes of a slide, those of groups too; the title first, then from top to bottom and from left to right."""
    waiting = [(shapes, 0)]
    found: list[Any] = []
    while waiting:
        group, depth = waiting.pop()
        for shape in group:
            if hasattr(shape, "shapes") and depth < 16:
                waiting.append((shape.shapes, depth + 1))
            else:
                found.append(shape)
    title = getattr(shapes, "title", None)
    first = None if title is None else title.shape_id
    yield from sorted(found, key=lambda one: (one.shape_id != first, one.top or 0, one.left or 0))


def _texts(shape: Any) -> Iterator[str]:
    if getattr(shape, "has_table", False):
        grid = Grid()
        for row in shape.table.rows:
            grid.begin_row()
            for cell in row.cells:
                if not cell.is_spanned:
                    spans = (cell.span_width, cell.span_height) if cell.is_merge_origin else (1, 1)
                    grid.add(tidy(cell.text).replace("\n", " "), *spans)
        grid.end_row()
        yield from parts_of(grid.rows, 1 if shape.table.first_row else guessed_heads(grid.rows))
    elif getattr(shape, "has_chart", False):
        chart = shape.chart
        if chart.has_title and chart.chart_title.has_text_frame:
            yield tidy(chart.chart_title.text_frame.text)
        for plot in chart.plots:
            series = list(plot.series)
            rows = [["", *(str(one.name or "") for one in series)]]
            for number, category in enumerate(plot.categories):
                values = [one.values[number] if number < len(one.values) else None for one in series]
                rows.append([str(category), *("" if value is None else f"{value:g}" for value in values)])
            yield from parts_of(rows, 1)
    elif getattr(shape, "has_text_frame", False):
        yield tidy(shape.text_frame.text)
