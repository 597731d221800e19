"""Progress of an ingestion: pages, tokens per second, time left. Shown on standard error if that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far the ingestion of a source has come.

    source: name of the source.
    page: number of the last page that was taken in.
    page_count: number of pages; None where unknown.
    characters: characters of the source taken in so far.
    size: bytes of the file; None where unknown.
    tokens: tokens of the source taken in within `seconds`.
    seconds: time since the ingestion of the source began, or was resumed.
    """

    source: str
    page: int
    page_count: int | None
    characters: int
    size: int | None
    tokens: int
    seconds: float

    @property
    def fraction(self) -> float | None:
        """Share of the source that is done, from 0 to 1; without a page count an estimate; None if unknown."""
        if self.page_count:
            return min(1.0, self.page / self.page_count)
        return min(1.0, self.characters / self.size) if self.size else None


ProgressCallback = Callable[[Progress], None]


@contextlib.contextmanager
def shown_progress(progress: bool | ProgressCallback) -> Iterator[ProgressCallback | None]:
    """Give the function to call after each page.

    progress: the function itself, or True for a bar on standard error. The context gives None for False, and for True
        where standard error is no terminal.
    """
    if callable(progress):
        yield progress
        return
    if not progress or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.fields[name]}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(now: Progress) -> None:
            if now.source not in tasks:
                tasks[now.source] = bar.add_task("", total=1.0, name=now.source, status="")
            pages = f"page {now.page}/{now.page_count}" if now.page_count else f"page {now.page}"
            speed = now.tokens / now.seconds if now.seconds else 0.0
            bar.update(
                tasks[now.source],
                completed=now.fraction or 0.0,
                status=f"{pages}  {now.tokens:,} tokens  {speed:,.0f} tokens/s",
            )

        yield show
