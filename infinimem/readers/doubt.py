"""A cheap check of whether a page's text is what is printed on it.

Fonts without usable widths run words together or space letters out; fonts without a Unicode map give names of glyphs,
letters of other scripts, or letters that make no words.
"""

from __future__ import annotations

import re
import unicodedata

_GLYPH = re.compile(r"\(cid:\d+\)|(?<![\w/:])/(?:uni[0-9A-F]{4}|[gG]\d{1,5}|[a-z]+(?:\.[a-z]{1,8})+)\b")
# The bytes of UTF-8 read as windows-1252.
_MOJIBAKE = re.compile("Ã[\u0080-\u00bf]|â€.|Â[\u00a0-\u00bf]")
_WORD = re.compile(r"[^\W\d_]+")
_APART_RUN = re.compile(r"\b[^\W\d_](?: {1,3}[^\W\d_]\b){3,}")
_ADDRESS = ("://", "www.", "@")
_VOWELS = frozenset("aeiouyàáâãäåæèéêëìíîïòóôõöøœùúûüýÿ")
_FEWEST = 20  # words of a page that tell anything
_LONG = 30  # letters
_SAMPLE = 20_000  # characters
# The share of a page's words, or letters, from which on a sign speaks against it.
_APART, _TOGETHER, _NO_VOWEL, _MIXED, _STRANGE, _GLYPHS = 0.4, 0.25, 0.5, 0.1, 0.02, 0.02


def doubt_of(text: str) -> str | None:
    """Why the text of a page may not be what is printed; None where nothing speaks against it."""
    # The beginning tells enough, and a hostile page may have millions of letters.
    text = text[:_SAMPLE]
    runs = text.split()
    pieces = len(runs)
    if len(_GLYPH.findall(text)) > max(2.0, _GLYPHS * pieces):
        return "it has names of glyphs in place of letters"
    strange = sum(1 for letter in text if unicodedata.category(letter) in ("Cn", "Co") or letter == "\ufffd")
    if strange > max(2.0, _STRANGE * len(text)):
        return "it has characters that stand for nothing"
    if len(_MOJIBAKE.findall(text)) > max(2.0, _STRANGE * pieces):
        return "its letters were decoded wrongly"
    words = _WORD.findall(" ".join(run for run in runs if not any(mark in run for mark in _ADDRESS)))
    if len(words) < _FEWEST:
        return None
    scripts = [_scripts(word) for word in words]
    if sum(len(found) > 1 for found in scripts) > _MIXED * len(words):
        return "its words mix letters of several scripts"
    latin = [word for word, found in zip(words, scripts, strict=True) if found == {"LATIN"}]
    if len(latin) < _FEWEST:
        return None
    if sum(len(run.split()) for run in _APART_RUN.findall(text)) > _APART * len(words):
        return "its letters stand apart"
    long = [word for word in latin if len(word) > _LONG]
    if len(set(long)) > 2 and sum(map(len, long)) > _TOGETHER * sum(map(len, latin)):
        return "its words run together"
    telling = [word for word in latin if len(word) > 3]
    if len(telling) >= _FEWEST:
        without = sum(1 for word in telling if not _VOWELS.intersection(word.lower()))
        if without > _NO_VOWEL * len(telling):
            return "its letters make no words"
    return None


def _scripts(word: str) -> set[str]:
    """The alphabets of a word's letters, of those that look alike."""
    if word.isascii():
        return {"LATIN"}
    names = {unicodedata.name(letter, "").split(" ", 1)[0] for letter in word}
    return names & {"LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "CHEROKEE"}
