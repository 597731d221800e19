"""Markdown and HTML: the prose without the markup, in sections that begin at headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .plain import read_text
from .prose import section_pages, tidy

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from markdown_it.token import Token

_FRONT_MATTER = re.compile(r"\A\ufeff?(---|\+\+\+)[ \t]*\r?\n.*?\r?\n\1[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_TITLES = frozenset({"h1", "h2", "h3"})
_DROPPED = frozenset(
    {"script", "style", "noscript", "template", "nav", "head", "svg", "iframe", "object", "embed", "canvas", "audio"}
    | {"video", "map", "button", "input", "select", "textarea", "dialog"}
)
_LISTS = frozenset({"ul", "ol"})
_HIDDEN_ROLES = frozenset({"navigation", "search", "menu", "menubar", "toolbar"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt"}
    | {"fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup"}
    | {"hr", "html", "legend", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "td", "tfoot"}
    | {"th", "thead", "tr", "ul", "[document]"}
)
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)


Section = tuple["str | None", "list[str]"]


def markdown_pages(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield (text, title) for the sections of a Markdown file."""
    yield from section_pages(markdown_sections(read_text(path)))


def markdown_sections(source: str) -> Iterator[Section]:
    """Split Markdown into (heading, paragraphs), as plain prose."""
    from markdown_it import MarkdownIt

    tokens = (
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .parse(_FRONT_MATTER.sub("", source, count=1))
    )
    title: str | None = None
    paragraphs: list[str] = []
    marker = ""
    row: list[str] = []
    lists: list[int | None] = []
    # Items of a tight list and rows of a table are lines of one paragraph.
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
            lines.append(" | ".join(row))
            row = []
        elif token.type in ("fence", "code_block"):
            paragraphs.extend(_flushed(lines))
            paragraphs.append(tidy(token.content, verbatim=True))
        elif token.type == "html_block":
            paragraphs.extend(_flushed(lines))
            paragraphs.extend(text for _, texts in html_sections(token.content) for text in texts)
        if not lists and token.type in ("bullet_list_close", "ordered_list_close", "table_close"):
            paragraphs.extend(_flushed(lines))
    yield title, paragraphs


def _flushed(lines: list[str]) -> list[str]:
    text = "\n".join(lines)
    lines.clear()
    return [text] if text.strip() else []


def _in_table(tokens: list[Token], position: int) -> bool:
    return tokens[position - 1].type in ("td_open", "th_open")


def _inline(token: Token) -> str:
    parts: list[str] = []
    for child in token.children or ():
        if child.type in ("text", "code_inline", "text_special"):
            parts.append(child.content)
        elif child.type == "softbreak":
            parts.append(" ")
        elif child.type == "hardbreak":
            parts.append("\n")
        elif child.type == "image":
            parts.append(_inline(child))
        elif child.type == "html_inline" and child.content.lower().startswith("<br"):
            parts.append("\n")
    return "".join(parts)


