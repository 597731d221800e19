"""What a PDF says about itself outside its pages: outline, printed page numbers, title, author, date and language."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pypdf.generic import Destination, FloatObject

from ..about import about
from ..prose import tidy

if TYPE_CHECKING:
    from pypdf import PdfReader

    from .layout import Block

_NUMBERING = re.compile(r"(?:(?:chapter|section|part|appendix)\s+)?[\divxlc]{1,6}(?:\.\d+)*[.:)]?\s+", re.IGNORECASE)
_MOST_ENTRIES = 100_000


@dataclass(frozen=True, slots=True)
class Heading:
    """An entry of the outline. top: where it leads to, in points from the bottom of the page; None for the page."""

    page: int
    title: str
    top: float | None


@contextlib.contextmanager
def _whatever_is_broken() -> Iterator[None]:
    """A parser can fail in any way on broken parts beside the pages; the pages can be read without them."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception:
        return


def headings_of(reader: PdfReader) -> list[Heading]:
    """The entries of the outline that lead to a page, in the order of the pages."""
    found: list[Heading] = []
    with _whatever_is_broken():
        waiting: list[Any] = list(reversed(reader.outline))
        while waiting and len(found) < _MOST_ENTRIES:
            entry = waiting.pop()
            if isinstance(entry, list):
                waiting.extend(reversed(entry))
            elif isinstance(entry, Destination):
                index = reader.get_destination_page_number(entry)
                title = tidy(str(entry.title or "")).replace("\n", " ")
                top = entry.get("/Top")
                if index is not None and index >= 0 and title:
                    found.append(Heading(index + 1, title, float(top) if isinstance(top, FloatObject | int) else None))
    return sorted(found, key=lambda heading: heading.page)


def places_of(headings: Sequence[Heading], blocks: Sequence[Block], starts: Sequence[int]) -> list[tuple[int, str]]:
    """(character of the page's text, title) of the headings of a page, in order; of several at one place, the last.

    blocks: paragraphs of the page, in reading order.
    starts: the character of the text at which each of them starts.

    A heading stands where its words are printed; else at the place on the page that the outline names.
    """
    places: dict[int, str] = {}
    after = 0
    for heading in headings:
        number = _printed(heading.title, blocks, after)
        if number is None:
            number = _below(heading.top, blocks)
        else:
            after = number
        places[starts[number] if number < len(starts) else 0] = heading.title
    return sorted(places.items())


def _printed(title: str, blocks: Sequence[Block], after: int) -> int | None:
    """Index of the first block from `after` on that begins with the words of a title; None where there is none."""
    wanted = _letters(title)
    bare = _letters(_NUMBERING.sub("", title, count=1))
    for number in range(after, len(blocks)):
        text = " ".join(line.text for line in blocks[number].lines[:4])
        # A paragraph may begin with a word that is also a title; a title is a line of its own.
        if len(text) <= 2 * len(title) + 20 and (_letters(text).startswith(wanted) or _letters(text) == bare):
            return number
    return None


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _below(top: float | None, blocks: Sequence[Block]) -> int:
    """Index of the first block that stands below a height of the page."""
    if top is None:
        return 0
    return next((number for number, block in enumerate(blocks) if block.lines[0].y <= top), 0)


def labels_of(reader: PdfReader) -> dict[int, str]:
    """Page to the number that is printed on it, where the file names it and it is another one."""
    with _whatever_is_broken():
        if "/PageLabels" in reader.root_object:
            labels = enumerate(reader.page_labels, start=1)
            return {page: tidy(label) for page, label in labels if tidy(label) not in ("", str(page))}
    return {}


def about_of(reader: PdfReader) -> dict[str, str]:
    """The fields of the document's information, or of its XMP where the information says nothing."""
    found: dict[str, Any] = {}
    with _whatever_is_broken():
        found["language"] = reader.root_object.get("/Lang")
    with _whatever_is_broken():
        information: Any = reader.metadata or {}
        for name, key in (("title", "/Title"), ("author", "/Author"), ("date", "/CreationDate")):
            found[name] = information.get(key)
    known = about(**found)
    with _whatever_is_broken():
        if {"title", "author", "date"} <= set(known):
            return known
        xmp: Any = reader.xmp_metadata
        if xmp is not None:
            titles, date = xmp.dc_title or {}, (xmp.dc_date or [xmp.xmp_create_date])[:1]
            title = titles.get("x-default") or next(iter(titles.values()), None)
            known = about(title=title, author=xmp.dc_creator, date=date, language=xmp.dc_language) | known
    return known
