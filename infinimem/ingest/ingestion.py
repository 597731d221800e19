"""An ingestion: pages in, memory and passages out, in constant working memory.

- `Ingestion` is a document on its way into a memory: the record (sources, passages), the states of whole segments, the
  unfinished segment, the text not yet tokenized
- the record needs no model and stands in record.py
- of a short document the file has the tokens in place of the states, which take far more room: 3 pages would take as
  many megabytes as 300; reading the tokens again gives the states
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


# A document of at most this many whole segments is kept as its tokens.
KEPT_SEGMENTS = 8


class Ingestion:
    """A memory that can take in more.

    record: sources, passages and term weights.
    segment_tokens: tokens of the whole segments, which the file has in place of their states; None where the segments
        are too many, where the text is not kept, and where the states come from a merge or an older file.
    tail: tokens of the unfinished segment.
    ends: characters at which the tail's tokens end, counted over all sources.
    stream: text that is not yet tokenized.

    Questions are asked of `complete()`, the memory with the unfinished segment in it.
    """

    def __init__(
        self,
        model: InfiniModel,
        record: Record,
        cache: InfiniCache | None,
        tail: Sequence[int] = (),
        pending: str = "",
        *,
        ends: Sequence[int] = (),
        segment_tokens: Sequence[int] | None = None,
    ) -> None:
        """cache: the states of the whole segments; None to compute them from `segment_tokens` when they are needed.
        pending: text that was taken in and is not yet tokenized; the last characters that the record counts.
        """
        self.model = model
        self.record = record
        self.segment_tokens = None if segment_tokens is None else list(segment_tokens)
        self._cache = cache
        self.tail = list(tail)
        self.ends = list(ends)
        self.stream = TokenStream(model.encoder, pending, record.end - len(pending))
        self._complete: tuple[InfiniCache, TokenWeights] | None = None

    @classmethod
    def empty(cls, model: InfiniModel, keep_passages: bool) -> Ingestion:
        """An ingestion that has not taken anything in."""
        record = Record(keep_passages)
        if keep_passages and model.term_head is not None:
            record.term_weights = TermWeights(model.term_head.sha256)
        # Without passages the text is not kept, so its tokens are not kept either.
        return cls(model, record, model.new_cache(), segment_tokens=[] if keep_passages else None)

    @classmethod
    def merged(cls, parts: Sequence[Ingestion], weights: Sequence[list[bytes] | None]) -> Ingestion:
        """Merge several ingestions into one, as if each part had been taken in after the part before it.

        parts: at least one ingestion, all of the same model.
        weights: for each part the term weights of all its passages; None for a part without term weights.
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
        """A copy that can go on while this ingestion stays as it is."""
        pending, record = self.stream.pending, self.record.copy()
        cache = None if self._cache is None else self._cache.clone()
        tokens = self.segment_tokens
        return Ingestion(self.model, record, cache, self.tail, pending, ends=self.ends, segment_tokens=tokens)

    @property
    def cache(self) -> InfiniCache:
        """The states of the whole segments, computed on first use where the file has the tokens in their place."""
        if self._cache is None:
            cache = self.model.new_cache()
            self.model.read_tokens(self.segment_tokens or (), cache)
            self._cache = cache
        return self._cache

    @property
    def seen(self) -> int:
        """Number of tokens in whole segments, which are in the memory for good."""
        if self.segment_tokens is not None:
            return len(self.segment_tokens)
        return 0 if self.cache.seen is None else int(self.cache.seen[0])

    @property
    def tokens(self) -> int:
        """Number of all tokens taken in so far, including those of the unfinished segment and text."""
        return self.seen + len(self.unfinished())

    # Taking text in

    def begin_source(self, source: SourceRecord) -> None:
        """Begin a source, separated from the source before it."""
        if self.record.sources:
            self._tokenize(SEPARATOR)
        self.record.open(source)

    def begin_page(self, page: Page) -> None:
        """Begin a page of the current source, separated from the page before it."""
        if self.record.sources[-1].pages:
            self.record.end_page()
            self.take(SEPARATOR)
        self.record.begin_page(page)

    def take(self, text: str) -> None:
        """Take in text of the current page; `read_whole` reads it, segment by segment."""
        self.record.feed(text)
        self._tokenize(text)

    def take_string(self, text: str, name: str) -> None:
        """Take in and read a string. If the last source is a string of the same name, the text continues it."""
        last = self.record.sources[-1] if self.record.sources else None
        if last is None or last.kind != "string" or self.record.cutter.source != name:
            self.begin_source(SourceRecord(name, "string", pages=1))
        for piece in pieces(text):
            self.take(piece)
            self.read_whole()
        # Even without any text: the separator from the source before may have made a segment whole.
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
        # The tokens of a passage may all have been read before the passage was closed.
        self.record.settle()

    def whole(self) -> list[int] | None:
        """The tokens of the next whole segment, which `cache` is to read; None while no segment is whole."""
        end = self.model.segmenter.end(self.tail)
        return None if end is None else self.tail[:end]

    def new_weights(self) -> bytearray | None:
        """An empty buffer for the weights of the next segment's tokens; None where the record has no term weights."""
        return None if self.record.term_weights is None else bytearray()

    def have_read(self, tokens: int, weights: bytearray | None) -> None:
        """To be called when the next whole segment was read into `cache`.

        tokens: number of tokens of the segment.
        weights: weights of these tokens, a byte a token; None where the record has no term weights.
        """
        if self.record.term_weights is not None and weights is not None:
            self.record.term_weights.weighed.add(self.ends[:tokens], weights)
        if self.segment_tokens is not None:
            known = self.segment_tokens + self.tail[:tokens]
            self.segment_tokens = known if len(known) <= KEPT_SEGMENTS * self.model.segment_length else None
        del self.tail[:tokens], self.ends[:tokens]
        self.record.settle()

    # The unfinished segment

    def complete(self) -> InfiniCache:
        """The memory with the unfinished segment in it; computed once, then kept. Do not write into it."""
        return self._completed()[0]

    def term_weights(self) -> list[bytes] | None:
        """Term weights of all passages, including words of the unfinished segment; None where the record has none."""
        record = self.record
        if record.term_weights is None:
            return None
        return record.term_weights.of_all(record.passages, record.begin, self._completed()[1])

    def unfinished(self) -> list[int]:
        """The tokens that are in no whole segment, including those of text in `stream`."""
        return self.tail + self.stream.rest()[0]

    def set_complete(self, cache: InfiniCache, weights: bytearray | None) -> None:
        """Keep the complete memory.

        cache: a copy of the memory that has also read `unfinished()`.
        weights: weights of these tokens, a byte a token; None without a term head.
        """
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

        whole: also read the unfinished segment to weigh its words. A checkpoint needs no such weights, because the
            ingestion weighs these words when it goes on.
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
                "cutter": {name: value for name, value in asdict(record.cutter).items() if name != "unit"},
            },
            states={} if self.segment_tokens is not None else self._states(),
            segment_tokens=np.asarray(self.segment_tokens, dtype=np.int32) if self.segment_tokens else None,
            tail=np.asarray(self.tail, dtype=np.int32),
            passages=record.pack(),
            term_weights=weights,
        )

    def _states(self) -> dict[int, dict[str, np.ndarray]]:
        """The states by layer and name, (G, ...) each."""
        return {
            index: {name: tensor[0].cpu().numpy() for name, tensor in state.items()}
            for index, state in self.cache.states().items()
        }


def pieces(text: str, size: int = 1 << 14) -> Iterator[str]:
    """Yield a long text in pieces of `size` characters, so that one piece at a time is tokenized."""
    for start in range(0, len(text), size):
        yield text[start : start + size]