def html_pages(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield (text, title) for the sections of an HTML file."""
    yield from section_pages(html_sections(path.read_bytes()))


def parse_html(source: str | bytes) -> BeautifulSoup:
    """Parse HTML or XHTML; bytes are decoded by their byte order mark or by the encoding that the document names."""
    import warnings

    import bs4

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bs4.BeautifulSoup(source, "lxml")
        except bs4.FeatureNotFound:
            return bs4.BeautifulSoup(source, "html.parser")


def html_sections(source: str | bytes) -> Iterator[Section]:
    """Split HTML at its h1, h2 and h3 into (heading, paragraphs), without scripts, menus and hidden parts."""
    soup = parse_html(source)
    head = soup.find("title")
    title = tidy(head.get_text(" ").replace("\n", " ")) or None if head is not None else None
    walker = _Walker(title)
    walker.walk(soup)
    walker.close()
    yield from walker.sections


class _Walker:
    """Collects the text of a tree without recursion: a hostile page may be nested deeper than Python allows."""

    def __init__(self, title: str | None) -> None:
        self.sections: list[Section] = []
        self._title = title
        self._paragraphs: list[str] = []
        self._inline: list[str] = []
        self._row: list[str] | None = None
        self._is_data = False
        self._lists = 0
        self._marker = ""
        self._group = ""

    def walk(self, root: Tag) -> None:
        from bs4.element import NavigableString, PreformattedString, Tag

        stack: list[tuple[object, bool]] = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving and isinstance(node, Tag):
                self._leave(node.name)
            elif isinstance(node, PreformattedString):
                continue
            elif isinstance(node, NavigableString):
                self._inline.append(re.sub(r"\s+", " ", str(node)))
            elif isinstance(node, Tag) and not _is_hidden(node):
                if node.name == "br":
                    self._inline.append("\n")
                elif node.name == "pre":
                    self._end_paragraph()
                    self._add(tidy(node.get_text(), verbatim=True))
                elif node.name == "img":
                    self._inline.append(str(node.get("alt") or ""))
                else:
                    if node.name in _BLOCKS:
                        self._enter(node)
                    stack.append((node, True))
                    stack.extend((child, False) for child in reversed(node.contents))

    def close(self) -> None:
        self._end_paragraph()
        self.sections.append((self._title, self._paragraphs))
        self._paragraphs = []

    def _enter(self, node: Tag) -> None:
        self._end_paragraph()
        if node.name in _TITLES:
            self.close()
        elif node.name == "li":
            self._marker = "  " * max(self._lists - 1, 0) + "- "
        elif node.name in _LISTS:
            self._group = self._group if self._lists else ""
            self._lists += 1
        elif node.name == "table":
            self._is_data = _is_data(node)
            self._group = ""
        elif node.name == "tr" and self._is_data:
            self._row = []

    def _leave(self, name: str) -> None:
        if name in _TITLES:
            heading = self._text().replace("\n", " ")
            if heading:
                self._title = heading
                self._add(heading)
        elif name in ("td", "th") and self._row is not None:
            self._row.append(self._text().replace("\n", " "))
        elif name in _BLOCKS:
            self._end_paragraph()
        if name == "tr" and self._row is not None:
            line = " | ".join(filter(None, self._row))
            self._row = None
            self._add(line, group="table")
        elif name == "table":
            self._is_data = False
        elif name in _LISTS:
            self._lists -= 1

    def _text(self) -> str:
        text = tidy("".join(self._inline))
        self._inline = []
        return text

    def _end_paragraph(self) -> None:
        if self._row is not None:
            # Blocks inside a cell of a table belong to the line of its row.
            self._inline.append(" ")
            return
        text = self._text()
        if text and self._marker:
            self._add(self._marker + text.replace("\n", " "), group="list")
            self._marker = ""
        else:
            self._add(text)

    def _add(self, text: str, group: str = "") -> None:
        """Add a paragraph; the items of a list and the rows of a table are lines of one paragraph."""
        if not text:
            return
        if group and group == self._group and self._paragraphs:
            self._paragraphs[-1] += "\n" + text
        else:
            self._paragraphs.append(text)
        self._group = group


def _is_data(table: Tag) -> bool:
    """Tell whether a table holds data, rather than the layout of a page."""
    if table.get("role") == "presentation" or table.find(["table", "h1", "h2", "h3", "h4", "ul", "ol", "pre"]):
        return False
    return not any(cell.find("p") and len(cell.find_all("p")) > 1 for cell in table.find_all(["td", "th"]))


def _is_hidden(node: Tag) -> bool:
    if node.name in _DROPPED:
        return True
    attributes = node.attrs
    if not attributes:
        return False
    return (
        "hidden" in attributes
        or str(attributes.get("aria-hidden", "")).lower() == "true"
        or str(attributes.get("role", "")).lower() in _HIDDEN_ROLES
        or _HIDDEN_STYLE.search(str(attributes.get("style", ""))) is not None
    )
