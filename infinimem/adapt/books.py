"""Whole books as a source of consecutive prose."""

from __future__ import annotations

import random
from pathlib import Path

from ..datasets.documents import SEPARATOR, books
from .samples import Bench

# A first guess that is nearly always enough: English prose has four to five characters a token.
CHARACTERS_PER_TOKEN = 6


class Books:
    """Whole books as a source of consecutive prose."""

    def __init__(self, path: Path) -> None:
        """path: as for `datasets.documents.books`. Raises SourceError."""
        self.texts = [text for _, text in books(path)]
        self._weights = [len(text) for text in self.texts]

    def tokens(self, bench: Bench, rng: random.Random, count: int) -> list[int]:
        """`count` consecutive tokens from the start of a random paragraph; where a book ends, another book follows."""
        book = rng.choices(self.texts, self._weights)[0]
        at = book.find(SEPARATOR, rng.randrange(len(book)))
        text = book[0 if at == -1 else at + len(SEPARATOR) :].lstrip()
        found: list[int] = []
        while True:
            size = (count - len(found)) * CHARACTERS_PER_TOKEN
            while True:
                more = bench.encode(text[:size])
                if len(found) + len(more) >= count:
                    return [*found, *more][:count]
                if size >= len(text):
                    break
                size *= 2
            found += more
            text = SEPARATOR + rng.choices(self.texts, self._weights)[0]
