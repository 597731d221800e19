"""The record of an ingestion: sources, passages and term weights. Needs no model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import DamagedMemoryFile
from ..readers.page import Page
from ..storage.memory_file import MemoryFile
from ..storage.passage_table import pack, unpack
from ..text.passages import LONGEST_PENDING, Passage, PassageCutter, unit_of
from ..text.term_weights import TermWeights, split
from ..text.tokens import MAX_BLOCK

if TYPE_CHECKING:
    import numpy as np

AN_IMAGE = "it is an image without text, which --ocr (ocr=True) recognizes"
SEPARATOR = "\n\n"  # between pages, and between sources


@dataclass
class SourceRecord:
    """One source that was taken in.

    kind: as in `Source`, or "string" for text that was given as a string.
    sha256: hash of the file's bytes; None for a string, and for a file that could not be opened.
    pages, characters: numbers of pages and characters taken in so far.
    skipped: parts that could not be read and were left out, each {"page": number, or None for the rest of the file,
        "reason": text}.
    about: what the document says about itself: "title", "author", "date", "language".
    left_out: what was left out on purpose, and how often: page numbers, running lines that stand on a page before.
    doubtful: pages whose text may not be what is printed, or that are images, each {"page": number, "reason": text}.
    recognized: pages whose text was recognized in an image, each {"page": number, "percent": confidence}.
    """

    name: str
    kind: str
    sha256: str | None = None
    pages: int = 0
    characters: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    doubtful: list[dict[str, Any]] = field(default_factory=list)
    recognized: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, page: Page) -> None:
        """Count a page."""
        self.pages += 1
        for what, times in page.left_out.items():
            self.left_out[what] = self.left_out.get(what, 0) + times
        if page.doubt is not None:
            self.doubtful.append({"page": page.number, "reason": page.doubt})
        self.doubtful += [{"page": number, "reason": AN_IMAGE} for number in page.images]
        if page.confidence is not None:
            self.recognized.append({"page": page.number, "percent": round(100 * page.confidence)})


@dataclass
class Record:
    """Sources and passages of a memory.

    keep_passages: whether the text is kept.
    closed: passages that no later text changes.
    cutter: cuts the unfinished page into passages.
    term_weights: term weights of the passages; None where the model gives no term weights.
    """

    keep_passages: bool = True
    sources: list[SourceRecord] = field(default_factory=list)
    closed: list[Passage] = field(default_factory=list)
    cutter: PassageCutter = field(default_factory=PassageCutter)
    term_weights: TermWeights | None = None

    @classmethod
    def from_file(cls, file: MemoryFile) -> Record:
        """The record in a memory file. Raises DamagedMemoryFile where it is incomplete or does not fit its passages."""
        try:
            sources = [SourceRecord(**source) for source in file.sources]
            known = [(source.name, source.kind, source.characters) for source in sources]
            record = cls(
                keep_passages=file.passages is not None,
                sources=sources,
                closed=[] if file.passages is None else unpack(file.passages, known),
                cutter=PassageCutter(**file.reading["cutter"], unit=unit_of(sources[-1].kind if sources else "")),
            )
        except (TypeError, KeyError) as error:
            raise DamagedMemoryFile(
                f"the record of sources in the memory file is incomplete ({error}); ingest the documents again"
            ) from error
        # Ingestion cuts unfinished text before it gets this long. To cut longer text would take quadratic time.
        if len(record.cutter.pending) >= LONGEST_PENDING or len(file.reading["pending_text"]) > MAX_BLOCK:
            raise DamagedMemoryFile(
                "the memory file has more unfinished text than ingestion leaves; ingest the documents again"
            )
        if file.term_weights is not None:
            plain = file.reading["addresses"]
            weights = split(file.term_weights, plain["sizes"])
            record.term_weights = TermWeights.from_dict(plain, weights, len(record.closed), len(record.passages))
        return record

    @property
    def passages(self) -> list[Passage]:
        """All passages, including those of the unfinished page."""
        return self.closed + self.cutter.rest() if self.keep_passages else []

    def copy(self) -> Record:
        """A copy that can change while this record stays as it is."""
        return Record(
            self.keep_passages,
            [SourceRecord(**asdict(source)) for source in self.sources],
            list(self.closed),
            PassageCutter(**asdict(self.cutter)),
            None if self.term_weights is None else self.term_weights.copy(),
        )

    @property
    def begin(self) -> int:
        """Character at which the last source starts, counted over all sources."""
        return sum(source.characters + len(SEPARATOR) for source in self.sources[:-1])

    @property
    def end(self) -> int:
        """Characters read so far."""
        return self.begin + self.sources[-1].characters if self.sources else 0

    def pack(self) -> np.ndarray | None:
        """The closed passages as the memory file stores them; None where no passages are kept."""
        return pack(self.closed) if self.keep_passages else None

    def open(self, source: SourceRecord) -> None:
        """Begin a source."""
        self.end_page()
        self.sources.append(source)
        self.cutter.open(source.name, unit_of(source.kind))

    def feed(self, text: str) -> None:
        """Take in text of the current page."""
        self.sources[-1].characters += len(text)
        if self.keep_passages:
            self._close(self.cutter.feed(text))

    def begin_page(self, page: Page) -> None:
        """Begin a page; the one before must be closed."""
        self.sources[-1].begin(page)
        self.cutter.begin_page(page.number, page.title, page.label)

    def begin_section(self, title: str | None) -> None:
        """Begin a section of the current page."""
        self.end_page()
        self.cutter.title = title

    def end_page(self) -> None:
        """Close the current page, or section of a page."""
        if self.keep_passages:
            self._close(self.cutter.end_page())

    def _close(self, passages: list[Passage]) -> None:
        self.closed += passages
        if self.term_weights is not None:
            begin = self.begin if passages else 0
            self.term_weights.starts += [begin + passage.start for passage in passages]

    def settle(self) -> None:
        """Give term weights to the closed passages whose words were all weighed."""
        if self.term_weights is not None:
            self.term_weights.settle(self.closed)
