"""Progress of reading on standard error: pages, tokens per second, time left. Silent where no one watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .reading import Progress, ProgressCallback


@contextlib.contextmanager
def reading_progress(progress: bool | ProgressCallback) -> Iterator[ProgressCallback | None]:
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
