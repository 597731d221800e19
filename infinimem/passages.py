"""Passages: pieces of the document that answers are built on and cite.

- cut while the text streams by, at paragraph, sentence or word borders, at most 800 characters each
- a passage never crosses a page, so its page number is exact; its span counts characters of the source's text
- cuts depend on the text alone, not on how it arrives; the unfinished rest can be looked at without closing it
"""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from . import strict_json
from .errors import DamagedMemoryFile
from .readers.prose import border

LIMIT = 800  # characters
LONGEST_PENDING = LIMIT + LIMIT // 2
MAX_PASSAGE_BYTES = 1 << 30  # a passage table that unpacks to more is refused
LONGEST_ROW = 1 << 20  # characters of JSON
MAX_PASSAGES = 1 << 21
MAX_TITLES = 1 << 24  # characters of all titles together
PIECE = 1 << 16  # bytes that are unpacked at once


@dataclass(frozen=True)
class Passage:
    """A piece of a source: its text, where it stands, and how well it fits a query.

    start, end: characters of the source's text. score: set by a search, higher is better; 0 otherwise.
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
        """What stands between two characters of this passage's text."""
        return replace(self, text=self.text[start:end], start=self.start + start, end=self.start + end)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass
class PassageCutter:
    """Cuts one source at a time into passages.

    `pending` is the text since the last cut, which starts at character `offset` of the source.
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
        """Passages of the pending text; what follows belongs to another page."""
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
    """The passages of one text without pages, as reading it cuts them."""
    cutter = PassageCutter()
    cutter.open(source)
    return cutter.feed(text) + cutter.end_page()


def holding(passages: Sequence[Passage], spans: Sequence[tuple[int, int]], answers: Sequence[str]) -> list[int]:
    """Indexes of the passages in these spans of characters that hold an answer; all there if none does literally."""
    inside = [i for i, p in enumerate(passages) if any(p.start < end and start < p.end for start, end in spans)]
    return [i for i in inside if any(answer in passages[i].text for answer in answers)] or inside


def pack(passages: Sequence[Passage]) -> np.ndarray:
    """Passages as one array of compressed bytes, (N,) uint8."""
    rows = [[p.source, p.page, p.title, p.start, p.end, p.text] for p in passages]
    data = zlib.compress(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode(), 6)
    return np.frombuffer(data, dtype=np.uint8)


def unpack(array: np.ndarray, sources: Sequence[tuple[str, int]]) -> list[Passage]:
    """The passages of `pack`, read row by row. sources: name and characters of each, in reading order.

    Raises DamagedMemoryFile for anything else: passages stand one after the other in what the file says was read.
    What a file may say is bounded too: MAX_PASSAGES, MAX_PASSAGE_BYTES, MAX_TITLES.
    """
    passages: list[Passage] = []
    titles: dict[str, str] = {}
    room, number, at = MAX_TITLES, 0, 0
    try:
        for row in _rows(_unpacked(array)):
            passage = _passage(*row)
            while number < len(sources) and (passage.source != sources[number][0] or passage.start < at):
                number, at = number + 1, 0
            if number == len(sources) or passage.end > sources[number][1]:
                raise ValueError("a row is no passage of what was read")
            at, title = passage.end, passage.title
            if title is not None and title not in titles:
                room -= len(title)
                titles[title] = title
            if room < 0 or len(passages) == MAX_PASSAGES:
                raise ValueError("they are too many, or have too long titles")
            shared = None if title is None else titles[title]
            passages.append(replace(passage, source=sources[number][0], title=shared))
    except (zlib.error, ValueError, TypeError) as error:
        raise DamagedMemoryFile(
            f"the passages in the memory file cannot be unpacked ({error}); make it again"
        ) from error
    return passages


def _passage(source: Any, page: Any, title: Any, start: Any, end: Any, text: Any) -> Passage:
    """A row of the table; ValueError where it is none that cutting makes."""
    texts = isinstance(source, str) and isinstance(text, str) and (title is None or isinstance(title, str))
    numbers = all(type(number) is int and 0 <= number < 1 << 53 for number in (page, start, end))
    if not texts or not numbers or end - start != len(text) or not 0 < len(text) <= LIMIT:
        raise ValueError("a row is no passage")
    return Passage(text, source, page, start, end, title)


def _rows(pieces: Iterator[str]) -> Iterator[list[Any]]:
    """The rows of a table in JSON as `pack` writes it, each as soon as it is there. Raises ValueError."""
    text, at = "", 0

    def next_character() -> str:
        nonlocal text, at
        while at == len(text):
            text, at = next(pieces), 0
        at += 1
        return text[at - 1]

    try:
        if next_character() != "[":
            raise ValueError("they are no table")
        mark = next_character()
        if mark != "]":
            at -= 1
        while mark != "]":
            row = None
            while row is None:
                try:
                    row, at = strict_json.parse_start(text, at)
                except ValueError:
                    if len(text) - at > LONGEST_ROW:
                        raise
                    text, at = text[at:] + next(pieces), 0
            if not isinstance(row, list):
                raise ValueError("they are no table")
            yield row
            mark = next_character()
            if mark not in ",]":
                raise ValueError("they are no table")
    except StopIteration:
        raise ValueError("they are cut off") from None
    if at < len(text) or next(pieces, None) is not None:
        raise ValueError("something comes after the last row")


def _unpacked(array: np.ndarray) -> Iterator[str]:
    """The compressed text in pieces, so that it is never there as a whole. Raises ValueError and zlib.error."""
    expand, decode = zlib.decompressobj(), codecs.getincrementaldecoder("utf-8")()
    data, taken, total = memoryview(array.tobytes()), 0, 0
    while not expand.eof:
        rest = expand.unconsumed_tail
        if not rest:
            rest, taken = bytes(data[taken : taken + PIECE]), taken + PIECE
        piece = expand.decompress(rest, PIECE)
        total += len(piece)
        if total > MAX_PASSAGE_BYTES or not (piece or expand.eof or taken < len(data)):
            raise ValueError("they are cut off or too large")
        if text := decode.decode(piece):
            yield text
    decode.decode(b"", final=True)
    if expand.unused_data or taken < len(data):
        raise ValueError("something comes after them")
