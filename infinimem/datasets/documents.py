"""Documents as text: books in JSON Lines, or a file of any kind that infinimem reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ..readers import open_source, read_pages
from .json_lines import is_json_lines, need, read_rows

Q = TypeVar("Q")
SEPARATOR = "\n\n"  # between paragraphs


@dataclass(frozen=True)
class Document(Generic[Q]):
    """A text with questions about it, or with requests for summaries.

    paragraphs: joined by SEPARATOR they are the text.
    """

    title: str
    text: str
    questions: tuple[Q, ...]
    paragraphs: tuple[str, ...] = ()


def books(path: Path) -> list[tuple[str, str]]:
    """Pairs (title, text): one per row of JSON Lines with "text" (and "title"); any other file is a single document.

    Raises the SourceError that names the cause.
    """
    if not is_json_lines(path):
        return [(path.name, SEPARATOR.join(page.text for page in read_pages(open_source(path))))]
    return [
        (str(row.get("title", row.get("id", number))), need(place, row, "text", str))
        for number, (place, row) in enumerate(read_rows(path), 1)
    ]


def text_of(path: Path) -> str:
    """The text of a document, or of all books in JSON Lines."""
    return SEPARATOR.join(text for _, text in books(path))
