"""The lines of a PDF page: where they stand, and which belong together."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..prose import is_list_item
from ..raised import lowered, raised

_REFERENCE = re.compile(r"\s*\[[\w+.,\- ]{1,12}\]\s+\S")
_ENDS = re.compile(r"[.!?:…。！？][\"'”’»)\]*†‡\d]*$")
_BROKEN = re.compile(r"[^\W\d_][-\u2010\u00ad]$")
_LEADERS = re.compile(r"(?:\s?[.·]){4,}")
_CONTENTS = re.compile(r"\d{1,2}(?:\.\d{1,2}){0,3}\.?\s+[^\W\d_].{0,80}\s\d{1,4}")
_BOLD = re.compile(r"bold|medi|black|heavy|cmbx|sfbx", re.IGNORECASE)
_MONO = re.compile(r"mono|courier|consol|typewriter|cmtt|sftt|nimbusmon|menlo", re.IGNORECASE)
_CODE = re.compile(r"[;{}=<>\[\]#$|\\]|\(\)|//")
_HEADING_NUMBER = re.compile(r"(?:\d{1,2}(?:\.\d{1,2}){0,3}\.?|[A-Z](?:\.\d{1,2})+|[IVX]+\.)\s+[^\W\d_]")

# An index or exponent is at most this much of the size of its line, and at most this long.
_SMALL, _LONGEST_SMALL = 0.8, 8
_SHOW = frozenset({b"Tj", b"TJ", b"'", b'"'})


@dataclass(slots=True)
class Line:
    """One printed line.

    x, y: where the line starts, in points from the lower left corner of the page.
    size: height of most of its letters, in points.
    upright: False where the text runs up or down the page.
    kind: "prose"; or "code" or "row" (of a table, or of a table of contents), which must not be joined to other lines.
    """

    text: str
    x: float
    y: float
    size: float
    bold: bool = False
    upright: bool = True
    kind: str = "prose"


@dataclass(slots=True)
class _Small:
    """Small letters, higher or lower than the others: how they are written, and the fragments from `place` on."""

    write: Callable[[str, str], str] | None
    before: str
    place: int
    text: str


class LineCollector:
    """Receives the fragments of a page from pypdf and joins them into lines."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._parts: list[str] = []
        self._sizes: Counter[float] = Counter()
        self._bold = 0
        self._mono = 0
        self._start: tuple[float, bool] | None = None
        self._heights: dict[float, float] = {}
        self._base: tuple[float, float] | None = None  # size and height of the letters before, but for small ones
        self._small: _Small | None = None  # the small letters that the last fragment belongs to
        self._rise = self._shown = 0.0  # by a text operator: now, and of the last text that was shown

    def add(
        self,
        text: str,
        user: Sequence[float],
        matrix: Sequence[float],
        font: dict[str, object] | None,
        size: float,
    ) -> None:
        """Take a fragment; the arguments are those of pypdf's `visitor_text`."""
        for number, part in enumerate(text.split("\n")):
            if number:
                self.end_line()
            if part.strip():
                across = matrix[0] * user[0] + matrix[1] * user[2], matrix[0] * user[1] + matrix[1] * user[3]
                upward = matrix[2] * user[0] + matrix[3] * user[2], matrix[2] * user[1] + matrix[3] * user[3]
                if self._start is None:
                    x = matrix[4] * user[0] + matrix[5] * user[2] + user[4]
                    self._start = x, abs(across[0]) >= abs(across[1])
                letters = len(part.strip())
                points = round(abs(size) * math.hypot(*upward), 1)
                self._sizes[points] += letters
                # An index or exponent stands higher or lower than the line that it belongs to.
                height = matrix[4] * user[1] + matrix[5] * user[3] + user[5]
                self._heights.setdefault(points, height)
                name = str((font or {}).get("/BaseFont", ""))
                self._bold += letters if _BOLD.search(name) else 0
                self._mono += letters if _MONO.search(name) else 0
                part = self._apart(part, points, height + self._shown * math.hypot(*upward))
            elif self._small is not None:
                self._small.text += part
            self._parts.append(part)

    def operate(self, operator: bytes, operands: Sequence[object], *_: object) -> None:
        """Take an operator of the page; the arguments are those of pypdf's `visitor_operand_before`."""
        if operator == b"Ts" and operands and isinstance(operands[0], (int, float)):
            self._rise = float(operands[0])
        elif operator in _SHOW:
            self._shown = self._rise

    def _apart(self, part: str, points: float, height: float) -> str:
        """Keep an index, an exponent or the mark of a note apart from the number or word before it."""
        base = self._base
        if base is None or not 0 < points <= _SMALL * base[0] or len(part.strip()) > _LONGEST_SMALL:
            part = " " + part if self._small and self._small.text[-1:].isdigit() and part[0].isdigit() else part
            self._base, self._small = (points, height), None
            return part
        rise = (height - base[1]) / base[0]
        # Small letters at the height of others may be small capitals.
        write = lowered if rise < -0.05 else raised if rise > 0.05 else None
        if self._small is None or self._small.write is not write:
            self._small = _Small(write, "".join(self._parts[-8:])[-64:], len(self._parts), "")
        small = self._small
        small.text += part
        if write is None or not small.before or small.before[-1].isspace() or not -1 < rise < 1:
            return part
        del self._parts[small.place :]
        return write(small.before, small.text) + (" " if part.endswith(" ") else "")

    def end_line(self) -> None:
        """Close the line that is being collected."""
        text = "".join(self._parts).strip()
        if text and self._start is not None:
            x, upright = self._start
            letters = sum(self._sizes.values())
            size = self._sizes.most_common(1)[0][0]
            kind = "code" if self._mono * 10 > letters * 7 else "prose"
            self.lines.append(Line(text, x, self._heights[size], size, self._bold * 10 > letters * 9, upright, kind))
        self._parts, self._sizes, self._bold, self._mono = [], Counter(), 0, 0
        self._start, self._heights = None, {}
        self._base = self._small = None


