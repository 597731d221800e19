"""EPUB: the chapters in the order of the book's spine; each chapter is one page.

The archive is read with `zipfile` and never unpacked to disk, so a hostile path in the archive has no effect.
"""

from __future__ import annotations

import importlib
import posixpath
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import DamagedSource, EncryptedSource, SourceError
from .about import about
from .html import html_sections, parse_html
from .page import Page, Visits
from .prose import tidy

_ENTRY_LIMIT = 50 * 1024 * 1024
_DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
_CHAPTERS = frozenset({"application/xhtml+xml", "text/html", "application/x-dtbook+xml", "image/svg+xml"})
# A book without DRM may still have obfuscated fonts. These algorithms obfuscate fonts and protect nothing else.
_FONT_ALGORITHMS = frozenset({"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"})


@dataclass(frozen=True, slots=True)
class _Spine:
    """The book as its package file describes it.

    chapters: names of the files, in reading order.
    contents: file to the titles of the table of contents that lead into it, by the id of an element; "" is the file.
    about: as `ABOUT` names it.
    lost: number of items in the reading order that have no text, such as images.
    """

    chapters: list[str]
    contents: dict[str, dict[str, str]]
    about: dict[str, str]
    lost: int


def chapter_count(path: Path) -> int:
    """Return the number of chapters in the spine. Raises DamagedSource or EncryptedSource."""
    with _opened(path) as archive:
        return len(_spine(archive, path.name).chapters)


def epub_pages(path: Path, visits: Visits) -> Iterator[Page]:
    """Yield the chapters of a book that have text as pages."""
    with _opened(path) as archive:
        spine = _spine(archive, path.name)
        title: str | None = None
        first: dict[str, Any] = {
            "about": spine.about,
            "left_out": {"items without text": spine.lost} if spine.lost else {},
        }
        for number, name in enumerate(spine.chapters, start=1):
            if number in visits.left_out:
                continue
            visits.begun(number)
            try:
                page = _chapter(number, _entry(archive, name, path.name), spine.contents.get(name, {}), title)
                visits.check_size(number, len(page.text), path.name)
            except SourceError as error:
                visits.give_up(number, error)
                continue
            if page.text:
                yield replace(page, **first)
                first, (*_, (title, _)) = {}, page.sections()


def _chapter(number: int, content: bytes, contents: dict[str, str], before: str | None) -> Page:
    """A file of the book, divided where the table of contents leads into it; without such places, at its headings.

    contents: the titles in the table of contents, by the id of an element.
    before: title of the section before; a file that has no title goes on with it.
    """
    anchors = {name: title for name, title in contents.items() if name}
    sections = [
        (title, "\n\n".join(paragraphs))
        for title, paragraphs in html_sections(content, anchors if len(contents) > 1 else None)
        if any(map(str.strip, paragraphs))
    ]
    if not sections:
        return Page(number, "")
    starts = list(accumulate((len(text) + 2 for _, text in sections), initial=0))
    (title, _), *others = sections
    if len(contents) > 1:
        title = title if title in anchors.values() else contents.get("", before)
    else:
        # The title in the head of a chapter is often that of the whole book.
        heading = next((one for one, text in sections if one and one in text), None)
        title = next(iter(contents.values()), None) or heading or before
    headings = tuple((start, one) for start, (one, _) in zip(starts[1:], others, strict=False))
    return Page(number, "\n\n".join(text for _, text in sections), title, headings=headings)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise _damaged(path.name, str(error)) from error


def _damaged(book: str, reason: str) -> DamagedSource:
    return DamagedSource(f"'{book}' is a damaged EPUB ({reason}); get a fresh copy or convert it again")


def _entry(archive: zipfile.ZipFile, name: str, book: str) -> bytes:
    import zlib

    try:
        with archive.open(name) as file:
            # The size in the archive's directory may be wrong, so the limit counts the unpacked bytes.
            content = file.read(_ENTRY_LIMIT + 1)
    except KeyError:
        raise _damaged(book, f"'{name}' is missing") from None
    except RuntimeError as error:
        raise EncryptedSource(f"'{book}' is a ZIP with a password; save a copy without the password") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise _damaged(book, f"'{name}' cannot be unpacked") from error
    if len(content) > _ENTRY_LIMIT:
        raise _damaged(book, f"'{name}' unpacks to more than {_ENTRY_LIMIT // 1024**2} MB")
    return content


