"""What commands print: plain text for terminals, JSON, progress bars."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click


def count(number: int, noun: str) -> str:
    """A number and its noun, as in "1 page" and "2 pages"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


UNPRINTABLE = re.compile("[^ -~]")


@contextlib.contextmanager
def counter(what: str, silent: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on standard error, and give the function that takes the numbers done and in all.

    what: what is counted.
    silent: show no bar; nor is one shown where standard error is no terminal. The context then gives None.
    """
    if silent or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on standard output; characters that a terminal would obey are escaped."""
    click.echo(UNPRINTABLE.sub(_escaped, json.dumps(value, ensure_ascii=False)))


def _escaped(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


def size(count: int) -> str:
    """A number of bytes as people read it."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} KB"


def plain(value: Any, keep: str = "") -> str:
    """Text that is safe to show in a terminal: no control characters from a document, except those in `keep`."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


# A damaged document may have thousands of damaged pages.
MOST_WARNINGS = 20


def skipped(name: str, page: int | None, reason: str) -> str:
    """Which part of a source was left out, and why. page: None for the rest of the source."""
    what = "what could not be read" if page is None else f"page {page}"
    return f"{what} of {plain(name)}: {plain(reason)}"


def prose(text: str) -> str:
    """`plain` for text of several lines."""
    return plain(text, keep="\n\t")