@dataclass(slots=True)
class Block:
    """The lines of one paragraph, heading or caption."""

    lines: list[Line]

    @property
    def size(self) -> float:
        """The height of most of its letters, in points."""
        sizes: Counter[float] = Counter()
        for line in self.lines:
            sizes[line.size] += len(line.text)
        return sizes.most_common(1)[0][0]

    @property
    def kind(self) -> str:
        """The kind of its lines."""
        return self.lines[0].kind


def blocks_of(lines: Sequence[Line]) -> list[Block]:
    """Group the lines of a page into blocks in reading order."""
    upright = [line for line in lines if line.upright]
    turned = [line for line in lines if not line.upright]
    _mark_kinds(upright)
    return _with_labels_together(_past_floats([*_grouped(upright), *_grouped(turned)]))


def _mark_kinds(lines: Sequence[Line]) -> None:
    """Mark lines that must not be joined: one line of code or of numbers may be chance, two in a row are not."""
    mono = [line for line in lines if line.kind == "code"]
    signs = sum(1 for line in mono if _CODE.search(line.text))
    # A typescript is printed in a typewriter font throughout, but is prose.
    typescript = len(mono) * 2 > len(lines) and signs * 3 < len(mono)
    kinds = [
        line.kind if line.kind == "row" or (line.kind == "code" and not typescript) else _row_or_prose(line.text)
        for line in lines
    ]
    for number, line in enumerate(lines):
        near = kinds[max(0, number - 1) : number] + kinds[number + 1 : number + 2]
        line.kind = kinds[number] if kinds[number] in near else "prose"


def _row_or_prose(text: str) -> str:
    return "row" if _is_row(text) else "prose"


def _is_row(text: str) -> bool:
    if _LEADERS.search(text) or _CONTENTS.fullmatch(text):
        return True
    cells = text.split()
    numbers = sum(1 for cell in cells if any(letter.isdigit() for letter in cell))
    return numbers > 2 and numbers * 2 >= len(cells)


def _grouped(lines: Sequence[Line]) -> list[Block]:
    if not lines:
        return []
    page = _Measures(lines)
    blocks = [Block([lines[0]])]
    for number in range(1, len(lines)):
        if page.is_border(number):
            blocks.append(Block([]))
        blocks[-1].lines.append(lines[number])
    return blocks


def _with_labels_together(blocks: list[Block]) -> list[Block]:
    """Collect labels of a drawing or pieces of a formula, which would otherwise be paragraphs of one word each."""
    merged: list[Block] = []
    run: list[Block] = []
    for block in [*blocks, Block([])]:
        if block.lines and block.kind == "prose" and all(_is_label(line) for line in block.lines):
            run.append(block)
            continue
        if len(run) > 2:
            lines = [line for part in run for line in part.lines]
            for line in lines:
                line.kind = "row"
            run = [Block(lines)]
        merged += run
        run = []
        if block.lines:
            merged.append(block)
    return merged


def _is_label(line: Line) -> bool:
    return len(line.text) < 25 and not line.text.endswith((".", ":", "?", "!")) and not is_list_item(line.text)


