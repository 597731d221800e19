"""Superscripts and subscripts: never glued to the number or word before them.

- a power keeps its meaning: 10^26, km^2
- the mark of a note stands apart: 1931 [2]
- what is written small by custom stays as it is: 1st, Mme, CO2
"""

from __future__ import annotations

import re

_ORDINAL = re.compile(r"(?:st|nd|rd|th|er|re|e|o|a|º|ª|me|ème|ère|nde|ter)", re.IGNORECASE)
_SIGNS = {"TM": "™", "SM": "℠", "R": "®", "C": "©"}
_WORD = re.compile(r"[^\W\d_]+$")
# Ends in a number of at most two digits, which is raised to a power sooner than it has a note.
_SHORT_NUMBER = re.compile(r"(?<![\d.,])\d{1,2}$")
# What the mark of a note may follow, beside words and numbers.
_ENDS = frozenset(".,;:!?…\"'”’»")
_UNITS = frozenset({"in", "mi", "sec", "min", "yd", "°"})
_NOTE = re.compile(r"[\[(]?(?:\d{1,3}(?:(?:\s?[,;–-]\s?|\s+)\d{1,3})*|[a-z]|[ivxl]{1,5})[\])]?")


def raised(before: str, text: str, *, linked: bool = False) -> str:
    """A superscript, as it follows the text before it.

    linked: whether it is known to be the mark of a note.
    """
    text = text.strip()
    if not text or not any(letter.isalnum() for letter in text):
        return text
    bare = text.strip("[]() ")
    if linked:
        return f"{_gap(before)}[{bare}]"
    if text in _SIGNS and before[-1:].isalpha():
        return _SIGNS[text]
    if before[-1:].isdigit() and _ORDINAL.fullmatch(text):
        return text
    if len(text) > 1 and text.isalpha() and before[-1:].isalpha():
        return text
    if text[0] in "-−–+" or (_takes_power(before) and text[0] not in "[(" and "," not in text):
        return f"^{text}"
    if _NOTE.fullmatch(text):
        return f"{_gap(before)}[{bare}]"
    return f"^{text}" if len(text) < 4 else f"{_gap(before)}({bare})"


def lowered(before: str, text: str) -> str:
    """A subscript, as it follows the text before it; a number after a letter stays as it is (CO2)."""
    text = text.strip()
    if not text:
        return ""
    return text if before[-1:].isalpha() and text.isdigit() else f"_{text}"


def after_lowered(lowered_text: str, following: str) -> str:
    """What stands between a subscript and the text after it, so that their numbers do not join."""
    return " " if lowered_text[-1:].isdigit() and following[:1].isdigit() else ""


def _gap(before: str) -> str:
    return "" if not before or before[-1].isspace() else " "


def _takes_power(before: str) -> bool:
    """Whether the text ends in a sign, a short number, a variable or a unit, not in a word or long number."""
    if not (before[-1:].isalnum() or before[-1:] in _ENDS) or _SHORT_NUMBER.search(before):
        return True
    found = _WORD.search(before)
    word = found.group() if found else ""
    short = 0 < len(word) < 3 and not word.isupper() and not set("aeiouy") & set(word.casefold())
    return len(word) == 1 or short or word in _UNITS
