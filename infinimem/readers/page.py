"""A page of text, and what all readers need on the way through the pages of a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import SourceError, SourceNotFound, SourceTooLarge, SourceUnreadable

LONGEST_TITLE = 300
"""The most characters of a page's title. Longer text is no title, and every passage of the page repeats the title."""


ABOUT = ("title", "author", "date", "language")
"""What a document may say about itself. Dates are YYYY, YYYY-MM or YYYY-MM-DD where the document has such a date."""


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of a document that can be cited: a PDF page, a chapter, a section or a page of text.

    number: counts from 1; for a PDF the physical page, for an EPUB the place in the spine. Pages without text are left
        out, and their numbers are not used again.
    text: prose in NFC with one blank line between paragraphs.
    title: the chapter or heading that the page begins in; None where the document does not say.
    label: the number that is printed on the page, such as "xii"; None where none is known, or where it is `number`.
    headings: (character of the text, title) of each chapter or section that begins further down on the page, in order.
    about: what the document says about itself, as `ABOUT` names it; only on the first page.
    left_out: how many parts of each kind were left out on purpose, such as {"page numbers": 1}.
    doubt: why the text may not be what is printed; None where nothing speaks against it.
    confidence: of the recognition, between 0 and 1; None where the text was not recognized in an image.
    images: numbers of pages beside this one that have images and no text, and may be scans.
    """

    number: int
    text: str
    title: str | None = None
    label: str | None = None
    headings: Sequence[tuple[int, str | None]] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    doubt: str | None = None
    confidence: float | None = None
    images: Sequence[int] = ()

    def to_row(self) -> list[Any]:
        """Plain values for JSON, in the order of the fields."""
        return [getattr(self, one.name) for one in fields(self)]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Page:
        """The page of a row that `to_row` made and that was JSON since."""
        page = cls(*row)
        headings = tuple((int(place), title) for place, title in page.headings)
        return replace(page, headings=headings, images=tuple(page.images))

    def sections(self) -> Iterator[tuple[str | None, str]]:
        """Yield (title, text) of the parts of the page, which together are its text."""
        begin, title = 0, self.title
        for place, following in self.headings:
            if place > begin:
                yield title, self.text[begin:place]
            begin, title = place, following
        yield title, self.text[begin:]


@dataclass(frozen=True, slots=True)
class Visits:
    """Which pages to parse, and functions to call on the way.

    left_out: numbers of pages that must not be parsed.
    most_characters: the most characters that a page may have; default: no limit.
    begun: is called with the number of each page before the page is parsed.
    failed: is called with the number of a page that cannot be read, and the reason; without this function, the page
        raises its error.
    ocr: whether to recognize the text of pages that are images.
    """

    left_out: Collection[int] = frozenset()
    most_characters: int = sys.maxsize
    begun: Callable[[int], None] = lambda number: None
    failed: Callable[[int, str], None] | None = None
    ocr: bool = False

    def give_up(self, number: int, error: SourceError) -> None:
        """Report to `failed` that a page is left out; without `failed`, raise the error."""
        if self.failed is None:
            raise error
        self.failed(number, str(error))

    def check_size(self, number: int, characters: int, name: str) -> None:
        """Raise SourceTooLarge where a page has more characters than `most_characters`."""
        if characters > self.most_characters:
            raise SourceTooLarge(
                f"page {number} of '{name}' has more than the {self.most_characters:,} characters that are read; to "
                "read it, raise the limit 'page_characters'"
            )


class readable:
    """Context manager: errors of the operating system about a path become SourceNotFound or SourceUnreadable."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError) or isinstance(error, SourceError):
            return
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise SourceNotFound(f"no file at '{self._path}'; check the spelling and the directory") from error
        reason = (error.strerror or str(error) or type(error).__name__).lower()
        raise SourceUnreadable(f"'{self._path}' cannot be read ({reason}); check its permissions") from error
