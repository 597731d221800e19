"""Parsing in a process that can be lost, with limits on memory and time.

Where it is lost on a page, the rest can be read by another one that leaves the page out, and reads as if the page had
been left out from the beginning: a reading that is resumed comes to the same text.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from infinimem import errors
from infinimem.errors import ReaderCrashed, SourceError, SourceTooLarge, SourceTooSlow

from .child import OUT_OF_MEMORY
from .formats import Page
from .limits import ReaderLimits

# A file on which more processes than this are lost is given up.
MOST_LOST = 8
# Ctrl-C reaches all processes of a terminal; the one that asked ends this one. Modules come from where this process has
# them, whatever the environment says.
_START = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import json, sys
task = json.loads(sys.stdin.buffer.readline())
sys.path[:] = task["modules"]
from infinimem.readers.child import main
main(task)
"""


def look_inside(path: Path, kind: str, limits: ReaderLimits) -> tuple[str, int | None]:
    """`formats.look_inside` in a process of its own. Raises SourceTooLarge, SourceTooSlow, ReaderCrashed too."""
    with _Process(path, kind, None, limits, _Waits(limits)) as process:
        found, count = next(process.messages())["inside"]
        return str(found), None if count is None else int(count)


def pages_of(
    path: Path,
    kind: str,
    limits: ReaderLimits,
    left_out: Collection[int] = (),
    failed: Callable[[int | None, str], None] | None = None,
) -> Iterator[Page]:
    """`formats.pages_of` in a process of its own, or several where one ends on a page that can be left out.

    failed: is told the number of a page that cannot be read, or None for the rest of the file, and why.
    """
    lost, first, waits = set(left_out), 1, _Waits(limits)
    for _ in range(MOST_LOST):
        wanted = {"first": first, "left_out": sorted(lost), "skip": failed is not None}
        with _Process(path, kind, wanted, limits, waits) as process:
            try:
                for message in process.messages():
                    if "page" in message:
                        page = Page(*message["page"])
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
    """How long was waited for a file, and how long may be."""

    def __init__(self, limits: ReaderLimits) -> None:
        self._most_at_once = limits.page_seconds
        self._left = limits.seconds
        self._furthest = 0

    def next(self) -> float:
        """Seconds that the next message may take."""
        return max(0.0, min(self._most_at_once, self._left))

    def took(self, seconds: float) -> None:
        """A message came after this time."""
        self._left -= seconds

    def begun(self, number: int) -> None:
        """A page is being parsed."""
        self._left += max(0, number - self._furthest)
        self._furthest = max(self._furthest, number)

    def spent(self) -> bool:
        """Whether the file's own time is over."""
        return self._left <= 0


def _python() -> str | bytes:
    """The interpreter; programs in which Python is embedded name it with multiprocessing.set_executable."""
    from multiprocessing.spawn import get_executable

    found: str | bytes | None = get_executable()
    if not found or (getattr(sys, "frozen", False) and found in (sys.executable, os.fsencode(sys.executable))):
        raise ReaderCrashed(
            "documents are parsed by another Python process, and this program does not know where Python is; name it "
            "with multiprocessing.set_executable"
        )
    return found


def _modules() -> list[str]:
    return [str(part) for part in sys.path]


class _Process:
    """A child that does one task; leaving the context ends it."""

    def __init__(
        self, path: Path, kind: str, pages: dict[str, Any] | None, limits: ReaderLimits, waits: _Waits
    ) -> None:
        self._name = path.name
        self._limits = limits
        self._waits = waits
        self._ran_out = False
        # The page that is being parsed.
        self.at: int | None = None
        task = {"path": str(path), "kind": kind, "limits": limits.to_dict(), "pages": pages, "modules": _modules()}
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
        # Where it ended at once, reading from it will tell.
        with contextlib.suppress(OSError), self._pipe(self._child.stdin) as pipe:
            pipe.write(json.dumps(task).encode() + b"\n")

    @staticmethod
    def _pipe(pipe: Any) -> BinaryIO:
        stream: BinaryIO = pipe
        return stream

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()
        self._pipe(self._child.stdout).close()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it says, until it is done. Raises what it reports, and what became of it."""
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
                f"{where} was given up: it takes longer than the limits allow ({self._limits.page_seconds:g} s for a "
                f"page, {self._limits.seconds:g} s and one more for each page in all); raise the limits 'page_seconds' "
                "and 'seconds' if you trust it"
            )
        if status == OUT_OF_MEMORY:
            return SourceTooLarge(
                f"{where} was given up: it needs more than {self._limits.memory / 1e6:,.0f} MB of memory; raise the "
                "limit 'memory' if you trust it"
            )
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return ReaderCrashed(
            f"{where} was given up: the process that parses it ended ({how}); repair the file or convert it again"
        )