def _xml(archive: zipfile.ZipFile, name: str, book: str) -> Any:
    # lxml has no type information. Imported by name, it is `Any` whether type stubs are installed or not.
    etree: Any = importlib.import_module("lxml.etree")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=True)
    content = _entry(archive, name, book)
    try:
        root = etree.fromstring(content, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise _damaged(book, f"'{name}' is not XML") from error
    if root is None:
        raise _damaged(book, f"'{name}' is not XML")
    return root


def _named(root: Any, name: str) -> Iterator[Any]:
    yield from root.iter(f"{{*}}{name}")


def _spine(archive: zipfile.ZipFile, book: str) -> _Spine:
    _refuse_encrypted(archive, book)
    container = _xml(archive, "META-INF/container.xml", book)
    package = next((str(node.get("full-path")) for node in _named(container, "rootfile") if node.get("full-path")), "")
    if not package:
        raise _damaged(book, "it names no package file")
    root = _xml(archive, package, book)
    base = posixpath.dirname(package)
    items = {str(item.get("id")): item for item in _named(root, "item")}
    chapters: list[str] = []
    lost = 0
    for reference in _named(root, "itemref"):
        item = _readable(items, str(reference.get("idref")))
        if item is None:
            lost += 1
        else:
            chapters.append(_resolve(base, str(item.get("href", "")))[0])
    if not chapters:
        raise _damaged(book, "it lists no chapters")
    return _Spine(chapters, _contents(archive, items, base, book), _about(root), lost)


def _about(package: Any) -> dict[str, str]:
    """What the Dublin Core elements of the package file say; of several dates, the one of the publication."""

    def texts(name: str) -> list[str]:
        return ["".join(node.itertext()) for node in package.iter(f"{_DUBLIN_CORE}{name}")]

    return about(
        title=texts("title")[:1],
        author=texts("creator"),
        date=texts("date")[:1],
        language=texts("language")[:1],
    )


def _readable(items: dict[str, Any], name: str) -> Any:
    """An item of the manifest, or the first of its fallbacks that is a chapter; None where there is none."""
    seen: set[str] = set()
    while name in items and name not in seen:
        if items[name].get("media-type") in _CHAPTERS:
            return items[name]
        seen.add(name)
        name = str(items[name].get("fallback"))
    return None


def _resolve(base: str, href: str) -> tuple[str, str]:
    """The file that a link leads to, and the id of an element in it, or ""."""
    name, _, anchor = href.partition("#")
    return posixpath.normpath(posixpath.join(base, unquote(name))), unquote(anchor)


def _refuse_encrypted(archive: zipfile.ZipFile, book: str) -> None:
    if "META-INF/encryption.xml" not in archive.namelist():
        return
    for method in _named(_xml(archive, "META-INF/encryption.xml", book), "EncryptionMethod"):
        if method.get("Algorithm") not in _FONT_ALGORITHMS:
            raise EncryptedSource(f"'{book}' is protected by DRM; use a copy without it")


def _contents(archive: zipfile.ZipFile, items: dict[str, Any], base: str, book: str) -> dict[str, dict[str, str]]:
    """The table of contents, as `_Spine` has it; empty where the book has none."""
    contents: dict[str, dict[str, str]] = {}
    present = frozenset(archive.namelist())

    def add(folder: str, href: str, label: str) -> None:
        name, anchor = _resolve(folder, href)
        title = tidy(label.replace("\n", " "))
        if title:
            contents.setdefault(name, {}).setdefault(anchor, title)

    for item in items.values():
        name, _ = _resolve(base, str(item.get("href", "")))
        folder = posixpath.dirname(name)
        if name not in present:
            continue
        if "nav" in str(item.get("properties", "")).split():
            for nav in parse_html(_entry(archive, name, book)).select("nav"):
                # The other lists are of printed pages, figures and landmarks.
                if str(nav.get("epub:type") or "toc") == "toc":
                    for link in nav.select("a[href]"):
                        add(folder, str(link["href"]), link.get_text(" "))
        elif item.get("media-type") == "application/x-dtbncx+xml":
            for point in _named(_xml(archive, name, book), "navPoint"):
                label = " ".join("".join(text.itertext()) for text in list(_named(point, "text"))[:1])
                add(folder, next((str(node.get("src", "")) for node in _named(point, "content")), ""), label)
    return contents
