"""Starts the process that parses a document, limits its memory and time, and survives its crashes.

Where the process is lost on a page, another process can read the rest of the file without that page. The other process
reads as if the page had been left out from the beginning, so an ingestion that is resumed comes to the same text.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ... import errors
from ...errors import ReaderCrashed, SourceError, SourceTooLarge, SourceTooSlow
from ..page import Page
from .child import OUT_OF_MEMORY
from .limits import ReaderLimits

# A file is given up when this many processes are lost on it.
MOST_LOST = 8
# Ctrl-C reaches all processes of a terminal: the child ignores it, and the parent ends the child. The child imports
# modules from the places that this process uses, whatever the environment says.
_START = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import json, sys
task = json.loads(sys.stdin.buffer.readline())
sys.path[:] = task["modules"]
from infinimem.readers.process.child import main
main(task)
"""


def look_inside(
    path: Path, kind: str, limits: ReaderLimits, wait: bool = False
) -> tuple[str, int | None, WaitingParser | None]:
    """Run `formats.look_inside` in a separate process.

    wait: keep the process, for `pages_of`.

    Returns what `formats.look_inside` returns, and the process that waits (None without `wait`). Raises its errors, and
    SourceTooLarge, SourceTooSlow, ReaderCrashed.
    """
    process = _Process(path, kind, None, limits, _Waits(limits), wait)
    try:
        found, count = next(process.messages())["inside"]
    except BaseException:
        process.end()
        raise
    if not wait:
        process.end()
    return str(found), None if count is None else int(count), WaitingParser(process) if wait else None


class WaitingParser:
    """A process that looked into a file and waits to read it; the process ends when nothing refers to this object."""

    def __init__(self, process: _Process) -> None:
        self._process = process
        self._end = weakref.finalize(self, process.end)

    def take(self, limits: ReaderLimits) -> _Process | None:
        """Return the process once; None where it was taken before, has ended, or was started with other limits."""
        if self._end.detach() is None:  # of several threads, one gets the process
            return None
        if limits == self._process.limits and self._process.is_alive:
            return self._process
        self._process.end()
        return None

    def close(self) -> None:
        """End the process, unless it was taken."""
        self._end()


def pages_of(
    path: Path,
    kind: str,
    limits: ReaderLimits,
    left_out: Collection[int] = (),
    failed: Callable[[int | None, str], None] | None = None,
    waiting: WaitingParser | None = None,
) -> Iterator[Page]:
    """Run `formats.pages_of` in a separate process; where it is lost on a page, a new process goes on after the page.

    left_out: numbers of pages that must not be parsed.
    failed: is called with the number of a page that cannot be read, and the reason; without this function, the error is
        raised.
    waiting: the process that looked into the file; it then reads the file too.

    Raises SourceError; ReaderCrashed where the file is given up.
    """
    lost, first, waits = set(left_out), 1, _Waits(limits)
    for _ in range(MOST_LOST):
        wanted = {"first": first, "left_out": sorted(lost), "skip": failed is not None}
        process = None if waiting is None else waiting.take(limits)
        if process is None:
            process = _Process(path, kind, wanted, limits, waits)
        else:
            process.go_on(kind, wanted, waits)
        with process:
            try:
                for message in process.messages():
                    if "page" in message:
                        page = Page.from_row(message["page"])
                        first = page.number + 1
                        yield page
                    elif "failed" in message and failed is not None:
                        number, reason = message["failed"]
                        lost.add(number)
                        failed(number, reason)
                return
            except (SourceTooLarge, SourceTooSlow, ReaderCrashed) as error:
                if failed is None or process.at is None or waits.spent():
                    raise
                lost.add(process.at)
                failed(process.at, str(error))
    raise ReaderCrashed(
        f"the rest of '{path.name}' is left out after {MOST_LOST} of its pages could not be read; repair the file"
    )


class _Waits:
    """Counts the seconds spent waiting for a file, and tells how many are left."""

    def __init__(self, limits: ReaderLimits) -> None:
        self._most_at_once = limits.page_seconds + limits.extra_seconds
        self._for_each = 1 + limits.extra_seconds
        self._left = limits.seconds
        self._furthest = 0

    def next(self) -> float:
        """Seconds that the next message may take."""
        return max(0.0, min(self._most_at_once, self._left))

    def took(self, seconds: float) -> None:
        """Count the seconds that a message took."""
        self._left -= seconds

    def begun(self, number: int) -> None:
        """Allow more time for each page begun, up to page `number`."""
        self._left += self._for_each * max(0, number - self._furthest)
        self._furthest = max(self._furthest, number)

    def spent(self) -> bool:
        """Whether the time for the whole file is over."""
        return self._left <= 0


