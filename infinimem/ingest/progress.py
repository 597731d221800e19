"""Progress of an ingestion on standard error: pages, tokens per second, time left. Silent where no one watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far an ingestion has come. page_count and size (bytes) are None where unknown."""

    source: str
    page: int
    page_count: int | None
    characters: int
    size: int | None
    tokens: int
    seconds: float

    @property
    def fraction(self) -> float | None:
        """Share of this source that is done, as far as it can be known."""
        if self.page_count:
            return min(1.0, self.page / self.page_count)
        return min(1.0, self.characters / self.size) if self.size else None


ProgressCallback = Callable[[Progress], None]


@contextlib.contextmanager
def shown_progress(progress: bool | ProgressCallback) -> Iterator[ProgressCallback | None]:
    """The function to call after each page: the caller's own, a rich bar for True, None for False or no terminal."""
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
