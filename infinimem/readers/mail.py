"""Mail (.eml): sender, receivers, day and subject, the text, and the messages and texts that are attached."""

from __future__ import annotations

import email.policy
from collections.abc import Iterator
from dataclasses import replace
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path

from .about import about
from .html import Section, html_sections
from .page import Page
from .prose import section_pages, tidy

_HEADERS = ("From", "To", "Cc", "Date", "Subject")
_DEEPEST = 8  # messages inside one another


def mail_pages(path: Path) -> Iterator[Page]:
    """Yield the sections of a mail as pages."""
    message = BytesParser(policy=email.policy.default).parsebytes(path.read_bytes())
    attached: list[str] = []
    pages = section_pages(list(_sections(message, attached, _DEEPEST)))
    for page in islice(pages, 1):
        subject, sender = (_header(message, name) for name in ("Subject", "From"))
        left_out = {"attachments": len(attached)} if attached else {}
        yield replace(page, about=about(title=subject, author=sender, date=_day(message)), left_out=left_out)
    yield from pages


def _sections(message: EmailMessage, attached: list[str], deepest: int) -> Iterator[Section]:
    """The sections of a message; the names of what is attached and not read are added to `attached`."""
    title = _header(message, "Subject") or None
    lines = [f"{name}: {value}" for name in _HEADERS if (value := _header(message, name))]
    body = message.get_body(("plain", "html"))
    sections: list[Section] = []
    if body is not None and body.get_content_type() == "text/html":
        sections = [(heading or title, texts) for heading, texts in html_sections(_content(body))]
    elif body is not None:
        sections = [(title, [tidy(text) for text in _content(body).replace("\r\n", "\n").split("\n\n")])]
    rest: list[Section] = []
    names: list[str] = []
    for part in message.iter_attachments():
        if part.get_content_type() == "message/rfc822" and deepest:
            for inner in part.iter_parts():
                if isinstance(inner, EmailMessage):
                    rest += _sections(inner, attached, deepest - 1)
        elif part.get_content_maintype() == "text" and not part.is_multipart():
            rest.append((tidy(part.get_filename() or "") or title, [tidy(_content(part), verbatim=True)]))
        else:
            names.append(tidy(part.get_filename() or part.get_content_type()))
    attached += names
    lines += [f"Attached: {', '.join(names)}"] if names else []
    yield title, ["\n".join(lines)]
    yield from sections
    yield from rest


def _content(part: MIMEPart) -> str:
    """The text of a part; bytes that its charset does not know, and unknown charsets, cost no more than letters."""
    content = part.get_payload(decode=True)
    raw = content if isinstance(content, bytes) else b""
    try:
        return raw.decode(part.get_content_charset() or "utf-8", "replace")
    except LookupError:
        return raw.decode("utf-8", "replace")


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(tidy(str(message.get(name) or "")).split())
    except (ValueError, IndexError, AttributeError):  # of headers that no mail program writes
        return ""


def _day(message: EmailMessage) -> str | None:
    try:
        return parsedate_to_datetime(_header(message, "Date")).date().isoformat()
    except (ValueError, TypeError, IndexError):
        return None
