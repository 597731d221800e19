"""An ingestion: pages in, memory and passages out, in constant working memory.

- `Ingestion` is a document on its way into a memory: the record (sources, passages), the states of whole segments, the
  unfinished segment, the text not yet tokenized
- the record needs no model and stands in record.py
- an ingestion can be copied cheaply, so a failed append leaves the old memory as it was
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ..readers.page import Page
from ..storage.memory_file import MemoryFile
from ..text.term_weights import TermWeights, TokenWeights
from ..text.tokens import TokenStream
from .record import SEPARATOR, Record, SourceRecord

if TYPE_CHECKING:
    from ..attention import InfiniCache
    from ..model.infini_model import InfiniModel


class Ingestion:
    """A memory that can take in more.

    record: sources, passages and term weights. cache: the states of whole segments. tail: tokens of the unfinished
    segment. ends: characters at which the tail's tokens end, counted over all sources. stream: text that is not yet
    tokenized. `complete()` is a memory of everything, for asking.
    """

    def __init__(
        self,
        model: InfiniModel,
        record: Record,
        cache: InfiniCache,
        tail: Sequence[int] = (),
        pending: str = "",
        *,
        ends: Sequence[int] = (),
    ) -> None:
        """pending: text taken in and not yet tokenized, the end of what the record has counted."""
        self.model = model
        self.record = record
        self.cache = cache
        self.tail = list(tail)
        self.ends = list(ends)
        self.stream = TokenStream(model.encoder, pending, record.end - len(pending))
        self._complete: tuple[InfiniCache, TokenWeights] | None = None

    @classmethod
    def empty(cls, model: InfiniModel, keep_passages: bool) -> Ingestion:
        """Nothing taken in yet."""
        record = Record(keep_passages)
        if keep_passages and model.term_head is not None:
            record.term_weights = TermWeights(model.term_head.sha256)
        return cls(model, record, model.new_cache())

    @classmethod
    def merged(cls, parts: Sequence[Ingestion], weights: Sequence[list[bytes] | None]) -> Ingestion:
        """One ingestion of several, as if each had been taken in after the one before.

        weights: term weights of all passages of each part.
        """
        model = parts[0].model
        record = Record(parts[0].record.keep_passages)
        for part in parts:
            record.sources += part.record.copy().sources
            record.closed += part.record.passages
        if model.term_head is not None and None not in weights:
            record.term_weights = TermWeights(model.term_head.sha256, [one for part in weights for one in part or []])
        return cls(model, record, model.merge_caches([part.complete() for part in parts]))

    def copy(self) -> Ingestion:
        """An ingestion that can go on while this one stays."""
        pending, record = self.stream.pending, self.record.copy()
        return Ingestion(self.model, record, self.cache.clone(), self.tail, pending, ends=self.ends)

    @property
    def seen(self) -> int:
        """Tokens in whole segments, which are in the memory for good."""
        return 0 if self.cache.seen is None else int(self.cache.seen[0])

    @property
    def tokens(self) -> int:
        """All tokens taken in so far, those of the unfinished segment and text included."""
        return self.seen + len(self.unfinished())

    # Taking text in

    def begin_source(self, source: SourceRecord) -> None:
        """Open a source, separated from the one before."""
        if self.record.sources:
            self._tokenize(SEPARATOR)
        self.record.open(source)

    def begin_page(self, page: Page) -> None:
        """Begin a page of the current source, separated from the one before."""
        entry = self.record.sources[-1]
        if entry.pages:
            self.record.end_page()
            self.take(SEPARATOR)
        entry.pages += 1
        self.record.cutter.page, self.record.cutter.title = page.number, page.title

    def take(self, text: str) -> None:
        """Take in text of the current page, which is read segment by segment by `read_whole`."""
        self.record.feed(text)
        self._tokenize(text)

    def take_string(self, text: str, name: str) -> None:
        """Take in and read a string; with the name of the last source, if that was a string too, it goes on there."""
        last = self.record.sources[-1] if self.record.sources else None
        if last is None or last.kind != "string" or self.record.cutter.source != name:
            self.begin_source(SourceRecord(name, "string", pages=1))
        for piece in pieces(text):
            self.take(piece)
            self.read_whole()
        # Of no text at all, the separator from the source before may have made a segment whole.
        self.read_whole()

    def _tokenize(self, text: str) -> None:
        self._complete = None
        tokens, ends = self.stream.feed(text)
        self.tail, self.ends = self.tail + tokens, self.ends + ends

    # Reading segments

    def read_whole(self) -> None:
        """Read the whole segments of the text taken in."""
        while (tokens := self.whole()) is not None:
            weights = self.new_weights()
            self.model.read_batch([tokens], [self.cache], [weights])
            self.have_read(len(tokens), weights)
        # Passages may have been closed whose tokens had all been read before.
        self.record.settle()

    def whole(self) -> list[int] | None:
        """The tokens of the next whole segment, which `cache` is to read; None while there is none."""
        end = self.model.segmenter.end(self.tail)
        return None if end is None else self.tail[:end]

    def new_weights(self) -> bytearray | None:
        """What gets the weights of the next segment's tokens; None where the record has no term weights."""
        return None if self.record.term_weights is None else bytearray()

    def have_read(self, tokens: int, weights: bytearray | None) -> None:
        """The next whole segment, of so many tokens with these weights, is in `cache` now."""
        if self.record.term_weights is not None and weights is not None:
            self.record.term_weights.weighed.add(self.ends[:tokens], weights)
        del self.tail[:tokens], self.ends[:tokens]
        self.record.settle()

    # The unfinished segment

    def complete(self) -> InfiniCache:
        """A memory that also holds the unfinished segment; computed once, then kept. Do not write into it."""
        return self._completed()[0]

    def term_weights(self) -> list[bytes] | None:
        """Term weights of all passages, the unfinished segment included; None where there are none."""
        record = self.record
        if record.term_weights is None:
            return None
        return record.term_weights.of_all(record.passages, record.begin, self._completed()[1])

    def unfinished(self) -> list[int]:
        """The tokens that are in no whole segment, those of text not yet tokenized included."""
        return self.tail + self.stream.rest()[0]

    def set_complete(self, cache: InfiniCache, weights: bytearray | None) -> None:
        """Keep `cache` as the complete memory: a copy that has read `unfinished()`, with these weights."""
        ends = self.ends + self.stream.rest()[1] if weights else []
        self._complete = cache, TokenWeights(ends, weights or bytearray())

    def _completed(self) -> tuple[InfiniCache, TokenWeights]:
        if self._complete is None:
            cache, weights = self.cache.clone(), None if self.model.term_head is None else bytearray()
            self.model.read_tokens(self.unfinished(), cache, weights)
            self.set_complete(cache, weights)
        return self._complete or (self.cache, TokenWeights())

    # Files

    def to_file(self, whole: bool = True) -> MemoryFile:
        """The memory file, passages included.

        whole: weigh the words of the unfinished segment too; an ingestion that goes on will weigh them anew.
        """
        record, weights = self.record, None
        addresses: dict[str, Any] | None = None
        if record.term_weights is not None:
            rest = self._completed()[1] if whole else TokenWeights()
            found = record.term_weights.of_all(record.passages, record.begin, rest)
            weights = np.frombuffer(b"".join(found), np.uint8)
            addresses = {**record.term_weights.to_dict(), "sizes": list(map(len, found)), "tail": self.ends}
        return MemoryFile(
            model=self.model.name,
            identity=self.model.identity(),
            adapter=self.model.adapter_name,
            sources=[vars(source) for source in record.copy().sources],
            reading={
                "addresses": addresses,
                "tokens": self.tokens,
                "seen": self.seen,
                "pending_text": self.stream.pending,
                "cutter": asdict(record.cutter),
            },
            states={
                index: {name: tensor[0].cpu().numpy() for name, tensor in state.items()}
                for index, state in self.cache.states().items()
            },
            tail=np.asarray(self.tail, dtype=np.int32),
            passages=record.pack(),
            term_weights=weights,
        )


def pieces(text: str, size: int = 1 << 14) -> Iterator[str]:
    """A long text in pieces that are tokenized one after the other."""
    for start in range(0, len(text), size):
        yield text[start : start + size]
