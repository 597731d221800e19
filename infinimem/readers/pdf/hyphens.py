"""Words broken at the end of a line: which hyphens belong to the word and which to the line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_WORD = re.compile(r"[^\W\d_]+(?:[-\u2010'’][^\W\d_]+)*")
_LEFT = re.compile(r"((?:[^\W_]+[-\u2010])*[^\W_]+)[-\u2010]$")
_RIGHT = re.compile(r"[^\W_]+(?:[-\u2010][^\W_]+)*")
_KEPT_PREFIXES = frozenset({"self", "well", "non", "quasi", "cross"})
_SUSPENDED = frozenset({"and", "or", "to", "und", "oder", "bzw", "sowie", "bis", "et", "ou", "y", "o", "en", "of"})
_MOST_WORDS = 200_000


class Words:
    """Counts how often each word of a document was printed whole so far."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def learn(self, lines: Iterable[str]) -> None:
        """Count the words of lines, without the words that a line end breaks."""
        broken = False
        for line in lines:
            words = _WORD.findall(line.lower())
            if broken:
                words = words[1:]
            broken = line.endswith(("-", "\u2010", "\u00ad"))
            if broken:
                words = words[:-1]
            for word in words:
                self._count(word)
                if "-" in word:
                    for part in word.split("-"):
                        self._count(part)

    def _count(self, word: str) -> None:
        if word in self._counts or len(self._counts) < _MOST_WORDS:
            self._counts[word] += 1

    def join(self, left: str, right: str) -> str:
        """Join two lines of a paragraph; where a word is broken between them, make it whole."""
        if left.endswith("\u00ad"):
            return left[:-1] + right
        broken = _LEFT.search(left)
        rest = _RIGHT.match(right)
        if broken is None or rest is None:
            return f"{left} {right}"
        if rest.group().lower() in _SUSPENDED:
            return f"{left} {right}"
        if self._keeps_hyphen(broken.group(1), rest.group()):
            return left + right
        return left[:-1] + right

    def _keeps_hyphen(self, left: str, right: str) -> bool:
        if not right[0].isalpha() or not left[-1].isalpha():
            return True
        first = re.split(r"[-\u2010]", right)[0].lower()
        last = re.split(r"[-\u2010]", left)[-1].lower()
        whole = max(self._counts[last + first], self._counts[(left + right).lower()])
        hyphenated = max(self._counts[f"{last}-{first}"], self._counts[f"{left}-{right}".lower()])
        if whole != hyphenated:
            return hyphenated > whole
        if right[0].isupper() or last != left.lower() or last in _KEPT_PREFIXES:
            return True
        return min(len(last), len(first)) > 3 and min(self._counts[last], self._counts[first]) > 1
