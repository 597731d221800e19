"""EPUB: the chapters in the order of the book's spine; each chapter is one page.

The archive is read with `zipfile` and never unpacked to disk, so a hostile path in the archive has no effect.
"""

from __future__ import annotations

import importlib
import posixpath
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import DamagedSource, EncryptedSource, SourceError
from .html import html_sections, parse_html
from .page import Visits
from .prose import tidy

_ENTRY_LIMIT = 50 * 1024 * 1024
_CHAPTERS = frozenset({"application/xhtml+xml", "text/html", "application/x-dtbook+xml", "image/svg+xml"})
# A book without DRM may still have obfuscated fonts. These algorithms obfuscate fonts and protect nothing else.
_FONT_ALGORITHMS = frozenset({"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"})


@dataclass(frozen=True, slots=True)
class _Spine:
    chapters: list[str]
    titles: dict[str, str]


def chapter_count(path: Path) -> int:
    """Return the number of chapters in the spine. Raises DamagedSource or EncryptedSource."""
    with _opened(path) as archive:
        return len(_spine(archive, path.name).chapters)


def epub_pages(path: Path, visits: Visits) -> Iterator[tuple[int, str, str | None]]:
    """Yield (number, text, title) for the chapters of a book that have text."""
    with _opened(path) as archive:
        spine = _spine(archive, path.name)
        for number, name in enumerate(spine.chapters, start=1):
            if number in visits.left_out:
                continue
            visits.begun(number)
            try:
                sections = list(html_sections(_entry(archive, name, path.name)))
                text = "\n\n".join(paragraph for _, paragraphs in sections for paragraph in paragraphs)
                visits.check_size(number, len(text), path.name)
            except SourceError as error:
                visits.give_up(number, error)
                continue
            if text.strip():
                heading = next((title for title, paragraphs in sections if title in paragraphs), None)
                yield number, text, spine.titles.get(name) or heading


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
    for reference in _named(root, "itemref"):
        item = _readable(items, str(reference.get("idref")))
        if item is not None:
            chapters.append(_resolve(base, str(item.get("href", ""))))
    if not chapters:
        raise _damaged(book, "it lists no chapters")
    return _Spine(chapters, _titles(archive, items, base, book))


def _readable(items: dict[str, Any], name: str) -> Any:
    """An item of the manifest, or the first of its fallbacks that is a chapter; None where there is none."""
    seen: set[str] = set()
    while name in items and name not in seen:
        if items[name].get("media-type") in _CHAPTERS:
            return items[name]
        seen.add(name)
        name = str(items[name].get("fallback"))
    return None


def _resolve(base: str, href: str) -> str:
    return posixpath.normpath(posixpath.join(base, unquote(href.split("#")[0])))


def _refuse_encrypted(archive: zipfile.ZipFile, book: str) -> None:
    if "META-INF/encryption.xml" not in archive.namelist():
        return
    for method in _named(_xml(archive, "META-INF/encryption.xml", book), "EncryptionMethod"):
        if method.get("Algorithm") not in _FONT_ALGORITHMS:
            raise EncryptedSource(f"'{book}' is protected by DRM; use a copy without it")


def _titles(archive: zipfile.ZipFile, items: dict[str, Any], base: str, book: str) -> dict[str, str]:
    """Return the first label of each chapter in the table of contents; empty where the book has no such table."""
    titles: dict[str, str] = {}
    present = frozenset(archive.namelist())
    for item in items.values():
        name = _resolve(base, str(item.get("href", "")))
        folder = posixpath.dirname(name)
        if name not in present:
            continue
        if "nav" in str(item.get("properties", "")).split():
            for link in parse_html(_entry(archive, name, book)).select("nav a[href]"):
                titles.setdefault(_resolve(folder, str(link["href"])), tidy(link.get_text(" ").replace("\n", " ")))
        elif item.get("media-type") == "application/x-dtbncx+xml":
            for point in _named(_xml(archive, name, book), "navPoint"):
                label = " ".join("".join(text.itertext()) for text in list(_named(point, "text"))[:1])
                target = next((str(node.get("src", "")) for node in _named(point, "content")), "")
                titles.setdefault(_resolve(folder, target), tidy(label.replace("\n", " ")))
    return titles
