"""Kinds of documents: what a suffix promises, and what the first bytes of a file are."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DamagedSource, EncryptedSource, UnsupportedSource
from .office.package import NAMES as OFFICE_NAMES

HEAD = 1 << 16
"""The bytes at the beginning of a file that tell its kind."""


KINDS = {
    ".pdf": "pdf",
    ".epub": "epub",
    ".txt": "text",
    ".text": "text",
    ".rst": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".docx": "docx",
    ".docm": "docx",
    ".pptx": "pptx",
    ".pptm": "pptx",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".odt": "odt",
    ".rtf": "rtf",
    ".eml": "mail",
    ".ipynb": "notebook",
    ".csv": "csv",
    ".tsv": "csv",
}
"""The kind of document that each suffix promises. The content of a file of another suffix decides."""


PROSE = frozenset({".log", ".tex"})
"""Suffixes of text that is prose, even where its lines look like code."""


ZIPPED = frozenset({"epub", "docx", "pptx", "xlsx", "odt"})
"""Kinds that are ZIP archives."""


ADVICE = "infinimem reads PDF, EPUB, Office files, mail, notebooks, HTML, Markdown and other text"
_OLD_OFFICE = b"\xd0\xcf\x11\xe0"
_BINARY = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    _OLD_OFFICE: "an old Office file",
    b"PK\x05\x06": "an empty ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\x7fELF": "a program",
    b"SQLite format 3": "an SQLite database",
    b"%!PS": "a PostScript file",
}
_IMAGES = frozenset({"a PNG image", "a JPEG image", "a GIF image", "a TIFF image"})
NAMES = {**OFFICE_NAMES, "pdf": "a PDF", "epub": "an EPUB", "notebook": "a Jupyter notebook"}
"""Kinds whose first bytes tell them from all others, and what to call a file."""


_MAIL = re.compile(rb"(?:[A-Za-z][\w-]*:[^\n]*\n(?:[ \t][^\n]*\n)*){2,}", re.ASCII)
_MAIL_FIELD = re.compile(rb"^(?:from|received|return-path|message-id|mime-version):", re.IGNORECASE | re.MULTILINE)


def kind_by_head(path: Path, head: bytes, ocr: bool = False) -> str:
    """Return the kind of a file by its suffix and its first bytes; "zip" where the content must decide.

    path: only its name is used; the file is not opened.
    head: the first bytes of the file.
    ocr: whether images are documents.

    Raises UnsupportedSource for binary files; DamagedSource where the name promises one of NAMES and the bytes are
    something else; EncryptedSource for Office files with a password.
    """
    from .lines import looks_like_code
    from .plain import looks_binary

    # Junk in front of the header is common; PDF programs accept a header anywhere in the first kilobyte.
    if b"%PDF-" in head[:1024]:
        return "pdf"
    by_suffix = KINDS.get(path.suffix.lower())
    if head.startswith(b"PK\x03\x04"):
        return by_suffix if by_suffix in ZIPPED else "zip"
    if head.startswith(b"{\\rtf"):
        return "rtf"
    if by_suffix in NAMES and not (by_suffix == "notebook" and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")):
        if head.startswith(_OLD_OFFICE):
            raise EncryptedSource(
                f"'{path.name}' has a password, or is an old Office file under a new name; save it as "
                f"{NAMES[by_suffix]} without a password"
            )
        raise is_not(path, by_suffix)
    for magic, what in _BINARY.items():
        if head.startswith(magic):
            if what in _IMAGES:
                if ocr:
                    return "image"
                raise UnsupportedSource(
                    f"'{path.name}' is {what}; convert it, or recognize the text in it with --ocr (ocr=True)"
                )
            raise UnsupportedSource(f"'{path.name}' is {what}; {ADVICE}; convert it to one of these first")
    if path.suffix.lower() in (".safetensors", ".partial", ".gguf"):
        raise UnsupportedSource(f"'{path.name}' is a memory file or the weights of a model, and no document")
    if looks_binary(head):
        raise UnsupportedSource(f"'{path.name}' is a binary file; {ADVICE}; convert it to one of these first")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith((b"<!doctype html", b"<html")) and by_suffix != "markdown":
        return "html"
    if by_suffix is None and path.suffix.lower() not in PROSE:
        if _MAIL.match(head) and _MAIL_FIELD.search(head[:4096]):
            return "mail"
        return "code" if looks_like_code(head.decode("utf-8", "replace")) else "text"
    return by_suffix or "text"


def is_not(path: Path, promised: str) -> DamagedSource:
    """The error for a file that is not of the kind that its name promises."""
    return DamagedSource(f"'{path.name}' is not {NAMES[promised]} inside, whatever its name says; get a fresh copy")
