"""HTML: the prose without the markup, in sections that begin at headings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from .about import about
from .page import Page
from .prose import section_pages, tidy
from .raised import after_lowered, lowered, raised
from .table import Grid, guessed_heads, parts_of

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

_TITLES = frozenset({"h1", "h2", "h3"})
_DROPPED = frozenset(
    {"script", "style", "noscript", "template", "nav", "head", "rp", "iframe", "object", "embed", "canvas", "audio"}
    | {"video", "map", "button", "input", "select", "textarea", "dialog"}
)
# What of these is text, no reader of the page sees.
_NO_TEXT = frozenset({"script", "style", "noscript", "template", "head"})
_LISTS = frozenset({"ul", "ol"})
_HIDDEN_ROLES = frozenset({"navigation", "search", "menu", "menubar", "toolbar"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt"}
    | {"fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup"}
    | {"hr", "html", "legend", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "td", "tfoot"}
    | {"th", "thead", "tr", "ul", "[document]"}
)
_CELLS = frozenset({"td", "th"})
_SMALL = frozenset({"sup", "sub", "rt"})
_NOTE = re.compile(r"note|cite|reference", re.IGNORECASE)
# Characters of a cell of a data table, on average, where nothing else tells such a table from the layout of a page.
_SHORT_CELL = 120
# The labels that stand for windows-1252 in every browser (https://encoding.spec.whatwg.org/#names-and-labels).
_WINDOWS_1252 = frozenset(
    {"ansi_x3.4-1968", "ascii", "cp1252", "cp819", "csisolatin1", "ibm819", "iso-8859-1", "iso-ir-100", "iso8859-1"}
    | {"iso88591", "iso_8859-1", "iso_8859-1:1987", "l1", "latin1", "us-ascii", "windows-1252", "x-cp1252"}
)
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)


Section = tuple["str | None", "list[str]"]


def html_pages(path: Path) -> Iterator[Page]:
    """Yield the sections of an HTML file as pages."""
    soup = parse_html(path.read_bytes())
    sections, hidden = sections_of(soup)
    pages = section_pages(sections)
    for page in islice(pages, 1):
        yield replace(page, about=_about(soup), left_out={"menus and hidden parts": hidden} if hidden else {})
    yield from pages


def _about(soup: BeautifulSoup) -> dict[str, str]:
    """What the head of a page says about it: Dublin Core, Open Graph, and the names of HTML itself."""
    named: dict[str, list[str]] = {}
    for node in soup.find_all("meta"):
        name = str(node.get("name") or node.get("property") or node.get("itemprop") or "").strip().lower()
        if name and node.get("content"):
            named.setdefault(name, []).append(str(node.get("content")))
    title, root = soup.find("title"), soup.find("html")

    def first(*names: str) -> list[str] | None:
        return next((named[name] for name in names if name in named), None)

    return about(
        title=first("dc.title", "dcterms.title", "citation_title", "og:title") or (title and title.get_text(" ")),
        author=first("author", "dc.creator", "dcterms.creator", "citation_author", "article:author"),
        date=first(
            "date", "dc.date", "dcterms.date", "dcterms.created", "citation_publication_date", "citation_date",
            "article:published_time", "datepublished",
        ),
        language=(root and (root.get("lang") or root.get("xml:lang"))) or first("dc.language", "language", "og:locale"),
    )  # fmt: skip


def parse_html(source: str | bytes) -> BeautifulSoup:
    """Parse HTML or XHTML; bytes are decoded by their byte order mark or by the encoding that the document names."""
    import warnings

    import bs4
    from bs4.dammit import EncodingDetector

    encoding = None
    if isinstance(source, bytes) and not EncodingDetector.strip_byte_order_mark(source)[1]:
        named = EncodingDetector.find_declared_encoding(source, is_html=True) or ""
        encoding = "windows-1252" if named.strip().lower() in _WINDOWS_1252 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bs4.BeautifulSoup(source, "lxml", from_encoding=encoding)
        except bs4.FeatureNotFound:
            return bs4.BeautifulSoup(source, "html.parser", from_encoding=encoding)


def html_sections(source: str | bytes, anchors: Mapping[str, str] | None = None) -> list[Section]:
    """Split HTML at its h1, h2 and h3 into (heading, paragraphs), without scripts, menus and hidden parts.

    anchors: id of an element to the title of the section that begins there; such a section ends at the next one, and
        headings in it do not.
    """
    return sections_of(parse_html(source), anchors)[0]


def sections_of(soup: BeautifulSoup, anchors: Mapping[str, str] | None = None) -> tuple[list[Section], int]:
    """The sections of a parsed page, and the number of its menus and hidden parts that were left out."""
    head = soup.find("title")
    title = tidy(head.get_text(" ").replace("\n", " ")) or None if head is not None else None
    walker = _Walker(title, anchors or {})
    walker.walk(soup)
    walker.close()
    return walker.sections, walker.hidden


class _Walker:
    """Collects the text of a tree without recursion: a hostile page may be nested deeper than Python allows."""

    def __init__(self, title: str | None, anchors: Mapping[str, str]) -> None:
        self.sections: list[Section] = []
        self.hidden = 0
        self._title = title
        self._anchors = anchors
        self._paragraphs: list[str] = []
        self._inline: list[str] = []
        self._grid: Grid | None = None  # of the data table around
        self._in_head = self._in_cell = False
        self._outer: list[list[str]] = []  # what stands before the superscripts and subscripts around
        self._small = ""  # the last one, while nothing follows it
        self._lists = 0
        self._marker = ""
        self._group = ""

    def walk(self, root: Tag) -> None:
        from bs4.element import NavigableString, PreformattedString, Tag

        stack: list[tuple[object, bool]] = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving and isinstance(node, Tag):
                self._leave(node)
            elif isinstance(node, PreformattedString):
                continue
            elif isinstance(node, NavigableString):
                text = re.sub(r"\s+", " ", str(node))
                self._inline.append(after_lowered(self._small, text) + text)
                self._small = ""
            elif isinstance(node, Tag) and _is_hidden(node):
                self.hidden += node.name not in _NO_TEXT and bool(node.get_text(strip=True))
            elif isinstance(node, Tag):
                if self._anchors:
                    self._at_anchor(node)
                if node.name == "br":
                    self._inline.append("\n")
                elif node.name == "pre":
                    self._end_paragraph()
                    if self._in_cell:
                        self._inline.append(node.get_text(" "))
                    else:
                        self._add(tidy(node.get_text(), verbatim=True))
                elif node.name == "svg":
                    self._end_paragraph()
                    self._add("\n".join(filter(None, (tidy(one.get_text(" ")) for one in node.find_all("text")))))
                elif node.name == "img":
                    self._inline.append(str(node.get("alt") or ""))
                else:
                    if node.name in _BLOCKS:
                        self._enter(node)
                    elif node.name in _SMALL or _is_note_mark(node):
                        self._outer.append(self._inline)
                        self._inline = []
                    stack.append((node, True))
                    stack.extend((child, False) for child in reversed(node.contents))

    def close(self) -> None:
        self._end_paragraph()
        self.sections.append((self._title, self._paragraphs))
        self._paragraphs = []

    def _at_anchor(self, node: Tag) -> None:
        title = self._anchors.get(str(node.get("id") or (node.get("name") if node.name == "a" else None)))
        if title is not None and not self._in_cell and not self._outer:
            self._end_paragraph()
            self.close()
            self._title = title

    def _enter(self, node: Tag) -> None:
        self._end_paragraph()
        if node.name in _TITLES and not self._anchors:
            self.close()
        elif node.name == "li" and self._in_cell:
            before = "".join(self._inline).strip()
            self._inline = [before, "; "] if before else []
        elif node.name == "li":
            self._marker = "  " * max(self._lists - 1, 0) + "- "
        elif node.name in _LISTS:
            self._group = self._group if self._lists else ""
            self._lists += 1
        elif node.name == "table":
            self._grid = Grid() if _is_data(node) else None
        elif self._grid is not None:
            if node.name == "tr":
                self._grid.begin_row()
            elif node.name == "thead":
                self._in_head = True
            elif node.name in _CELLS:
                self._in_cell = True

    def _leave(self, node: Tag) -> None:
        name = node.name
        if name in _SMALL or _is_note_mark(node):
            self._leave_small(node)
        elif name in _TITLES:
            heading = self._text().replace("\n", " ")
            if heading:
                self._title = self._title if self._anchors else heading
                self._add(heading)
        elif name in _CELLS and self._grid is not None:
            is_name = name == "th" or self._in_head
            self._grid.add(self._text(), _span(node, "colspan"), _span(node, "rowspan"), name=is_name)
            self._in_cell = False
        elif name in _BLOCKS:
            self._end_paragraph()
        if name == "table" and self._grid is not None:
            self._grid.end_row()
            for part in parts_of(self._grid.rows, self._grid.heads or guessed_heads(self._grid.rows)):
                self._add(part)
            self._grid = None
        elif name == "thead":
            self._in_head = False
        elif name in _LISTS:
            self._lists -= 1

    def _leave_small(self, node: Tag) -> None:
        text = "".join(self._inline).strip()
        self._inline = self._outer.pop()
        before = "".join(self._inline[-8:])[-40:]
        if node.name == "rt":
            self._inline.append(f"({text})" if text else "")
        elif node.name == "sub":
            self._inline.append(lowered(before, text))
        else:
            self._inline.append(raised(before, text, linked=_is_linked(node)))
        self._small = self._inline[-1]

    def _text(self) -> str:
        text = tidy("".join(self._inline))
        self._inline = []
        return text

    def _end_paragraph(self) -> None:
        if self._in_cell:
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
        """Add a paragraph; the items of a list are lines of one paragraph."""
        if not text:
            return
        if group and group == self._group and self._paragraphs:
            self._paragraphs[-1] += "\n" + text
        else:
            self._paragraphs.append(text)
        self._group = group


def _is_data(table: Tag) -> bool:
    """Tell whether a table holds data, rather than the layout of a page."""
    if table.get("role") in ("presentation", "none") or table.find(["table", "h1", "h2", "h3"]):
        return False
    if table.find(["th", "thead", "caption"]):
        return True
    cells = table.find_all(["td"])
    if not table.find(["ul", "ol", "pre", "h4"]) and not any(len(cell.find_all("p")) > 1 for cell in cells):
        return True
    rows = [len(row.find_all(["td"], recursive=False)) for row in table.find_all("tr")]
    return len(rows) > 1 and min(rows) > 1 and len(table.get_text()) <= _SHORT_CELL * len(cells)


def _span(cell: Tag, name: str) -> int:
    """How many columns or rows a cell covers; zero rows are all that follow."""
    try:
        return int(str(cell.get(name) or 1)) or 1 << 16
    except ValueError:
        return 1


def _is_note_mark(node: Tag) -> bool:
    """Tell whether a link is the mark of a note, as EPUB and DPUB-ARIA name it."""
    return node.name == "a" and "noteref" in f"{node.get('epub:type')} {node.get('role')}"


def _is_linked(node: Tag) -> bool:
    """Tell whether a superscript is the mark of a note: a link, or called so."""
    near = (node, node.parent, *node.contents[:4])
    if any(getattr(one, "name", None) == "a" for one in near):
        return True
    return _NOTE.search(f"{node.get('epub:type')} {node.get('role')} {node.get('class')}") is not None


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
