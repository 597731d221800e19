"""Office files as ZIP archives: what kind they are, and a check of their size before a library unpacks them."""

from __future__ import annotations

import contextlib
import importlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import DamagedSource, EncryptedSource, ReaderMissing, SourceError, SourceTooLarge
from ..about import about

# Bytes of all entries together once they are unpacked. Pictures count, although they are not read.
_MOST = 1 << 29
_ENTRY = 1 << 28
_CORE = "docProps/core.xml"
LIBRARIES = {
    "docx": "mammoth",
    "pptx": "pptx",
    "xlsx": "openpyxl",
    "odt": "odfdo",
    "rtf": "striprtf.striprtf",
}
NAMES = {
    "docx": "a Word file",
    "pptx": "a PowerPoint file",
    "xlsx": "an Excel file",
    "odt": "an OpenDocument text",
    "rtf": "an RTF file",
}


def library(name: str, path: Path, kind: str) -> Any:
    """Import a library of the extra `office`. Raises ReaderMissing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ReaderMissing(
            f"'{path.name}' is {NAMES[kind]}; to read it, install: pip install 'infinimem[office]'"
        ) from error


def checked(path: Path) -> set[str]:
    """The names of an archive's entries. Raises SourceTooLarge, EncryptedSource, DamagedSource."""
    with _damage(path), zipfile.ZipFile(path) as archive:
        # Python unpacks no more of an entry than the size that the archive states.
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > _MOST or any(
            entry.file_size > _ENTRY for entry in entries if entry.filename.endswith((".xml", ".rels"))
        ):
            raise SourceTooLarge(
                f"'{path.name}' unpacks to more than the {_MOST >> 20:,} MB that are read; split it, or save its text"
            )
        if any(entry.flag_bits & 1 for entry in entries):
            raise EncryptedSource(f"'{path.name}' is a ZIP with a password; save a copy without the password")
        return {entry.filename for entry in entries}


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Errors of a library about a file become DamagedSource: a broken file can make a parser fail in any way."""
    try:
        yield
    except (OSError, MemoryError, RecursionError, SourceError):
        raise
    except Exception as error:
        raise DamagedSource(
            f"'{path.name}' is damaged ({type(error).__name__}: {str(error)[:100]}); open it in an office program and "
            "save it again"
        ) from error


damage = _damage


def parsed(content: bytes) -> Any:
    """The root of an XML file, without entities, DTDs and network."""
    etree: Any = importlib.import_module("lxml.etree")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    return etree.fromstring(content, parser)


def properties(path: Path, names: set[str]) -> dict[str, str]:
    """What the core properties of an Office Open XML file say about it."""
    if _CORE not in names:
        return {}
    with _damage(path), zipfile.ZipFile(path) as archive:
        root = parsed(archive.read(_CORE))

    def text(name: str) -> str | None:
        return next(("".join(node.itertext()) for node in root.iter(f"{{*}}{name}")), None)

    # The day of the last change is that of the text; the day of creation may be that of its template.
    date = text("modified") or text("created")
    return about(title=text("title"), author=text("creator"), date=date, language=text("language"))
