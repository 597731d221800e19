"""Reading a document: pages in, memory and passages out, in constant working memory.

- `Record`: what was read (sources, passages, counts); needs no model
- `Reading`: the memory under construction: states, the unfinished segment, the text not yet tokenized
- both can be copied cheaply, so a failed append leaves the old memory as it was
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .addresses import Addresses, Weighed, split
from .errors import CheckpointMismatch, DamagedMemoryFile, EmptySource
from .memory_file import MemoryFile
from .passages import LONGEST_PENDING, Passage, PassageCutter, pack, unpack
from .readers import Page, ReaderLimits, Source, read_pages
from .tokens import MAX_BLOCK

if TYPE_CHECKING:
    from .attention import InfiniCache
    from .model import InfiniModel

SEPARATOR = "\n\n"  # between pages, and between sources


@dataclass
class SourceRecord:
    """One thing that was read.

    sha256: of the file's bytes; None for text that was given as a string. skipped: what could not be read and was left
    out, {"page": number, or None for the rest of the file, "reason": text} each.
    """

    name: str
    kind: str
    sha256: str | None = None
    pages: int = 0
    characters: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """How far reading has come. page_count and size (bytes) are None where unknown."""

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


@dataclass
class Record:
    """Sources and passages of a memory.

    addresses: of the passages; None where none are made.
    """

    keep_passages: bool = True
    sources: list[SourceRecord] = field(default_factory=list)
    closed: list[Passage] = field(default_factory=list)
    cutter: PassageCutter = field(default_factory=PassageCutter)
    addresses: Addresses | None = None

    @classmethod
    def from_file(cls, file: MemoryFile) -> Record:
        """The record in a memory file."""
        try:
            sources = [SourceRecord(**source) for source in file.sources]
            characters = [(source.name, source.characters) for source in sources]
            record = cls(
                keep_passages=file.passages is not None,
                sources=sources,
                closed=[] if file.passages is None else unpack(file.passages, characters),
                cutter=PassageCutter(**file.reading["cutter"]),
            )
        except (TypeError, KeyError) as error:
            raise DamagedMemoryFile(f"the record of sources in the memory file is incomplete ({error})") from error
        # An unfinished passage or block is cut as soon as it is longer.
        if len(record.cutter.pending) >= LONGEST_PENDING or len(file.reading["pending_text"]) > MAX_BLOCK:
            raise DamagedMemoryFile("the memory file has more unfinished text than reading leaves; make it again")
        if file.addresses is not None:
            plain = file.reading["addresses"]
            known = split(file.addresses, plain["sizes"])
            record.addresses = Addresses.from_dict(plain, known, len(record.closed), len(record.passages))
        return record

    @property
    def passages(self) -> list[Passage]:
        """All passages, those of the unfinished page included."""
        return self.closed + self.cutter.rest() if self.keep_passages else []

    def copy(self) -> Record:
        """A record that can be changed while this one stays."""
        return Record(
            self.keep_passages,
            [SourceRecord(**asdict(source)) for source in self.sources],
            list(self.closed),
            PassageCutter(**asdict(self.cutter)),
            None if self.addresses is None else self.addresses.copy(),
        )

    @property
    def begin(self) -> int:
        """Character at which the last source starts, counted over all that was read."""
        return sum(source.characters + len(SEPARATOR) for source in self.sources[:-1])

    @property
    def end(self) -> int:
        """Characters read so far."""
        return self.begin + self.sources[-1].characters if self.sources else 0

    def pack(self) -> np.ndarray | None:
        """The closed passages for the file, or None without passages."""
        return pack(self.closed) if self.keep_passages else None

    def open(self, source: SourceRecord) -> None:
        """Begin a source."""
        self.end_page()
        self.sources.append(source)
        self.cutter.open(source.name)

    def feed(self, text: str) -> None:
        """Take in text of the current page."""
        self.sources[-1].characters += len(text)
        if self.keep_passages:
            self._close(self.cutter.feed(text))

    def end_page(self) -> None:
        """Close the current page."""
        if self.keep_passages:
            self._close(self.cutter.end_page())

    def _close(self, passages: list[Passage]) -> None:
        self.closed += passages
        if self.addresses is not None:
            begin = self.begin if passages else 0
            self.addresses.starts += [begin + passage.start for passage in passages]


class Reading:
    """A memory that can be read into.

    `cache` holds whole segments only; `tail` are the tokens of the unfinished one, `stream.pending` the text that is
    not yet tokenized. `complete()` is a memory of everything, for asking.

    ends: characters at which the tail's tokens end, counted over all that was read. place: characters before `pending`.
    """

    def __init__(
        self,
        model: InfiniModel,
        cache: InfiniCache,
        tail: Sequence[int] = (),
        pending: str = "",
        *,
        ends: Sequence[int] = (),
        place: int = 0,
    ) -> None:
        from .tokens import TokenStream

        self.model = model
        self.cache = cache
        self.tail = list(tail)
        self.ends = list(ends)
        self.stream = TokenStream(model.encoder, pending, place)
        self._complete: tuple[InfiniCache, Weighed] | None = None

    @classmethod
    def empty(cls, model: InfiniModel) -> Reading:
        """Nothing read yet."""
        return cls(model, model.new_cache())

    @classmethod
    def from_file(cls, model: InfiniModel, file: MemoryFile, record: Record) -> Reading:
        """The reading in a memory file, whose record is given. Raises DamagedMemoryFile where shapes do not fit the
        model."""
        cache = model.cache_from(file.states, int(file.reading["seen"]))
        vocabulary = model.model.config.get_text_config().vocab_size
        if file.tail.ndim != 1 or (file.tail.size and not 0 <= file.tail.min() <= file.tail.max() < vocabulary):
            raise DamagedMemoryFile("the unfinished segment in the memory file has tokens that the model does not know")
        pending, addresses = str(file.reading["pending_text"]), file.reading["addresses"]
        ends = [] if addresses is None else addresses["tail"]
        if addresses is not None and len(ends) != len(file.tail):
            raise DamagedMemoryFile("the unfinished segment in the memory file has another number of tokens than ends")
        return cls(model, cache, file.tail.tolist(), pending, ends=ends, place=record.end - len(pending))

    def copy(self) -> Reading:
        """A reading that can go on while this one stays."""
        place, pending = self.stream.place, self.stream.pending
        return Reading(self.model, self.cache.clone(), self.tail, pending, ends=self.ends, place=place)

    @property
    def seen(self) -> int:
        """Tokens in whole segments, which are in the memory for good."""
        return 0 if self.cache.seen is None else int(self.cache.seen[0])

    @property
    def tokens(self) -> int:
        """All tokens read so far, those of the unfinished segment and text included."""
        return self.seen + len(self.unfinished())

    def take(self, text: str) -> None:
        """Take text in, which is read segment by segment with `whole` and `done`."""
        self._complete = None
        tokens, ends = self.stream.feed(text)
        self.tail, self.ends = self.tail + tokens, self.ends + ends

    def whole(self) -> list[int] | None:
        """The tokens of the next whole segment, which `cache` is to read; None while there is none."""
        end = self.model.segmenter.end(self.tail)
        return None if end is None else self.tail[:end]

    def done(self, tokens: int, weights: bytearray | None, weighed: Weighed | None) -> None:
        """So many tokens are in `cache` now. weighed: gets them with their weights."""
        if weighed is not None and weights is not None:
            weighed.add(self.ends[:tokens], weights)
        del self.tail[:tokens], self.ends[:tokens]

    def complete(self) -> InfiniCache:
        """A memory that also holds the unfinished segment; computed once, then kept. Do not write into it."""
        return self._completed()[0]

    def rest(self) -> Weighed:
        """The tokens of the unfinished segment, weighed."""
        return self._completed()[1]

    def _completed(self) -> tuple[InfiniCache, Weighed]:
        if self._complete is None:
            cache, weights = self.cache.clone(), None if self.model.addresses is None else bytearray()
            self.model.read_tokens(self.unfinished(), cache, weights)
            self.completed(cache, weights)
        return self._complete or (self.cache, Weighed())

    def unfinished(self) -> list[int]:
        """The tokens that are in no whole segment, those of text not yet tokenized included."""
        return self.tail + self.stream.rest()[0]

    def completed(self, cache: InfiniCache, weights: bytearray | None) -> None:
        """Keep what `complete` and `rest` give: a copy of `cache` that has read `unfinished()`, with these weights."""
        self._complete = cache, Weighed(self.ends + self.stream.rest()[1] if weights else [], weights or bytearray())

    def write_to(self, file: MemoryFile, record: Record, whole: bool = True) -> None:
        """Put the reading's state into a memory file.

        whole: weigh the words of the unfinished segment too; a reading that goes on will weigh them anew.
        """
        file.states = {
            index: {name: tensor[0].cpu().numpy() for name, tensor in state.items()}
            for index, state in self.cache.states().items()
        }
        file.tail = np.asarray(self.tail, dtype=np.int32)
        addresses: dict[str, Any] | None = None
        if record.addresses is not None:
            rest = self.rest() if whole else Weighed()
            found = record.addresses.of_all(record.passages, record.begin, rest)
            file.addresses = np.frombuffer(b"".join(found), np.uint8)
            addresses = {**record.addresses.to_dict(), "sizes": list(map(len, found)), "tail": self.ends}
        file.reading = {
            "addresses": addresses,
            "tokens": self.tokens,
            "seen": self.seen,
            "pending_text": self.stream.pending,
            "cutter": asdict(record.cutter),
        }


def to_file(reading: Reading, record: Record, whole: bool = True) -> MemoryFile:
    """The memory file of what was read, passages included. whole: False for a reading that goes on."""
    file = MemoryFile(
        model=reading.model.name,
        identity=reading.model.identity(),
        adapter=reading.model.adapter_name,
        sources=[vars(source) for source in record.copy().sources],
        reading={},
        passages=record.pack(),
    )
    reading.write_to(file, record, whole)
    return file


def take_source(
    reading: Reading,
    record: Record,
    source: Source,
    on_progress: ProgressCallback | None = None,
    resumed: bool = False,
    skip: bool = False,
    limits: ReaderLimits | None = None,
) -> Iterator[None]:
    """Take one file in, page by page; after every piece it is the caller's turn to read whole segments.

    resumed: it is the record's last source, of which as many characters as the record says were read before. skip:
    leave out what cannot be read, and put it on record.
    """
    if not resumed:
        begin_source(reading, record, SourceRecord(source.name, source.kind, source.sha256))
    entry = record.sources[-1]
    left_out = [row["page"] for row in entry.skipped]
    if None in left_out:
        return  # the rest of it was given up before
    known = entry.characters

    def failed(page: int | None, reason: str) -> None:
        if known:
            raise CheckpointMismatch(
                f"reading cannot go on in '{source.name}', which could be read further before than now ({reason}); "
                "read it without resuming"
            )
        # Memory files are passed on; where this one's sources were is nobody's business.
        plain = as_unicode(reason).replace(as_unicode(str(source.path)), source.name)
        entry.skipped.append({"page": page, "reason": plain})

    started, before = time.perf_counter(), reading.tokens
    pages = read_pages(source, limits=limits, left_out=left_out, failed=failed if skip else None)
    for index, page in enumerate(pages):
        size = len(page.text) + (len(SEPARATOR) if index else 0)
        if known >= size:
            known -= size
            continue
        if not known:
            begin_page(reading, record, page)
        rest = page.text[-(size - known) :] if known else page.text
        known = 0
        for piece in pieces(rest):
            take(reading, record, piece)
            yield
        if on_progress is not None:
            on_progress(
                Progress(
                    source.name,
                    page.number,
                    source.page_count,
                    entry.characters,
                    source.size,
                    reading.tokens - before,
                    time.perf_counter() - started,
                )
            )
    record.end_page()
    yield


def check_something(sources: Sequence[SourceRecord]) -> None:
    """Raise EmptySource where nothing was read of any of these."""
    if not sources:
        raise EmptySource("there is nothing to read; name a document")
    if not any(source.characters for source in sources):
        reasons = [row["reason"] for source in sources for row in source.skipped]
        raise EmptySource(f"nothing could be read, all of it was skipped: {'; '.join(reasons[:3])}")


def begin_page(reading: Reading, record: Record, page: Page) -> None:
    """Begin a page of the current source, separated from the one before."""
    entry = record.sources[-1]
    if entry.pages:
        record.end_page()
        take(reading, record, SEPARATOR)
    entry.pages += 1
    record.cutter.page, record.cutter.title = page.number, page.title


def begin_source(reading: Reading, record: Record, source: SourceRecord) -> None:
    """Open a source, separated from the one before."""
    if record.sources:
        reading.take(SEPARATOR)
    record.open(source)


def take(reading: Reading, record: Record, text: str) -> None:
    """Give text to the memory and to the passages."""
    record.feed(text)
    reading.take(text)


def read_whole(reading: Reading, record: Record) -> None:
    """Read the whole segments of what was taken in."""
    while (tokens := reading.whole()) is not None:
        weights = None if record.addresses is None else bytearray()
        reading.model.read_side_by_side([tokens], [reading.cache], [weights])
        have_read(reading, record, tokens, weights)
    # Passages may have been closed whose tokens had all been read before.
    settle(record)


def have_read(reading: Reading, record: Record, tokens: Sequence[int], weights: bytearray | None) -> None:
    """A whole segment is in the memory."""
    reading.done(len(tokens), weights, None if record.addresses is None else record.addresses.weighed)
    settle(record)


def settle(record: Record) -> None:
    """Give the closed passages whose words were all weighed their addresses."""
    if record.addresses is not None:
        record.addresses.settle(record.closed)


def pieces(text: str, size: int = 1 << 14) -> Iterator[str]:
    """A long text in pieces that are tokenized one after the other."""
    for start in range(0, len(text), size):
        yield text[start : start + size]


def as_unicode(text: str) -> str:
    """Text that can be stored as UTF-8: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
