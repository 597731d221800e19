"""The process that parses a document: tasks arrive on standard input, messages leave on standard output.

Tasks and messages are JSON objects, one a line:

    {"path": ..., "kind": "pdf", "limits": {...}, "pages": null, "wait": true}     kind and number of pages
    {"path": ..., "kind": "pdf", "limits": {...}, "pages": {"first": 1, "left_out": [], "skip": true}}

With "wait", a second task for the same file may follow on the next line: {"kind": "pdf", "pages": {...}}. The process
answers each task with these messages; the last is "inside", "done" or "error":

    {"inside": ["pdf", 12]}     kind and number of pages
    {"begun": 1}                a page is being parsed
    {"page": [1, text, ...]}    the fields of a `Page`
    {"failed": [2, reason]}     a page was left out
    {"done": true}
    {"error": [name of the class, message]}
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import DamagedSource, SourceError, SourceTooLarge
from ..formats import look_inside, pages_of
from ..page import Visits, readable
from .limits import ReaderLimits

OUT_OF_MEMORY = 77
"""Exit status where the memory limit was reached: no memory is left to write a message."""


# The message of a parser may quote the damaged file, and then be as long as the file.
_LONGEST_REASON = 300


class Answers:
    """Writes the messages, and ends this process where a parser hangs.

    stream: where the messages go.
    seconds: the time that one message may take. After twice this time without a message the process ends, so that no
        process runs for ever when its parent is gone. While the parent does not take a message, the clock stands still.
    """

    def __init__(self, stream: BinaryIO, seconds: float) -> None:
        self._stream = stream
        self._seconds = 2 * seconds
        # The parser may never return to Python, so this clock is a C thread.
        self._nowhere = open(os.devnull, "wb")  # noqa: SIM115
        self.watch()

    def send(self, **message: Any) -> None:
        """Write one message."""
        faulthandler.cancel_dump_traceback_later()
        line = json.dumps(message).encode() + b"\n"
        try:
            while line:
                line = line[self._stream.write(line) :]
        except OSError:
            # The parent is gone.
            os._exit(1)
        self.watch()

    def pause(self) -> None:
        """Stop the clock while the process waits for a task."""
        faulthandler.cancel_dump_traceback_later()

    def watch(self) -> None:
        """Start the clock."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._nowhere)


def main(task: dict[str, Any]) -> None:
    """Do a task, and write the messages to what was standard output when the process started."""
    # Text that a parser prints must not mix with the messages.
    stream = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    limits = ReaderLimits(**task["limits"])
    answers = Answers(stream, limits.page_seconds + limits.extra_seconds)
    _limit_memory(limits.all_memory)
    path = Path(task["path"])
    try:
        with readable(path):
            if task["pages"] is None:
                _look(path, task["kind"], limits, answers)
                answers.pause()
                more = sys.stdin.buffer.readline() if task.get("wait") else b""
                if not more:
                    return
                answers.watch()
                task = json.loads(more)
            _read(path, task["kind"], limits, answers, **task["pages"])
    except (MemoryError, SystemError):
        # Where memory ends inside of Python itself, for example in an import, it may lose the error on the way.
        os._exit(OUT_OF_MEMORY)
    except SourceError as error:
        answers.send(error=[type(error).__name__, str(error)])
    except Exception as error:
        # A parser can fail in any way on a broken file.
        deep = isinstance(error, RecursionError)
        reason = "it is nested too deeply" if deep else f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
        damaged = f"'{path.name}' cannot be parsed ({reason}); get a fresh copy or convert it again"
        answers.send(error=[DamagedSource.__name__, damaged])


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    for limit, most in ((resource.RLIMIT_AS, size), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        # macOS refuses limits on the address space.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _look(path: Path, kind: str, limits: ReaderLimits, answers: Answers) -> None:
    kind, count = look_inside(path, kind, limits.ocr)
    if count is not None and count > limits.pages:
        raise SourceTooLarge(
            f"'{path.name}' has {count:,} pages, more than the {limits.pages:,} that are read; to read it, raise the "
            "limit 'pages'"
        )
    answers.send(inside=[kind, count])


def _read(
    path: Path, kind: str, limits: ReaderLimits, answers: Answers, first: int, left_out: list[int], skip: bool
) -> None:
    def begun(number: int) -> None:
        answers.send(begun=number)

    def failed(number: int, reason: str) -> None:
        answers.send(failed=[number, reason])

    visits = Visits(frozenset(left_out), limits.page_characters, begun, failed if skip else None, limits.ocr)
    for page in pages_of(path, kind, visits):
        # The text of a page depends on the pages before it, so pages before `first` are parsed too, but not sent.
        if page.number >= first:
            answers.send(page=page.to_row())
    answers.send(done=True)
