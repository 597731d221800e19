"""The task of one process, and what all measurements share: clocks, timed loads and answers, peak memory."""

from __future__ import annotations

import mmap
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import TypeVar

T = TypeVar("T")
Clock = Callable[[], float]

# Tokens read before anything is timed, so that no kernel is built while the clock runs.
WARM_UP = 640
# Loads of a saved state. Their median time counts, and the last loaded state is asked.
LOADS = 5
# Tokens to decode after the first one; fewer where decoding takes longer than DECODING_SECONDS.
DECODED = 32
DECODING_SECONDS = 10.0


@dataclass(frozen=True)
class Task:
    """What a process measures.

    what: a name in `child.MODULES`.
    tokens: tokens of the text to read.
    text: path of a UTF-8 file, whose text is repeated where it is too short.
    directory: where states are saved.
    samples: repeats within the process, for the measurements that take little time.
    """

    what: str
    tokens: int
    text: str
    question: str
    directory: str
    model: str | None = None
    adapter: str | None = None
    weights: str | None = None
    device: str | None = None
    threads: int | None = None
    samples: int = 1

    def read_text(self) -> str:
        """The whole text."""
        return Path(self.text).read_text(encoding="utf-8")

    def state_path(self, suffix: str) -> Path:
        """Where the system saves its state after reading."""
        return Path(self.directory, f"state{suffix}")

    @property
    def question_after_text(self) -> str:
        """The question, in the form that follows a text directly."""
        return f"\n\nQuestion: {self.question}\nAnswer:"


def clock_of(device: str) -> Clock:
    """A clock in seconds; on a GPU it first waits until all work that was begun is done."""
    if device == "cpu":
        return time.perf_counter
    import torch

    def now() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return now


def repeated(tokens: Iterable[T], count: int) -> list[T]:
    """The first `count` tokens; the tokens are repeated where there are too few."""
    return list(islice(cycle(tokens), count))


def timed_loads(load: Callable[[], T], clock: Clock) -> tuple[T, float]:
    """The result of the last load, and the median time of a load in milliseconds."""

    def timed() -> tuple[T, float]:
        started = clock()
        return load(), clock() - started

    # No earlier result is kept, because two at a time would raise the peak memory.
    taken = [timed()[1] for _ in range(LOADS - 1)]
    loaded, last = timed()
    return loaded, median([*taken, last]) * 1e3


def first_and_rest(steps: Iterator[object], clock: Clock) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second after it. steps: one token a step, without end."""
    started = clock()
    next(steps)
    first = clock()
    count, now = 0, first
    while count < DECODED and now - first < DECODING_SECONDS:
        next(steps)
        count, now = count + 1, clock()
    return first - started, count / (now - first)


def peak_rss_mb() -> float | None:
    """The most memory that this process ever had, in MB; None where the operating system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux, getrusage begins with the peak of the parent process, which may be higher.
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def resident_mb() -> float | None:
    """The memory that this process has now, in MB; None where the operating system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE / 1e6 if pages.is_file() else None


def peak_gpu_mb(device: str) -> dict[str, float]:
    """The most GPU memory that tensors had, as a column of the row; empty without a GPU."""
    if not device.startswith("cuda"):
        return {}
    import torch

    return {"peak_gpu_mb": torch.cuda.max_memory_allocated(device) / 1e6}
