"""The passages of a memory file as one array of compressed bytes, read row by row and checked."""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import DamagedMemoryFile
from ..text.passages import LIMIT, Passage, unit_of
from . import strict_json

MAX_PASSAGE_BYTES = 1 << 30  # a passage table that unpacks to more is refused
LONGEST_ROW = 1 << 20  # characters of JSON
MAX_PASSAGES = 1 << 21
MAX_TITLES = 1 << 24  # characters of all titles and labels together
PIECE = 1 << 16  # bytes that are unpacked at once


def pack(passages: Sequence[Passage]) -> np.ndarray:
    """Passages as one array of compressed bytes, (N,) uint8."""
    rows = [[p.source, p.page, p.title, p.start, p.end, p.text, *([p.label] if p.label else [])] for p in passages]
    data = zlib.compress(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode(), 6)
    return np.frombuffer(data, dtype=np.uint8)


def unpack(array: np.ndarray, sources: Sequence[tuple[str, str, int]]) -> list[Passage]:
    """The passages of an array that `pack` made, read row by row.

    array: (N,) uint8.
    sources: (name, kind, number of characters) of each source, in the order of ingestion.

    Raises DamagedMemoryFile where `pack` did not make the array, where passages overlap, are out of order or lie
    outside the sources, and where they exceed MAX_PASSAGES, MAX_PASSAGE_BYTES or MAX_TITLES.
    """
    passages: list[Passage] = []
    titles: dict[str, str] = {}
    room, number, at = MAX_TITLES, 0, 0
    try:
        for row in _rows(_unpacked(array)):
            passage = _passage(*row)
            while number < len(sources) and (passage.source != sources[number][0] or passage.start < at):
                number, at = number + 1, 0
            if number == len(sources) or passage.end > sources[number][2]:
                raise ValueError("a row is no passage of what was read")
            at = passage.end
            for text in (passage.title, passage.label):
                if text is not None and text not in titles:
                    room -= len(text)
                    titles[text] = text
            if room < 0 or len(passages) == MAX_PASSAGES:
                raise ValueError("they are too many, or have too long titles")
            title, label = (None if text is None else titles[text] for text in (passage.title, passage.label))
            name, kind, _ = sources[number]
            passages.append(replace(passage, source=name, title=title, label=label, unit=unit_of(kind)))
    except (zlib.error, ValueError, TypeError) as error:
        raise DamagedMemoryFile(
            f"the passages in the memory file cannot be unpacked ({error}); ingest the document again"
        ) from error
    return passages


def _passage(source: Any, page: Any, title: Any, start: Any, end: Any, text: Any, label: Any = None) -> Passage:
    """The passage of one row. Raises ValueError where the row is no passage that `PassageCutter` makes."""
    texts = isinstance(source, str) and isinstance(text, str)
    texts = texts and all(one is None or isinstance(one, str) for one in (title, label))
    numbers = all(type(number) is int and 0 <= number < 1 << 53 for number in (page, start, end))
    if not texts or not numbers or end - start != len(text) or not 0 < len(text) <= LIMIT:
        raise ValueError("a row is no passage")
    return Passage(text, source, page, start, end, title, label=label)


def _rows(pieces: Iterator[str]) -> Iterator[list[Any]]:
    """Yield the rows of a JSON table that `pack` wrote, each as soon as it is complete. Raises ValueError."""
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
    """Yield the unpacked text in pieces, so that it is never in memory as a whole. Raises ValueError and zlib.error."""
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
