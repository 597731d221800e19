"""Passages: pieces of the document that answers are built on and cite.

- cut while the text streams by, at paragraph, sentence or word borders, at most 800 characters each
- a passage never crosses a page or a heading, so its page and title are exact; its span counts characters of the
  source's text
- cuts depend on the text alone, not on how it arrives; `rest` gives the passages of unfinished text and leaves it open
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .sentences import border

LIMIT = 800  # characters
LONGEST_PENDING = LIMIT + LIMIT // 2
_UNITS = {"pptx": "slide", "xlsx": "sheet"}
_UNITS |= dict.fromkeys(("docx", "epub", "html", "mail", "markdown", "notebook", "odt", "rtf"), "section")


def unit_of(kind: str) -> str:
    """What a numbered piece of a document of this kind is: "page", "section", "slide" or "sheet"."""
    return _UNITS.get(kind, "page")


@dataclass(frozen=True)
class Passage:
    """A piece of a source: its text, where it stands, and how well it fits a query.

    page: number of the page, or other piece of the document, counted from 1.
    start, end: place in the source's text, in characters.
    title: title of the chapter or section; None where there is no title.
    score: set by a search, higher is better; 0 otherwise.
    label: number that is printed on the page; None where none is known, or where it is `page`.
    unit: what the number counts: "page", "section", "slide" or "sheet".
    """

    text: str
    source: str
    page: int
    start: int
    end: int
    title: str | None = None
    score: float = 0.0
    label: str | None = None
    unit: str = "page"

    @property
    def place(self) -> str:
        """Where the passage stands in its source, in words: "page 9 (printed 3), Inks" or "section 'Inks'"."""
        if self.unit == "section":
            # A document without pages has no numbers that a person could look for.
            return f"section '{self.title}'" if self.title else f"section {self.page}"
        printed = f" (printed {self.label})" if self.label else ""
        return f"{self.unit} {self.page}{printed}" + (f", {self.title}" if self.title else "")

    def scored(self, score: float) -> Passage:
        """The same passage with a score."""
        return replace(self, score=score)

    def part(self, start: int, end: int) -> Passage:
        """The part of this passage between two characters of its text."""
        return replace(self, text=self.text[start:end], start=self.start + start, end=self.start + end)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass
class PassageCutter:
    """Cuts one source at a time into passages.

    pending: the text since the last cut.
    offset: the character of the source at which `pending` starts.
    """

    source: str = ""
    page: int = 1
    title: str | None = None
    offset: int = 0
    pending: str = ""
    label: str | None = None
    unit: str = "page"

    def open(self, source: str, unit: str = "page") -> None:
        """Begin a new source; the one before must be closed by `end_page`."""
        self.source, self.unit, self.offset, self.pending = source, unit, 0, ""
        self.begin_page(1)

    def begin_page(self, page: int, title: str | None = None, label: str | None = None) -> None:
        """Begin a page; the one before must be closed by `end_page`."""
        self.page, self.title, self.label = page, title, label

    def feed(self, text: str) -> list[Passage]:
        """Passages that this text completes."""
        self.pending += text
        done = []
        while len(self.pending) >= LONGEST_PENDING:
            done += self._take(border(self.pending[: LIMIT + 1], LIMIT))
        return done

    def rest(self) -> list[Passage]:
        """Passages of the pending text, which stays pending."""
        return replace(self).end_page()

    def end_page(self) -> list[Passage]:
        """Passages of the pending text; text that follows belongs to another page."""
        done = []
        while len(self.pending.rstrip()) > LIMIT:
            # Two even pieces read better than a full one and a scrap.
            limit = min(LIMIT, int(len(self.pending) * 0.6))
            done += self._take(border(self.pending[: limit + 1], limit))
        return done + self._take(len(self.pending))

    def _take(self, length: int) -> list[Passage]:
        piece, self.pending = self.pending[:length], self.pending[length:]
        text = piece.strip()
        start = self.offset + (len(piece) - len(piece.lstrip()))
        self.offset += length
        if not text:
            return []
        end = start + len(text)
        return [Passage(text, self.source, self.page, start, end, self.title, label=self.label, unit=self.unit)]


def cut(text: str, source: str) -> list[Passage]:
    """The passages of one text without pages, cut as ingestion cuts them."""
    cutter = PassageCutter()
    cutter.open(source)
    return cutter.feed(text) + cutter.end_page()


def holding(passages: Sequence[Passage], spans: Sequence[tuple[int, int]], answers: Sequence[str]) -> list[int]:
    """Indexes of the passages that overlap the spans and contain an answer literally.

    spans: (start, end) in the source's text, in characters.

    Where no passage contains an answer literally: indexes of all passages that overlap the spans.
    """
    inside = [i for i, p in enumerate(passages) if any(p.start < end and start < p.end for start, end in spans)]
    return [i for i in inside if any(answer in passages[i].text for answer in answers)] or inside
