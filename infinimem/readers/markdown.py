"""Markdown: the prose without the markup, in sections that begin at headings."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from .about import about, with_section_before
from .html import Section, html_sections
from .page import Page
from .plain import read_text
from .prose import section_pages, tidy
from .raised import after_lowered, lowered, raised
from .table import parts_of

if TYPE_CHECKING:
    from markdown_it.token import Token

_FRONT_MATTER = re.compile(r"\A\ufeff?(---|\+\+\+)[ \t]*\r?\n(.*?)\r?\n\1[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# A line of YAML or TOML. Between two rules of a text stand sentences.
_FIELD = re.compile(r"\s*(?:#|-\s|-$|[\]}\"',]|\[|['\"]?[\w.-]+['\"]?\s*[:=](?:\s|$|[\"'\[{]))|\s{2,}\S|\s*$|\t")
# The fields of the front matter that say what `ABOUT` names.
_NAMED = frozenset(
    {"title", "author", "authors", "creator", "by", "date", "published", "created", "updated", "lang", "language"}
    | {"locale"}
)
_FOOTNOTE = re.compile(r"( {0,3})\[\^[^\]\s]+\]:")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")


def markdown_pages(path: Path) -> Iterator[Page]:
    """Yield the sections of a Markdown file as pages."""
    source = read_text(path)
    front, begin = _front_matter(source)
    pages = section_pages(markdown_sections(source[begin:]))
    for page in islice(pages, 1):
        yield replace(with_section_before(page, _rest_of(front)), about=_about(front))
    yield from pages


def markdown_sections(source: str) -> Iterator[Section]:
    """Split Markdown into (heading, paragraphs), as plain prose."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(_with_footnotes(source))
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


def _front_matter(source: str) -> tuple[dict[str, object], int]:
    """The fields of the front matter by their names in small letters, and the character at which the text begins."""
    found = _FRONT_MATTER.match(source)
    if found is None or not all(_FIELD.match(line) for line in found.group(2).splitlines()):
        return {}, 0
    fields = _parsed(found.group(2), toml=found.group(1) == "+++")
    if fields is None:
        return {}, 0
    return {str(name).lower(): value for name, value in fields.items()}, found.end()


def _parsed(front: str, toml: bool) -> dict[object, object] | None:
    """The fields of YAML or TOML; None where it is neither."""
    import yaml

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        # The base loader makes nothing but texts, lists and mappings.
        fields = tomllib.loads(front) if toml else yaml.load(front, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, tomllib.TOMLDecodeError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else {} if fields is None else None


def _about(front: dict[str, object]) -> dict[str, str]:
    def first(*names: str) -> object:
        value = next((front[name] for name in names if front.get(name)), None)
        # An author may be a mapping of name, mail and so on.
        each = value if isinstance(value, list) else [value]
        return [one.get("name") if isinstance(one, dict) else one for one in each]

    return about(
        title=first("title"),
        author=first("author", "authors", "creator", "by"),
        date=first("date", "published", "created", "updated"),
        language=first("lang", "language", "locale"),
    )


def _rest_of(front: dict[str, object]) -> str:
    """The fields that `_about` does not name, one a line."""
    lines = []
    for name, value in front.items():
        each = value if isinstance(value, list) else [value]
        texts = [tidy(str(one)).replace("\n", " ") for one in each if one and not isinstance(one, (dict, list))]
        if texts and name not in _NAMED:
            lines.append(f"{name}: {', '.join(texts)}")
    return "\n".join(lines)


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
