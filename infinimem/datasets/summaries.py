"""Documents with summaries that people wrote, in two layouts of JSON Lines (one object a line):

- `document, questions[{question, summaries[] | summary}]`, whose first question is about the whole document
- `document, general[{question, summary}], specific[{question, summary}]`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnsupportedSource
from .documents import SEPARATOR, Document
from .json_lines import Row, need, read_rows, title_of


@dataclass(frozen=True)
class Request:
    """A request for a summary.

    focus: what is to be summarized; None for the whole document.
    summaries: summaries that people wrote; any of them is a good one.
    """

    focus: str | None
    summaries: tuple[str, ...]


def read_summaries(path: Path) -> list[Document[Request]]:
    """Documents with requests. Raises the SourceError that names the cause; UnsupportedSource for another layout."""
    found = []
    for number, (place, row) in enumerate(read_rows(path), start=1):
        text = need(place, row, "document", str)
        requests = tuple(_requests(place, row))
        if not text.strip() or any(not told.strip() for request in requests for told in request.summaries):
            raise UnsupportedSource(f"{place} has a blank document or summary; leave it out")
        found.append(Document(title_of(row, number), text, requests, tuple(text.split(SEPARATOR))))
    return found


def _requests(place: str, row: Row) -> Iterator[Request]:
    if "questions" in row:
        asked = need(place, row, "questions", list, dict)
        whole, about = asked[:1], asked[1:]
    else:
        whole = need(place, row, "general", list, dict)
        about = need(place, row, "specific", list, dict) if row.get("specific") else []
    for request in whole:
        yield Request(None, _summaries(place, request))
    for request in about:
        yield Request(need(place, request, "question", str), _summaries(place, request))


def _summaries(place: str, request: Row) -> tuple[str, ...]:
    if "summaries" in request:
        return tuple(need(place, request, "summaries", list, str))
    return (need(place, request, "summary", str),)
