"""What all readers share: clean characters, joined lines, pages of a moderate size."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import count

from ..text.sentences import border
from .page import Page

PAGE_TARGET = 3_000
"""The number of characters to aim at for a page where the document itself has no pages."""


PAGE_LIMIT = 6_000
"""The most characters of a page where the document itself has no pages."""


# ZWNJ and ZWJ stay: Persian, Indic scripts and emoji need them. Bidirectional marks go: they are layout, not words.
_DROPPED = dict.fromkeys(
    [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0x85), *range(0x86, 0xA0), 0xAD, 0x200B, 0x200E]
    + [0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), *range(0xD800, 0xE000), 0xFEFF, 0xFFFE, 0xFFFF]
)
_SPACES = dict.fromkeys([0x09, 0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F], " ")
_CHARACTERS: dict[int, str | None] = {**_DROPPED, **_SPACES, 0x0D: "\n", 0x85: "\n", 0x2028: "\n", 0x2029: "\n\n"}
_TABS: dict[int, str | None] = {**_CHARACTERS, 0x09: "    "}


_TRAILING = re.compile(r" +(?=\n|\Z)")
_BLANK_LINES = re.compile(r"\n{3,}")


_CJK = re.compile(r"[\u2e80-\u303f\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•◦▪‣∙·]|\(?(?:\d{1,3}|[a-z]|[ivx]{2,5}|[IVX]{2,5})[.)])\s+\S")


def tidy(text: str, *, verbatim: bool = False) -> str:
    """Return `text` in NFC, without control characters, trailing spaces and runs of blank lines.

    `verbatim` keeps leading spaces and widens tabs, for code; otherwise runs of spaces become one.
    """
    text = text.replace("\r\n", "\n").translate(_TABS if verbatim else _CHARACTERS)
    text = unicodedata.normalize("NFC", text)
    if not verbatim:
        text = re.sub(r" {2,}", " ", text)
        text = text.replace("\n ", "\n").strip(" ")
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip("\n")


def is_list_item(line: str) -> bool:
    """Tell whether `line` starts like an item of a list."""
    return _LIST_ITEM.match(line) is not None


def join_lines(left: str, right: str) -> str:
    """Join two lines of one paragraph; a hyphen or dash at the end of the first line stays and takes no space."""
    if not left or not right:
        return left + right
    if _CJK.match(left[-1]) and _CJK.match(right[0]):
        return left + right
    hyphenated = left[-1] in "-‐" and left[-2:-1].isalnum() and right[0].isalnum()
    if hyphenated or left.endswith(("--", "—")):
        return left + right
    return f"{left} {right}"


def cut(text: str, limit: int = PAGE_TARGET) -> Iterator[str]:
    """Cut `text` into pieces of at most `limit` characters at the best border: paragraph, line, sentence, word."""
    pieces, rest = cut_head(text, limit, keep=limit)
    yield from pieces
    if rest.strip():
        yield rest.strip()


def cut_head(text: str, limit: int, keep: int) -> tuple[list[str], str]:
    """Cut pieces off the head of `text` until at most `keep` characters are left. Returns the pieces and the rest."""
    pieces: list[str] = []
    start = 0
    while len(text) - start > keep:
        end = start + border(text[start : start + limit + 1], limit)
        piece = text[start:end].strip()
        if piece:
            pieces.append(piece)
        start = end
    return pieces, text[start:]


def paginate(paragraphs: Iterable[str], target: int = PAGE_TARGET, limit: int = PAGE_LIMIT) -> Iterator[str]:
    """Collect paragraphs into pages of about `target` characters; only a paragraph longer than `limit` is cut."""
    page: list[str] = []
    size = 0
    for paragraph in paragraphs:
        for piece in cut(paragraph, target) if len(paragraph) > limit else (paragraph,):
            if not piece.strip():
                continue
            if page and size + len(piece) > target:
                yield "\n\n".join(page)
                page, size = [], 0
            page.append(piece)
            size += len(piece) + 2
    if page:
        yield "\n\n".join(page)


def section_pages(sections: Iterable[tuple[str | None, list[str]]]) -> Iterator[Page]:
    """Turn (title, paragraphs) sections into pages, which are numbered in order.

    A section that is nothing but its heading joins the next section: alone it would be a page of two words.
    """
    numbers = count(1)
    waiting: list[str] = []
    last_title: str | None = None
    for title, paragraphs in sections:
        paragraphs = [paragraph for paragraph in paragraphs if paragraph.strip()]
        last_title = title
        if not paragraphs or (title is not None and len(paragraphs) == 1 and paragraphs[0] == title):
            waiting += paragraphs
            continue
        for text in paginate([*waiting, *paragraphs]):
            yield Page(next(numbers), text, title)
        waiting = []
    for text in paginate(waiting):
        yield Page(next(numbers), text, last_title)
