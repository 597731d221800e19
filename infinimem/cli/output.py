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
    """A number of things, the noun in the plural where there are several."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


UNPRINTABLE = re.compile("[^ -~]")


@contextlib.contextmanager
def counter(what: str, silent: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error for things that are counted; None where no one watches."""
    if silent or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output; what a terminal would obey is escaped."""
    click.echo(UNPRINTABLE.sub(_escaped, json.dumps(value, ensure_ascii=False)))


def _escaped(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} KB"


def plain(value: Any, keep: str = "") -> str:
    """Text for a terminal: no control characters but those in `keep`, whatever a document holds."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


# A damaged document may have thousands of damaged pages.
MOST_WARNINGS = 20


def skipped(name: str, page: int | None, reason: str) -> str:
    """One thing that was left out of a source, and why."""
    what = "what could not be read" if page is None else f"page {page}"
    return f"{what} of {plain(name)}: {plain(reason)}"


def prose(text: str) -> str:
    """`plain` for text of several lines."""
    return plain(text, keep="\n\t")
