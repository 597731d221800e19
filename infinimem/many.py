"""Reading several documents at once, a memory each: segments of different documents in one forward.

A short document, or the short end of a long one, leaves most of a GPU idle; side by side with others it does not.
Every memory is what its document alone would give, but for the rounding of products of other shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import SourceError
from .progress import reading_progress
from .readers import ReaderLimits, Source, open_source
from .reading import ProgressCallback, Reading, Record, check_something, have_read, settle, take_source

if TYPE_CHECKING:
    from .attention import InfiniCache

OnError = Callable[[Path, SourceError], None]


def open_each(
    paths: Iterable[Path], limits: ReaderLimits | None, on_error: OnError | None
) -> Iterator[tuple[Path, Source]]:
    """The files that can be opened. on_error: is called with the others, in place of raising SourceError."""
    for path in paths:
        try:
            yield path, open_source(path, limits)
        except SourceError as error:
            if on_error is None:
                raise
            on_error(path, error)


def read_many(
    begin: Callable[[], tuple[Reading, Record]],
    opened: Iterable[tuple[Path, Source]],
    batch: int,
    progress: bool | ProgressCallback,
    limits: ReaderLimits | None,
    on_error: OnError | None,
) -> Iterator[tuple[Reading, Record]]:
    """Read files, each into what `begin` gives, and give it back when it is done; see `DocumentMemory.ingest_many`."""
    with reading_progress(progress) as on_progress:

        def job(path: Path, source: Source) -> Job:
            reading, record = begin()

            def failed(error: SourceError) -> None:
                if on_error is None:
                    raise error
                begun.pop(path)
                on_error(path, error)

            def steps() -> Generator[None]:
                yield from take_source(reading, record, source, on_progress, skip=on_error is not None, limits=limits)
                check_something(record.sources)

            begun[path] = Job(path, reading, record, steps(), failed)
            return begun[path]

        begun: dict[Path, Job] = {}
        try:
            for done in read_side_by_side((job(path, source) for path, source in opened), batch):
                yield done.reading, done.record
                begun.pop(done.path)
        finally:
            # Documents are parsed in processes of their own, which end with this.
            for one in begun.values():
                one.close()


class Job:
    """A document on its way into a memory.

    path: the file. steps: takes its text in, a piece at a time. failed: is called with what stops it, and may raise it.
    """

    def __init__(
        self,
        path: Path,
        reading: Reading,
        record: Record,
        steps: Generator[None],
        failed: Callable[[SourceError], None],
    ) -> None:
        self.path = path
        self.reading, self.record = reading, record
        self._steps = steps
        self._failed = failed
        # Once all text was taken in: a copy of the memory that reads the unfinished segment, and what it has to read.
        self._last: InfiniCache | None = None
        self._left: list[list[int]] = []
        self._weights: bytearray | None = None
        self.given_up = False

    def close(self) -> None:
        """Give up taking its text in."""
        self._steps.close()

    @property
    def cache(self) -> InfiniCache:
        """The memory that reads the next segment."""
        return self.reading.cache if self._last is None else self._last

    def segment(self) -> list[int] | None:
        """The tokens to be read next; None when all were, or when the document cannot be read on."""
        while self._last is None:
            if (tokens := self.reading.whole()) is not None:
                return tokens
            settle(self.record)
            try:
                next(self._steps)
            except StopIteration:
                self._last = self.reading.cache.clone()
                self._left = list(self.reading.model.segmenter.split(self.reading.unfinished()))
                self._weights = None if self.reading.model.addresses is None else bytearray()
            except SourceError as error:
                self.given_up = True
                self._failed(error)
                return None
        if self._left:
            return self._left[0]
        self.reading.completed(self._last, self._weights)
        return None

    def weights(self) -> bytearray | None:
        """What gets the weights of the next segment's tokens."""
        return None if self.record.addresses is None else bytearray()

    def have_read(self, tokens: list[int], weights: bytearray | None) -> None:
        """The segment is in `cache`."""
        if self._last is None:
            have_read(self.reading, self.record, tokens, weights)
            return
        del self._left[0]
        if self._weights is not None:
            self._weights += weights or b""


def read_side_by_side(jobs: Iterator[Job], rows: int) -> Iterator[Job]:
    """Read documents, at most `rows` segments in one forward; gives back each job when it is done."""
    # Segments of about one length go together, so that little is padding; short ones wait for at most `rows` rounds.
    whole: list[tuple[Job, list[int]]] = []
    short: list[tuple[Job, list[int]]] = []
    read: list[Job] = []
    waited = 0
    while True:
        while read or (len(whole) < rows and len(short) < rows):
            job = read.pop(0) if read else next(jobs, None)
            if job is None:
                break
            tokens = job.segment()
            if tokens is None:
                if not job.given_up:
                    yield job
            else:
                (whole if 2 * len(tokens) > job.reading.model.segment_length else short).append((job, tokens))
        if not whole and not short:
            return
        line = short if len(short) >= rows or waited >= rows or not whole else whole
        waited = 0 if line is short or not short else waited + 1
        if line is short:
            line.sort(key=lambda row: len(row[1]))
        chosen = line[:rows]
        del line[:rows]
        weights = [job.weights() for job, _ in chosen]
        model = chosen[0][0].reading.model
        model.read_side_by_side([tokens for _, tokens in chosen], [job.cache for job, _ in chosen], weights)
        for (job, tokens), found in zip(chosen, weights, strict=True):
            job.have_read(tokens, found)
            read.append(job)
