"""How wide lines are, and which stand at one height."""

from __future__ import annotations

from .layout import Line

# Of the size of the letters: how much lower a line of the same row may stand.
_LEVEL = 0.35


def width(line: Line) -> float:
    """About as wide as the letters of most fonts are, in points."""
    narrow = sum(1 for letter in line.text if letter in "iljtfrI.,:;'!|()[]-1 ")
    wide = sum(1 for letter in line.text if letter in "mwMW@%")
    capital = sum(1 for letter in line.text if letter.isupper() and letter not in "IMW")
    return line.size * (0.3 * narrow + 0.82 * wide + 0.68 * capital + 0.53 * (len(line.text) - narrow - wide - capital))


def level(one: Line, other: Line) -> bool:
    """Whether two lines stand at one height."""
    return abs(one.y - other.y) <= _LEVEL * max(one.size, other.size)
