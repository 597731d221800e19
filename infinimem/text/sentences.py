"""Sentences: where they begin and end, and where a text is best cut."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][」』”’）]*")
CELLS = " | "
"""What stands between the cells of a table's row."""

SPACE = re.compile(r"\s+")
# Rows of a table, as the readers write them, and the white space after them; or the end of a sentence. A line alone is
# no table: formulas have such strokes too.
_ROW = r"[^\n]* \| [^\n]*"
_ROWS_OR_END = re.compile(rf"^(?P<rows>{_ROW}(?:\n{_ROW})+)(?:\n\s*|\Z)|{SENTENCE_END.pattern}", re.MULTILINE)


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of every sentence, in characters; together they are the text without the white space after each.

    The rows of a part of a table are one sentence: its first row may hold the names of the columns. Returns at least
    one sentence.
    """
    ends: list[int] = []
    for match in _ROWS_OR_END.finditer(text):
        if match["rows"] is not None and match.start() > (ends[-1] if ends else 0):
            ends.append(match.start())
        ends.append(match.end())
    ends += [len(text)] if not ends or text[ends[-1] :].strip() else []
    return [(start, start + len(text[start:end].rstrip())) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def around(borders: Sequence[tuple[int, int]], number: int) -> tuple[int, int]:
    """(start, end) of sentence `number` with the sentences before and after it; borders: the result of `sentences`."""
    return borders[max(0, number - 1)][0], borders[min(len(borders) - 1, number + 1)][1]


def border(window: str, limit: int) -> int:
    """The best place to cut `window`, at most `limit` characters from its start.

    That is after the last paragraph, else line, else sentence that ends beyond half of `limit`; else after the last
    word; else at `limit`, or before it where the cut would separate combining characters from their letter.
    """
    half = limit // 2
    for mark in ("\n\n", "\n"):
        found = window.rfind(mark, half, limit)
        if found != -1:
            return found + len(mark)
    ends = [match.end() for match in SENTENCE_END.finditer(window, half) if match.end() <= limit]
    if ends:
        return ends[-1]
    spaces = [match.end() for match in SPACE.finditer(window) if match.start() > 0 and match.start() <= limit]
    if spaces:
        return min(spaces[-1], limit)
    end = limit
    while end > half and unicodedata.combining(window[end]):
        end -= 1
    return end
