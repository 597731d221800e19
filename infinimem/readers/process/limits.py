"""Limits on memory, time and size; a reader gives up a document that exceeds them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ...errors import InvalidSetting

OCR_MEMORY = 6_000_000_000
OCR_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """Limits for documents of strangers; each is a positive number.

    memory: bytes of address space of the process that parses (on Linux; on other systems nothing limits memory).
    page_seconds: the longest wait for one page, or for the file to be opened.
    seconds: the longest wait for a whole file, plus one second for each page of a PDF or an EPUB that was begun; the
        time in which the model reads does not count.
    pages: the most pages of a PDF or an EPUB.
    page_characters: the most characters of text in a page.
    characters: the most characters of text in a file.
    ocr: whether to recognize the text of images, and of PDF pages that are images. This takes OCR_MEMORY bytes more,
        and OCR_SECONDS more for each page.

    Raises InvalidSetting where a limit is not a positive number.
    """

    memory: int = 1_000_000_000
    page_seconds: float = 20.0
    seconds: float = 40.0
    pages: int = 20_000
    page_characters: int = 10_000_000
    characters: int = 1_000_000_000
    ocr: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.ocr, bool):
            raise InvalidSetting(f"ocr is True or False, not {self.ocr!r}")
        for name, value in self.numbers().items():
            whole = name not in ("page_seconds", "seconds")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
                raise InvalidSetting(
                    f"the limit {name} is a positive {'whole number' if whole else 'number'}, not {value!r}"
                )

    @property
    def extra_seconds(self) -> float:
        """The seconds that a page may take more where its text is recognized."""
        return OCR_SECONDS if self.ocr else 0.0

    @property
    def all_memory(self) -> int:
        """Bytes of address space of the process."""
        return self.memory + (OCR_MEMORY if self.ocr else 0)

    def numbers(self) -> dict[str, Any]:
        """The limits by their names."""
        values = self.to_dict()
        del values["ocr"]
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {limit.name: getattr(self, limit.name) for limit in fields(self)}
