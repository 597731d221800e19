"""Passages: pieces of the document that answers are built on and cite.

- cut while the text streams by, at paragraph, sentence or word borders, at most 800 characters each
- a passage never crosses a page, so its page number is exact; its span counts characters of the source's text
- cuts depend on the text alone, not on how it arrives; `rest` gives the passages of unfinished text and leaves it open
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .sentences import border

LIMIT = 800  # characters
LONGEST_PENDING = LIMIT + LIMIT // 2


@dataclass(frozen=True)
class Passage:
    """A piece of a source: its text, where it stands, and how well it fits a query.

    page: number of the page, counted from 1.
    start, end: place in the source's text, in characters.
    title: title of the page; None where the page has no title.
    score: set by a search, higher is better; 0 otherwise.
    """

    text: str
    source: str
    page: int
    start: int
    end: int
    title: str | None = None
    score: float = 0.0

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

    def open(self, source: str) -> None:
        """Begin a new source; the one before must be closed by `end_page`."""
        self.source, self.page, self.title, self.offset, self.pending = source, 1, None, 0, ""

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
        return [Passage(text, self.source, self.page, start, start + len(text), self.title)]


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
