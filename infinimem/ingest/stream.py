"""Take source files into an ingestion: all files are opened first, then taken in page by page."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ..errors import CheckpointMismatch, EmptySource, SourceError
from ..readers import Found, Page, ReaderLimits, Source, find_files, name_of, open_source, read_pages, unread_source
from ..text.passages import Passage, PassageCutter, unit_of
from ..text.words import as_unicode
from .checkpoint import Checkpoint
from .ingestion import Ingestion, pieces
from .progress import Progress, ProgressCallback
from .record import SEPARATOR, SourceRecord

PathLike = str | os.PathLike[str]
Sources = PathLike | Source | Iterable[PathLike | Source]


def found_sources(sources: Sources) -> list[Found | Source]:
    """The files that `sources` stand for, in order; a `Source` stays as it is. Errors: those of `find_sources`."""
    given = [sources] if isinstance(sources, (str, os.PathLike, Source)) else list(sources)
    found: list[Found | Source] = []
    run: list[str] = []
    for one in given:
        if isinstance(one, Source):
            found += [*(find_files(run) if run else []), one]
            run = []
        else:
            # As a string, because `find_files` refuses an empty string; an empty path is the current directory.
            run.append(os.fspath(one))
    return found + (find_files(run) if run else [])


def names_apart(found: Sequence[Found | Source]) -> list[str]:
    """The name of each file, with as many of its folders as it takes to tell files of one name apart."""
    paths = [one.path.absolute() for one in found]
    names = [one.name if isinstance(one, Source) else name_of(one.path) for one in found]
    same: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        same.setdefault(name, []).append(number)
    for name, numbers in same.items():
        places, deep = {paths[number].parts for number in numbers}, 1
        # The same depth for all of a name reads better than one for each.
        while len(places) > len({parts[-deep:] for parts in places}):
            deep += 1
        if deep > 1:
            for number in numbers:
                names[number] = "/".join([*map(as_unicode, paths[number].parts[-deep:-1]), name])
    return names


@contextlib.contextmanager
def opened_sources(
    found: Sequence[Found | Source], skip: bool = False, limits: ReaderLimits | None = None
) -> Iterator[list[Source]]:
    """Open files, to be read in the block; a `Source` stays as it is.

    The process that looked into the first file waits to read it, at the longest until the end of the block. Of all
    files, only the first has one, because a process takes memory.

    skip: put an `unread_source` in the place of a file that cannot be opened; otherwise its SourceError is raised,
        unless the file was found in a directory.
    """
    opened: list[Source] = []
    with contextlib.ExitStack() as stack:
        for number, (one, name) in enumerate(zip(found, names_apart(found), strict=True)):
            try:
                source = one if isinstance(one, Source) else open_source(one.path, limits, wait=number == 0)
            except SourceError as error:
                if not skip and not one.optional:
                    raise
                source = unread_source(one.path, error)
            if source.parser is not None:
                stack.callback(source.parser.close)
            opened.append(replace(source, name=name, optional=one.optional))
        yield opened


def read_sources(
    ingestion: Ingestion,
    opened: Sequence[Source],
    on_progress: ProgressCallback | None,
    skip: bool,
    limits: ReaderLimits | None,
    checkpoint: Checkpoint | None = None,
    begun: int = 0,
) -> None:
    """Take files in, one after the other, and read their whole segments.

    checkpoint: the checkpoint to write on the way; None for no checkpoint.
    begun: number of files that were begun before an interruption; the last of them may have been taken in in part.
    skip: as for `take_source`.

    Raises EmptySource where no file gave any text, and the errors of `take_source`.
    """
    for number, source in enumerate(opened, start=1):
        if number < begun:
            if source.parser is not None:
                source.parser.close()
            continue
        for _ in take_source(ingestion, source, on_progress, number == begun, skip, limits):
            ingestion.read_whole()
            if checkpoint is not None:
                checkpoint.keep(ingestion)
    check_something(ingestion.record.sources[-len(opened) :])


def take_source(
    ingestion: Ingestion,
    source: Source,
    on_progress: ProgressCallback | None = None,
    resumed: bool = False,
    skip: bool = False,
    limits: ReaderLimits | None = None,
) -> Iterator[None]:
    """Take one file in, piece by piece; after each piece, the caller reads the whole segments.

    resumed: whether the file is the record's last source. The characters that the record counts are then passed over.
    skip: leave out what cannot be read, and record it as skipped; of a file found in a directory this is always so.

    Raises the SourceError that names the cause, and CheckpointMismatch where a resumed file could be read further
    before.
    """
    if not resumed:
        ingestion.begin_source(SourceRecord(source.name, source.kind, source.sha256))
    entry = ingestion.record.sources[-1]
    left_out = [row["page"] for row in entry.skipped]
    if None in left_out:
        return  # the rest of the file was given up before the interruption
    known = entry.characters

    def failed(page: int | None, reason: str) -> None:
        if known:
            raise CheckpointMismatch(
                f"the ingestion cannot go on in '{source.name}', which could be read further before than now "
                f"({reason}); ingest it without resuming"
            )
        # Memory files are given to others, who need not know the source's path on this machine.
        plain = as_unicode(reason).replace(as_unicode(str(source.path)), source.name)
        entry.skipped.append({"page": page, "reason": plain})

    started, before = time.perf_counter(), ingestion.tokens
    skip = skip or source.optional
    pages = read_pages(source, limits=limits, left_out=left_out, failed=failed if skip else None)
    for index, page in enumerate(pages):
        entry.about.update(page.about)
        size = len(page.text) + (len(SEPARATOR) if index else 0)
        if known >= size:
            known -= size
            continue
        if not known:
            ingestion.begin_page(page)
        # A page that was taken in in part goes on at this character, which may be the first of a section.
        passed = max(0, len(page.text) - (size - known)) if known else 0
        at = known = 0
        for title, text in page.sections():
            if at and at >= passed:
                ingestion.record.begin_section(title)
            for piece in pieces(text[max(0, passed - at) :]):
                ingestion.take(piece)
                yield
            at += len(text)
        if on_progress is not None:
            on_progress(
                Progress(
                    source.name,
                    page.number,
                    source.page_count,
                    entry.characters,
                    source.size,
                    ingestion.tokens - before,
                    time.perf_counter() - started,
                )
            )
    ingestion.record.end_page()
    yield


def check_something(sources: Sequence[SourceRecord]) -> None:
    """Raise EmptySource where there are no sources, or no source gave any text."""
    if not sources:
        raise EmptySource("there is nothing to read; name a document")
    if not any(source.characters for source in sources):
        reasons = [row["reason"] for source in sources for row in source.skipped]
        raise EmptySource(f"nothing could be read, all of it was skipped: {'; '.join(reasons[:3])}")


def read_passages(
    source: Source, *, limits: ReaderLimits | None = None, begun: Callable[[Page], None] | None = None
) -> Iterator[Passage]:
    """Yield the passages of a file, the same that a memory of the file has. Needs no model.

    limits: for the process that parses; default `ReaderLimits()`.
    begun: is called with each page before its passages come.

    Errors: those of `read_pages`.
    """
    cutter = PassageCutter()
    cutter.open(source.name, unit_of(source.kind))
    for number, page in enumerate(read_pages(source, limits=limits)):
        if number:
            yield from cutter.feed(SEPARATOR)
        if begun is not None:
            begun(page)
        cutter.begin_page(page.number, page.title, page.label)
        for title, text in page.sections():
            cutter.title = title
            yield from cutter.feed(text)
            yield from cutter.end_page()
