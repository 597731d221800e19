"""What HTML, Markdown, plain text and EPUBs can try, by name of file; each takes a size, of which 1 is nasty."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

MEGABYTE = 1 << 20
CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
    '<rootfile full-path="book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)


def repeated(text: bytes, times: int, end: bytes = b"") -> Callable[[float], bytes]:
    """A text, repeated so many times."""
    return lambda size: text * max(1, int(times * size)) + end


def epub(chapters: list[str], spine: list[int], **more: str) -> bytes:
    """A book of these chapters, in the order of the spine; `more` are entries."""
    items = "".join(f'<item id="c{i}" href="c{i}" media-type="text/html"/>' for i in range(len(chapters)))
    order = "".join(f'<itemref idref="c{i}"/>' for i in spine)
    package = (
        f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{order}</spine></package>'
    )
    entries = {"META-INF/container.xml": CONTAINER, "book.opf": package, **more}
    entries |= {f"c{i}": text for i, text in enumerate(chapters)}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


def _entities(size: float) -> bytes:
    nested = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 2 + int(20 * size)))
    declared = f'<?xml version="1.0"?><!DOCTYPE html [<!ENTITY e0 "{"x" * 1000}">{nested}]>'
    return f"{declared}<html><body><p>Words &e{1 + int(20 * size)};.</p></body></html>".encode()


def _attributes(size: float) -> bytes:
    return b"<p %s>Words.</p>" % b"".join(b"a%d=1 " % i for i in range(int(1_000_000 * size)))


def _references(size: float) -> bytes:
    count = int(200_000 * size)
    return b"".join(b"[r%d]: /u\n" % i for i in range(count)) + b"\n" + b"[r1] " * count


def _lists(size: float) -> bytes:
    return b"".join(b" " * (2 * i) + b"- item\n" for i in range(int(3000 * size) + 10))


def _backticks(size: float) -> bytes:
    return b" ".join(b"`" * i for i in range(1, int(3000 * size) + 10))


def _table(size: float) -> bytes:
    columns, rows = int(20_000 * size) + 1, int(20_000 * size) + 1
    return b"|a" * columns + b"|\n" + b"|-" * columns + b"|\n" + (b"|b" * 20 + b"|\n") * rows


def _bomb(size: float) -> bytes:
    return epub(["<p>" + "word " * int(100 * MEGABYTE * size)], [0])


def _bomb_in_the_package(size: float) -> bytes:
    return epub(["<p>Words."], [0], **{"book.opf": "<package>" + " " * int(500 * MEGABYTE * size) + "</package>"})


def _one_chapter_again_and_again(size: float) -> bytes:
    return epub(["<p>Words."], [0] * int(2_500_000 * size))


def _a_long_chapter(size: float) -> bytes:
    return epub(["<p>Words.", "<p>" + "word " * 2_100_000], [0, 1])


def _entries(size: float) -> bytes:
    return epub(["<p>Words."], [0], **{f"x{i}": "" for i in range(int(200_000 * size))})


NASTIES: dict[str, Callable[[float], bytes]] = {
    "deep blocks.html": lambda size: repeated(b"<div>", 1_000_000)(size) + b"Words.",
    "deep bold.html": repeated(b"<b>", 1_000_000, b"Words."),
    "deep tables.html": repeated(b"<table><tr><td><a><b><p>", 200_000, b"Words."),
    "tables in tables.html": repeated(b"<table>", 100_000, b"Words."),
    "one line.html": lambda size: b"<p>" + repeated(b"word ", 20 * MEGABYTE)(size),
    "many tags.html": repeated(b"<p>a</p>", 3_000_000),
    "attributes.html": _attributes,
    "characters by name.html": repeated(b"&amp;", 5_000_000),
    "entities in entities.html": _entities,
    "comments.html": repeated(b"<!--", 1_000_000, b"Words."),
    "templates.html": repeated(b"<template><p>", 300_000),
    "a long title.html": lambda size: b"<title>" + repeated(b"t", 20 * MEGABYTE)(size) + b"</title><p>Words.",
    "zeros.html": lambda size: b"<p>Words. " * 12_000 + b"\0" * 50 + b" more words.",
    "half characters.html": repeated(b"<p>Some &#xD800; &#55357; \xed\xa0\x80 words.</p>", 1000),
    "one line.md": repeated(b"word ", 20 * MEGABYTE),
    "one word.md": repeated(b"a", 100 * MEGABYTE),
    "quotes in quotes.md": repeated(b"> ", 1_000_000, b"Words."),
    "lists in lists.md": _lists,
    "brackets.md": repeated(b"[", 1_000_000, b"Words."),
    "links.md": repeated(b"[a](", 500_000),
    "emphasis.md": repeated(b"*a **b ", 500_000),
    "backticks.md": _backticks,
    "tables.md": _table,
    "tags.md": repeated(b"<div>\n", 300_000),
    "references.md": _references,
    "a preface without end.md": repeated(b"---\n" + b"a: b\n" * 5, 600_000),
    "zeros.md": lambda size: b"Words. " * 12_000 + b"\0" * 50 + b" more words.",
    "half characters.md": repeated(b"Some &#xD800; &#55357; \xed\xa0\x80 words.\n\n", 1000),
    "one line.txt": repeated(b"word ", 20 * MEGABYTE),
    "one word.txt": repeated(b"a", 100 * MEGABYTE),
    "blank lines.txt": repeated(b"\n", 100 * MEGABYTE, b"Words."),
    "blanks.txt": repeated(b" ", 100 * MEGABYTE, b"Words."),
    "short lines.txt": repeated(b"a\n", 20 * MEGABYTE),
    "form feeds.txt": repeated(b"a\f", 4 * MEGABYTE),
    "accents.txt": lambda size: b"a" + repeated("\u0301".encode(), 5_000_000)(size),
    "zeros.txt": lambda size: b"Words. " * 12_000 + b"\0" * 50 + b" more words.",
    "half characters.txt": repeated(b"Some \xed\xa0\x80 words.\n\n", 1000),
    "half characters in pairs.txt": lambda size: b"\xff\xfe" + b"\0\xd8" * 100 + "Words. ".encode("utf-16-le") * 100,
    "a chapter that explodes.epub": _bomb,
    "a package that explodes.epub": _bomb_in_the_package,
    "one chapter again and again.epub": _one_chapter_again_and_again,
    "a long chapter.epub": _a_long_chapter,
    "many entries.epub": _entries,
}