class _Measures:
    """The usual line spacing and line length of a page, from which a border between paragraphs differs."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines
        steps: dict[float, list[float]] = {}
        lengths: dict[float, list[int]] = {}
        for first, second in pairwise(lines):
            step = first.y - second.y
            if first.size == second.size and 0.5 * first.size < step < 3 * first.size:
                steps.setdefault(first.size, []).append(step)
        for line in lines:
            lengths.setdefault(line.size, []).append(len(line.text))
        # The lower third, not the median: a page of short paragraphs has as many gaps between paragraphs as lines.
        self._step = {size: sorted(found)[len(found) // 3] for size, found in steps.items()}
        self._length = {size: sorted(found)[int(len(found) * 0.8)] for size, found in lengths.items()}

    def is_border(self, number: int) -> bool:
        """Tell whether a new block starts at line `number`."""
        before, line = self._lines[number - 1], self._lines[number]
        if before.kind != line.kind:
            return True
        if line.kind != "prose":
            return before.y - line.y > 4 * line.size
        if _BROKEN.search(before.text) and line.text[0].isalpha():
            # A broken word goes on, whatever the layout looks like; a float may stand between its halves.
            return abs(before.size - line.size) > 0.08 * before.size
        if abs(before.size - line.size) > 0.08 * max(before.size, line.size):
            return not (before.text[-1:].islower() and line.text[0].islower() and self._below(before, line))
        step = before.y - line.y
        usual = self._step.get(line.size, 1.3 * line.size)
        full = self._is_full(before)
        ended = _ENDS.search(before.text) is not None
        if step > 1.25 * usual + 0.5:
            return True
        if before.bold and not line.bold and not full:
            return True
        if line.bold and not before.bold and (_HEADING_NUMBER.match(line.text) or ended) and not full:
            return True
        if step < -line.size:
            # Top of the next column: the paragraph goes on unless something says that it does not.
            return (ended and (not full or self._starts(number))) or (line.text[0].isupper() and not full)
        shift = line.x - before.x
        if _REFERENCE.match(line.text) or is_list_item(line.text):
            return ended or not full or abs(shift) > 0.3 * line.size
        if self._starts_item(before):
            return not full and ended and shift < 0.3 * line.size
        if self._hangs(number):
            return shift < -0.5 * line.size and (ended or not full)
        if 0.5 * line.size < shift < 5 * line.size:
            return ended or not full
        if shift < -0.5 * line.size and not full and not ended:
            return False
        return ended and not full and (line.text[0].isupper() or not line.text[0].isalpha())

    def _below(self, before: Line, line: Line) -> bool:
        return 0 < before.y - line.y < 2 * max(before.size, line.size)

    def _is_full(self, line: Line) -> bool:
        return len(line.text) >= 0.82 * self._length[line.size]

    def _starts(self, number: int) -> bool:
        """Tell whether the first line of a column is indented against the line below it."""
        if number + 1 >= len(self._lines):
            return False
        line, below = self._lines[number], self._lines[number + 1]
        return 0.5 * line.size < line.x - below.x < 5 * line.size

    def _starts_item(self, line: Line) -> bool:
        return _REFERENCE.match(line.text) is not None or is_list_item(line.text)

    def _hangs(self, number: int) -> bool:
        """Tell whether the lines around `number` are a list with hanging indents, such as a bibliography."""
        hanging = indented = 0
        near = self._lines[max(0, number - 12) : number + 12]
        for before, line in pairwise(near):
            shift = line.x - before.x
            if 0.5 * line.size < shift < 5 * line.size and before.y > line.y:
                ended = _ENDS.search(before.text) is not None
                if is_list_item(before.text):
                    continue
                if self._is_full(before) and not ended:
                    hanging += 1
                elif ended:
                    indented += 1
        return hanging > indented and hanging > 1


def _past_floats(blocks: list[Block]) -> list[Block]:
    """Join the parts of a paragraph that a figure, a footnote or a column of figures or footnotes interrupts."""
    sizes: Counter[float] = Counter()
    for block in blocks:
        for line in block.lines:
            sizes[line.size] += len(line.text)
    if not sizes:
        return blocks
    body = sizes.most_common(1)[0][0]
    ordered = list(blocks)
    start = 0
    while start < len(ordered):
        last = ordered[start].lines[-1]
        is_body = ordered[start].kind == "prose" and ordered[start].size == body
        if is_body and len(last.text) > 20 and not _ENDS.search(last.text):
            for later in range(start + 1, min(start + 12, len(ordered))):
                if ordered[later].kind != "prose" or abs(ordered[later].size - body) > 0.05 * body:
                    continue
                first = ordered[later].lines[0]
                if first.text[0].islower() and len(first.text) > 12:
                    ordered[start].lines += ordered.pop(later).lines
                    start -= 1
                break
        start += 1
    return ordered
