"""Markdown: the prose without the markup, in sections that begin at headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .html import Section, html_sections
from .plain import read_text
from .prose import section_pages, tidy
from .raised import after_lowered, lowered, raised
from .table import parts_of

if TYPE_CHECKING:
    from markdown_it.token import Token

_FRONT_MATTER = re.compile(r"\A\ufeff?(---|\+\+\+)[ \t]*\r?\n(.*?)\r?\n\1[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# A line of YAML or TOML. Between two rules of a text stand sentences.
_FIELD = re.compile(r"\s*(?:#|-\s|-$|[\]}\"',]|\[|['\"]?[\w.-]+['\"]?\s*[:=](?:\s|$|[\"'\[{]))|\s{2,}\S|\s*$|\t")
_FOOTNOTE = re.compile(r"( {0,3})\[\^[^\]\s]+\]:")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")


def markdown_pages(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield (text, title) for the sections of a Markdown file."""
    yield from section_pages(markdown_sections(read_text(path)))


def markdown_sections(source: str) -> Iterator[Section]:
    """Split Markdown into (heading, paragraphs), as plain prose."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(_with_footnotes(_without_front_matter(source)))
    title: str | None = None
    paragraphs: list[str] = []
    marker = ""
    row: list[str] = []
    rows: list[list[str]] = []
    lists: list[int | None] = []
    # Items of a tight list are lines of one paragraph.
    lines: list[str] = []
    for position, token in enumerate(tokens):
        if token.type == "heading_open":
            yield title, paragraphs
            title, paragraphs = tidy(_inline(tokens[position + 1])) or title, []
        elif token.type in ("bullet_list_open", "ordered_list_open"):
            lists.append(int(token.attrGet("start") or 1) if token.type == "ordered_list_open" else None)
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            lists.pop()
        elif token.type == "list_item_open":
            number = lists[-1]
            marker = "- " if number is None else f"{number}. "
            lists[-1] = None if number is None else number + 1
        elif token.type == "inline":
            text = tidy(_inline(token))
            if token.map is None or _in_table(tokens, position):
                row.append(text)
            elif lists and text:
                lines.append("  " * (len(lists) - 1) + (marker or "  ") + text.replace("\n", " "))
                marker = ""
            elif text:
                paragraphs.append(text)
        elif token.type == "tr_close":
            rows.append(row)
            row = []
        elif token.type == "table_close":
            paragraphs.extend(_flushed(lines))
            paragraphs.extend(parts_of(rows, 1))
            rows = []
        elif token.type in ("fence", "code_block"):
            paragraphs.extend(_flushed(lines))
            paragraphs.append(tidy(token.content, verbatim=True))
        elif token.type == "html_block":
            paragraphs.extend(_flushed(lines))
            paragraphs.extend(text for _, texts in html_sections(token.content) for text in texts)
        if not lists and token.type in ("bullet_list_close", "ordered_list_close"):
            paragraphs.extend(_flushed(lines))
    yield title, paragraphs


def _without_front_matter(source: str) -> str:
    found = _FRONT_MATTER.match(source)
    if found is None or not all(_FIELD.match(line) for line in found.group(2).splitlines()):
        return source
    return source[found.end() :]


def _with_footnotes(source: str) -> str:
    """Make each footnote a paragraph: CommonMark takes one of one word for the address of a link, and shows none."""
    if "[^" not in source:
        return source
    lines, fence = [], ""
    for line in source.split("\n"):
        mark = _FENCE.match(line)
        if mark is not None and (not fence or mark.group(1).startswith(fence)):
            fence = "" if fence else mark.group(1)
        found = None if fence else _FOOTNOTE.match(line)
        lines += [line] if found is None else ["", f"{found.group(1)}\\{line[found.end(1) :]}"]
    return "\n".join(lines)


def _flushed(lines: list[str]) -> list[str]:
    text = "\n".join(lines)
    lines.clear()
    return [text] if text.strip() else []


def _in_table(tokens: list[Token], position: int) -> bool:
    return tokens[position - 1].type in ("td_open", "th_open")


def _inline(token: Token) -> str:
    """The text of a line, images by their description. Superscripts and subscripts are HTML in Markdown."""
    text, small, opened = "", "", ""
    for child in token.children or ():
        tag = child.content.lower() if child.type == "html_inline" else ""
        if tag in ("<sup>", "<sub>"):
            opened, small = tag, ""
        elif tag in ("</sup>", "</sub>") and opened:
            text += (raised if opened == "<sup>" else lowered)(text[-64:], small)
            opened = ""
        else:
            part = "\n" if tag.startswith("<br") else _plain(child)
            if opened:
                small += part
            else:
                text += after_lowered(text, part) + part if small else part
                small = "" if part else small
    return text + small if opened else text


def _plain(child: Token) -> str:
    if child.type in ("text", "code_inline", "text_special"):
        return child.content
    if child.type == "image":
        return _inline(child)
    return {"softbreak": " ", "hardbreak": "\n"}.get(child.type, "")
