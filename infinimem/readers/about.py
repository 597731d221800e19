"""What a document says about itself: title, author, date, language; the readers find it in the format's own fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from .page import ABOUT, LONGEST_TITLE, Page
from .prose import tidy

# What programs put where nobody wrote anything.
_EMPTY = frozenset(
    {"untitled", "(untitled)", "unknown", "(unspecified)", "unspecified", "anonymous", "(anonymous)", "none", "null"}
    | {"no title", "user", "admin", "administrator", "author", "owner", "title", "und", "-", "document", "document1"}
    | {"openpyxl", "python-docx", "powerpoint presentation", "word document"}
)
_FILE_NAME = re.compile(r"\S*\.(?:docx?|pdf|tex|dvi|indd|qxd|rtf|odt|pptx?|xlsx?|html?|p65|fm)", re.IGNORECASE)
_PROGRAM = re.compile(r"Microsoft (?:Office )?(?:Word|PowerPoint|Excel) - ", re.IGNORECASE)
_PDF_DATE = re.compile(r"(?:D:)?(\d{4})(\d\d)?(\d\d)?(?:\d{2,6})?(?:[+\-Z].*)?")
_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?(?:[T ].*)?")
# Characters of the first page in which a title need not be said again.
_BEGINNING = 400


def about(**found: object) -> dict[str, str]:
    """The fields of `ABOUT` that say something, cleaned.

    found: values by the names of `ABOUT`; a list stands for several values, None for no value.
    """
    fields: dict[str, str] = {}
    for name in ABOUT:
        value = found.get(name)
        values = value if isinstance(value, (list, tuple)) else [value]
        texts = [_cleaned(name, one) for one in values if one is not None]
        if text := "; ".join(dict.fromkeys(filter(None, texts)))[:LONGEST_TITLE]:
            fields[name] = text
    return fields


def _cleaned(name: str, value: object) -> str:
    text = " ".join(tidy(str(value)).split())
    if name == "title":
        text = _PROGRAM.sub("", text)
        text = "" if _FILE_NAME.fullmatch(text) else text
    if name == "date":
        match = _DATE.fullmatch(text) or _PDF_DATE.fullmatch(text)
        text = "-".join(filter(None, match.groups())) if match else text
    return "" if text.lower() in _EMPTY else text


def with_front(page: Page, fields: Mapping[str, str]) -> Page:
    """The first page, with what the document says about itself as its first section, so that it is read and found.

    Without an author, a title that stands at the beginning of the page is not said again: a date alone, often that of a
    conversion, says too little.
    """
    lines = [f"{name.capitalize()}: {fields[name]}" for name in ("title", "author", "date") if name in fields]
    beginning = " ".join(page.text[:_BEGINNING].split()).casefold()
    known = "author" not in fields and fields.get("title", "").casefold() in beginning
    if known:
        return replace(page, about=fields)
    return replace(with_section_before(page, "\n".join(lines)), about=fields)


def with_section_before(page: Page, text: str) -> Page:
    """A page with another section, which has no title, before its text."""
    if not text:
        return page
    front = text + "\n\n"
    headings = [(len(front), page.title), *((len(front) + place, title) for place, title in page.headings)]
    return replace(page, text=front + page.text, title=None, headings=tuple(headings))
