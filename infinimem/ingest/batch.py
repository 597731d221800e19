"""Ingest several documents in one batch, each into a separate memory.

One forward reads segments of different documents: read alone, a short document, or the short end of a long document,
leaves most of a GPU idle. Each memory equals the memory that its document gives alone, except for rounding: matrix
products of other shapes round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SourceError
from ..readers import Found, ReaderLimits, Source, open_source
from .ingestion import Ingestion
from .progress import ProgressCallback, shown_progress
from .stream import check_something, take_source

if TYPE_CHECKING:
    from ..attention import InfiniCache

OnError = Callable[[Path, SourceError], None]


def open_each(
    found: Iterable[Found | Source], limits: ReaderLimits | None, on_error: OnError | None, skip: bool
) -> Iterator[Source]:
    """Yield the files that can be opened.

    on_error: called with the path and the error of each file that cannot be opened and is left out.
    skip: leave out every file that cannot be opened, not only files that were found in a directory.
    """
    for one in found:
        try:
            source = one if isinstance(one, Source) else open_source(one.path, limits)
        except SourceError as error:
            if not skip and not one.optional:
                raise
            if on_error is not None:
                on_error(one.path, error)
        else:
            yield replace(source, optional=one.optional)


def ingest_batch(
    begin: Callable[[], Ingestion],
    opened: Iterable[Source],
    batch: int,
    progress: bool | ProgressCallback,
    limits: ReaderLimits | None,
    on_error: OnError | None,
    skip: bool,
) -> Iterator[Ingestion]:
    """Ingest files and yield each ingestion when it is complete.

    begin: makes the empty ingestion for a file.
    opened: the files.
    on_error, skip: as for `open_each`.

    The other arguments are those of `DocumentMemory.ingest_many`.
    """
    with shown_progress(progress) as on_progress:

        def job(source: Source) -> Job:
            ingestion = begin()

            def failed(error: SourceError) -> None:
                if not skip and not source.optional:
                    raise error
                begun.discard(made)
                if on_error is not None:
                    on_error(source.path, error)

            def steps() -> Generator[None]:
                yield from take_source(ingestion, source, on_progress, skip=skip, limits=limits)
                check_something(ingestion.record.sources)

            made = Job(ingestion, steps(), failed)
            begun.add(made)
            return made

        begun: set[Job] = set()
        try:
            for done in read_jobs(map(job, opened), batch):
                yield done.ingestion
                begun.discard(done)
        finally:
            # Each document is parsed in a separate process. Closing its job ends the process.
            for one in begun:
                one.close()


class Job:
    """A document on its way into a memory.

    ingestion: takes the document in.
    steps: takes in one piece of the text at each step.
    failed: called with the error that stops the document; may raise the error.
    """

    def __init__(self, ingestion: Ingestion, steps: Generator[None], failed: Callable[[SourceError], None]) -> None:
        self.ingestion = ingestion
        self._steps = steps
        self._failed = failed
        # Set once all text was taken in: a copy of the memory, the segments that it has to read, and their weights.
        self._last: InfiniCache | None = None
        self._left: list[list[int]] = []
        self._weights: bytearray | None = None
        self.given_up = False

    def close(self) -> None:
        """Stop taking text in."""
        self._steps.close()

    @property
    def cache(self) -> InfiniCache:
        """The memory that the next segment is read into."""
        return self.ingestion.cache if self._last is None else self._last

    def segment(self) -> list[int] | None:
        """The tokens of the next segment; None when all segments were read, or when an error stopped the document."""
        ingestion = self.ingestion
        while self._last is None:
            if (tokens := ingestion.whole()) is not None:
                return tokens
            ingestion.record.settle()
            try:
                next(self._steps)
            except StopIteration:
                self._last = ingestion.cache.clone()
                self._left = list(ingestion.model.segmenter.split(ingestion.unfinished()))
                self._weights = None if ingestion.model.term_head is None else bytearray()
            except SourceError as error:
                self.given_up = True
                self._failed(error)
                return None
        if self._left:
            return self._left[0]
        ingestion.set_complete(self._last, self._weights)
        return None

    def have_read(self, tokens: list[int], weights: bytearray | None) -> None:
        """To be called when the next segment was read into `cache`. weights: a byte a token, None without term head."""
        if self._last is None:
            self.ingestion.have_read(len(tokens), weights)
            return
        del self._left[0]
        if self._weights is not None:
            self._weights += weights or b""


def read_jobs(jobs: Iterator[Job], rows: int) -> Iterator[Job]:
    """Read documents, at most `rows` segments in one forward, and yield each job whose document is complete."""
    # Segments of similar length go together, so that little is padding. Short segments wait for at most `rows` rounds.
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
                (whole if 2 * len(tokens) > job.ingestion.model.segment_length else short).append((job, tokens))
        if not whole and not short:
            return
        line = short if len(short) >= rows or waited >= rows or not whole else whole
        waited = 0 if line is short or not short else waited + 1
        if line is short:
            line.sort(key=lambda row: len(row[1]))
        chosen = line[:rows]
        del line[:rows]
        weights = [job.ingestion.new_weights() for job, _ in chosen]
        model = chosen[0][0].ingestion.model
        model.read_batch([tokens for _, tokens in chosen], [job.cache for job, _ in chosen], weights)
        for (job, tokens), found in zip(chosen, weights, strict=True):
            job.have_read(tokens, found)
            read.append(job)
