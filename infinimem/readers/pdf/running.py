"""Running lines of PDF pages: headers and footers that pages repeat.

- a page number is left out
- of all other running lines each wording stays once, where it comes first: it may hold what no other line says, as a
  contract number, a date, the names of a table's columns or the title do
- a line in larger letters than the text around it is a title, and stays on every page, as the head of a table does
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from .layout import Line
from .side_by_side import is_table_head

_ROMAN = re.compile(r"[ivxlc]{1,7}", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,9}")
# A number after such a word is a fact, and no page number, even where it counts as the pages do.
_LABEL = re.compile(r"(?:\b(?:no|nr|num|number|n[ºo°]|id|ref|code)\b\.?|[:#№])\s*\W?$", re.IGNORECASE)
_EDGE_LINES = 3
_TITLE = 1.2  # times the size of the text
_MOST_KEPT = 10_000  # wordings

Neighbours = Iterable[tuple[int, Sequence[Line]]]


class RunningLines:
    """Takes running lines out of the pages of one document, which come in order.

    left_out: how many page numbers and running lines were taken out of the last page.
    label: the number that is printed on the last page; None where there is none, or where it is the page's own.
    """

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self.label: str | None = None
        self._kept: dict[str, None] = {}

    def without(self, page: int, lines: list[Line], neighbours: Neighbours) -> list[Line]:
        """The lines of a page without page numbers, and without running lines that stand on a page before.

        A header or footer is an edge line that a neighbouring page repeats at the same height.

        page: number of the page.
        neighbours: numbers and lines of the pages around it.
        """
        running = _running(page, lines, neighbours)
        printed = next(filter(None, (number for _, number in running.values())), None)
        self.left_out, self.label = Counter(), None if printed == str(page) else printed
        # Where every line looks like a header, no line is a header.
        if len(running) == len(lines):
            return lines
        usual = _usual_size(line for line in lines if id(line) not in running)
        return [
            line
            for line in lines
            if id(line) not in running or is_table_head(line, lines) or self._stays(line, running[id(line)][0], usual)
        ]

    def _stays(self, line: Line, wording: str, usual: float) -> bool:
        if not any(letter.isalnum() for letter in wording.replace("\0", "")) or _is_word_for_page(wording):
            self.left_out["page numbers"] += 1
            return False
        if line.size >= _TITLE * usual:
            return True
        first = wording not in self._kept
        self._kept[wording] = None
        if len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        self.left_out["running lines"] += not first
        return first


def _running(page: int, lines: list[Line], neighbours: Neighbours) -> dict[int, tuple[str, str | None]]:
    """The running lines by `id`, each with its wording and page number, as `_wording` gives them."""
    seen: dict[str, list[tuple[int, Line]]] = {}
    for number, others in neighbours:
        for edge in _edges(others):
            for line in edge:
                seen.setdefault(_mask(line.text), []).append((number, line))
    running: dict[int, tuple[str, str | None]] = {}
    for edge in _edges(lines):
        for place, line in enumerate(edge):
            same = [other for number, other in seen.get(_mask(line.text), ()) if _runs(line, page, other, number)]
            if not same and not (place == 0 and _is_page_number(line.text.strip("-–— "), page)):
                # All lines further in than a line of text are text.
                break
            running[id(line)] = _wording(line.text, page, same)
    return running


def _edges(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the first and the last lines of a page, from the outside in: in the order on paper and in the file.

    The order in the file counts too, because the place of text inside a drawing is not always known.
    """
    upright = [line for line in lines if line.upright]
    ordered = sorted(upright, key=lambda line: -line.y)
    return [edge[:_EDGE_LINES] for edge in (ordered, ordered[::-1], upright, upright[::-1])]


def _mask(text: str) -> str:
    if _ROMAN.fullmatch(text):
        return "0"
    return re.sub(r"\d+", "0", re.sub(r"\s+", " ", text)).lower()


def _runs(line: Line, page: int, other: Line, number: int) -> bool:
    """Tell whether lines of two pages are one header or footer: their numbers are equal, or differ as the pages do."""
    pairs = zip(_NUMBER.findall(line.text), _NUMBER.findall(other.text), strict=False)
    counts = all(mine == theirs or int(mine) - int(theirs) == page - number for mine, theirs in pairs)
    return counts and abs(line.y - other.y) < 3


def _wording(text: str, page: int, others: Sequence[Line]) -> tuple[str, str | None]:
    """The text, with a zero byte for each number that counts pages, and the first of these numbers."""
    alone = text.strip("-–— ")
    if _is_page_number(alone, page) or _ROMAN.fullmatch(text):
        return "\0", alone
    counting: list[str] = []
    found: list[list[str]] = [_NUMBER.findall(other.text) for other in others]
    numbers = iter(range(len(_NUMBER.findall(text))))

    def masked(match: re.Match[str]) -> str:
        place = next(numbers)
        constant = all(match.group() == theirs[place] for theirs in found if len(theirs) > place)
        if constant or _LABEL.search(text[: match.start()]):
            return match.group()
        counting.append(match.group())
        return "\0"

    return re.sub(r"\s+", " ", _NUMBER.sub(masked, text)).lower(), next(iter(counting), None)


def _is_page_number(text: str, page: int) -> bool:
    return text == str(page) or (len(text) > 1 and text.islower() and _ROMAN.fullmatch(text) is not None)


def _is_word_for_page(wording: str) -> bool:
    """Tell whether a wording is "page 3", "3 of 12" or the like, and nothing else."""
    words = re.findall(r"[^\W\d_]+", wording)
    return "\0" in wording and set(words) <= {"page", "p", "pp", "pg", "of", "seite", "von", "página", "de", "sur", "s"}


def _usual_size(lines: Iterable[Line]) -> float:
    sizes: Counter[float] = Counter()
    for line in lines:
        sizes[line.size] += len(line.text)
    return sizes.most_common(1)[0][0] if sizes else 0.0
