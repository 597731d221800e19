"""What commands print: plain text for terminals, JSON, progress bars."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
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
MOST_RANGES = 12


def skipped(name: str, page: int | None, reason: str) -> str:
    """Which part of a source was left out, and why. page: None for the rest of the source."""
    what = "what could not be read" if page is None else f"page {page}"
    return f"{what} of {plain(name)}: {plain(reason)}"


def doubts(source: dict[str, Any]) -> list[str]:
    """A line for each reason to doubt the text of pages of a source, as the record has them."""
    reasons: dict[str, list[int]] = {}
    for row in source["doubtful"]:
        reasons.setdefault(row["reason"], []).append(row["page"])
    return [
        f"{'page' if len(pages) == 1 else 'pages'} {ranges(sorted(pages))} of {plain(source['name'])}: {plain(reason)}"
        for reason, pages in reasons.items()
    ]


def ranges(numbers: Sequence[int]) -> str:
    """Increasing numbers in short, as in "1, 3-5"; at most MOST_RANGES, then how many more."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    shown = ", ".join("-".join(map(str, run)) for run in runs[:MOST_RANGES])
    more = len(runs) - MOST_RANGES
    return shown if more <= 0 else f"{shown} and {more:,} more places"


def prose(text: str) -> str:
    """`plain` for text of several lines."""
    return plain(text, keep="\n\t")
