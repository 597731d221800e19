"""Readers turn files into pages of clean prose.

for path in find_sources("papers/"):
    source = open_source(path)
    for page in read_pages(source):
        ...
"""

from __future__ import annotations

from .find import Found, find_files, find_sources
from .page import Page
from .process.limits import ReaderLimits
from .source import Source, name_of, open_source, read_pages, unread_source

__all__ = [
    "Found",
    "Page",
    "ReaderLimits",
    "Source",
    "find_files",
    "find_sources",
    "name_of",
    "open_source",
    "read_pages",
    "unread_source",
]
