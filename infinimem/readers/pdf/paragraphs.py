"""The text of a page's blocks: paragraphs, code with its indents, and rows of tables."""

from __future__ import annotations

from collections.abc import Sequence

from ...text.sentences import CELLS
from ..prose import tidy
from ..table import guessed_heads, parts_of
from .hyphens import Words
from .layout import Block, Line


def prose_of(blocks: Sequence[Block], words: Words) -> tuple[str, list[int]]:
    """The text of a page, and the character of it at which each block starts.

    words: the words of the document, which tell whether a hyphen at the end of a line belongs to its word.
    """
    text, starts = "", []
    for block in blocks:
        paragraph = _paragraph(block, words)
        text += "\n\n" if text and paragraph else ""
        starts.append(len(text))
        text += paragraph
    return text, starts


def _paragraph(block: Block, words: Words) -> str:
    if block.kind == "code":
        margin = min(line.x for line in block.lines)
        # A letter of a typewriter font is three fifths as wide as it is high.
        indents = (round((line.x - margin) / (0.6 * max(line.size, 1))) for line in block.lines)
        text = "\n".join(" " * min(indent, 40) + line.text for indent, line in zip(indents, block.lines, strict=True))
        return tidy(text, verbatim=True)
    if block.kind == "row":
        rows = [line.text.split(CELLS) for line in block.lines]
        return "\n\n".join(tidy(part) for part in parts_of(rows, _heads(block.lines, rows)))
    text = block.lines[0].text
    for line in block.lines[1:]:
        text = words.join(text, line.text)
    return tidy(text)


def _heads(lines: Sequence[Line], rows: Sequence[Sequence[str]]) -> int:
    """How many of the first rows of a table hold the names of its columns: one that looks unlike the rows below."""
    first, *rest = lines
    bold = CELLS in first.text and bool(rest) and first.bold and not any(line.bold for line in rest)
    return int(bold or guessed_heads(rows))
