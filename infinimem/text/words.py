"""Words: where they stand, their stems, how rare they are; and text that can be searched and stored."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..errors import EmptyQuestion, InvalidSetting


def as_unicode(text: str) -> str:
    """Text that can be stored as UTF-8: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def checked_question(text: str) -> str:
    """The question without white space around it.

    Raises InvalidSetting where the question is no text, EmptyQuestion where it has no words.
    """
    if not isinstance(text, str):
        raise InvalidSetting(f"the question is of type {type(text).__name__}; give a text")
    text = as_unicode(text).strip()
    if not any(character.isalnum() for character in text):
        raise EmptyQuestion("the question has no words in it; ask something about the document")
    return text


WORD = re.compile(r"\w+")
POINTING_WORDS = frozenset(
    WORD.findall("he her hers him his it its itself she that their theirs them there these they this those")
)
"""English words that stand for what was said before."""


FUNCTION_WORDS = POINTING_WORDS | frozenset(
    WORD.findall(
        "a about again also an and any are as at be been but by can could did do does for from had has have how i if "
        "in into is just like many may me might more most much must my no not of on one ones only or other our please "
        "same say says should so some such tell than the then to too very was we were what when where which who whom "
        "whose why will with would yes you your"
    )
)
"""English words that say nothing about a subject."""


def spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of every word, in characters."""
    return [match.span() for match in WORD.finditer(text)]


def stems(text: str) -> list[str]:
    """The stem of every word, in the order of `spans`."""
    import Stemmer

    found: list[str] = Stemmer.Stemmer("english").stemWords([word.lower() for word in WORD.findall(text)])
    return found


def rarity(passages: int, having: Any) -> Any:
    """How rare a word is: its inverse document frequency (idf) as in BM25.

    passages: number of all passages.
    having: number of passages that have the word; a number or an array, and so is the result.
    """
    return np.log(1 + (passages - having + 0.5) / (having + 0.5))