def _python() -> str | bytes:
    """The Python interpreter; a program that embeds Python names it with multiprocessing.set_executable."""
    from multiprocessing.spawn import get_executable

    found: str | bytes | None = get_executable()
    if not found or (getattr(sys, "frozen", False) and found in (sys.executable, os.fsencode(sys.executable))):
        raise ReaderCrashed(
            "documents are parsed by another Python process, and this program does not know where Python is; set it "
            "with multiprocessing.set_executable"
        )
    return found


def _modules() -> list[str]:
    return [str(part) for part in sys.path]


class _Process:
    """A child process that does one task, or two with `wait`; leaving the context ends the process."""

    def __init__(
        self,
        path: Path,
        kind: str,
        pages: dict[str, Any] | None,
        limits: ReaderLimits,
        waits: _Waits,
        wait: bool = False,
    ) -> None:
        self._name = path.name
        self.limits = limits
        self._waits = waits
        self._ran_out = False
        # The page that is being parsed.
        self.at: int | None = None
        task: dict[str, Any] = {"path": str(path), "kind": kind, "limits": limits.to_dict(), "pages": pages}
        task |= {"modules": _modules(), "wait": wait}
        try:
            self._child = subprocess.Popen(
                [_python(), "-I", "-X", f"utf8={sys.flags.utf8_mode}", "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise ReaderCrashed(
                f"no process can be started to parse '{self._name}' ({error}); free memory or processes and try again"
            ) from error
        self._tell(task, last=not wait)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended yet."""
        return self._child.poll() is None

    def go_on(self, kind: str, pages: dict[str, Any], waits: _Waits) -> None:
        """Give the waiting process its second task."""
        self._waits = waits
        self._tell({"kind": kind, "pages": pages}, last=True)

    def _tell(self, task: dict[str, Any], last: bool) -> None:
        # Where the process has ended already, `messages` reports it.
        with contextlib.suppress(OSError):
            pipe = self._pipe(self._child.stdin)
            pipe.write(json.dumps(task).encode() + b"\n")
            pipe.flush()
            if last:
                pipe.close()

    @staticmethod
    def _pipe(pipe: Any) -> BinaryIO:
        stream: BinaryIO = pipe
        return stream

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            # Closing the pipe fails where a task is still unsent and the process has ended.
            with contextlib.suppress(OSError):
                self._pipe(pipe).close()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield the messages of the process until its task is done.

        Raises the error that the process reports, or SourceTooSlow, SourceTooLarge or ReaderCrashed where it ended.
        """
        while True:
            message = self._next()
            if "error" in message:
                name, text = message["error"]
                kind = getattr(errors, name, SourceError)
                raise kind(text) if issubclass(kind, SourceError) else SourceError(text)
            if "begun" in message:
                number = self.at = int(message["begun"])
                self._waits.begun(number)
            yield message
            if "done" in message or "inside" in message:
                return

    def _next(self) -> dict[str, Any]:
        watch = threading.Timer(self._waits.next(), self._run_out)
        watch.daemon = True
        began = time.monotonic()
        watch.start()
        try:
            line = self._pipe(self._child.stdout).readline()
        finally:
            watch.cancel()
            self._waits.took(time.monotonic() - began)
        if line.endswith(b"\n"):
            message: dict[str, Any] = json.loads(line)
            return message
        raise self._ended()

    def _run_out(self) -> None:
        self._ran_out = True
        self._child.kill()

    def _ended(self) -> SourceError:
        status = self._child.wait()
        where = f"page {self.at} of '{self._name}'" if self.at else f"'{self._name}'"
        if self._ran_out:
            return SourceTooSlow(
                f"{where} was given up: it takes longer than the limits allow ({self.limits.page_seconds:g} s for a "
                f"page; in all {self.limits.seconds:g} s and one more for each page); if you trust the document, raise "
                "the limits 'page_seconds' and 'seconds'"
            )
        if status == OUT_OF_MEMORY:
            return SourceTooLarge(
                f"{where} was given up: it needs more than {self.limits.all_memory / 1e6:,.0f} MB of memory; if you "
                "trust the document, raise the limit 'memory'"
            )
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return ReaderCrashed(
            f"{where} was given up: the process that parses it ended ({how}); repair the file or convert it again"
        )
