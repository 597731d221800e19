"""`DocumentMemory`: documents in, one small file, answers out.

    memory = DocumentMemory.ingest("book.pdf")
    memory.save("book.safetensors")
    memory = DocumentMemory.load("book.safetensors")
    answer = memory.ask("Who is Ishmael?")
    print(answer.text, [p.page for p in answer.passages])

A memory file is opened without its model; the model is loaded when something has to be read or answered.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .addresses import Addresses, split
from .answering import Answering
from .asking import checked_question
from .checkpoint import Checkpoint
from .errors import (
    AdapterNotFound,
    DamagedMemoryFile,
    EmptySource,
    FileChanged,
    ForcedModel,
    InvalidSetting,
    MergeMismatch,
    ModelMismatch,
    ModelNotFound,
    SourceError,
)
from .known import is_known
from .langchain import component
from .memory_file import MemoryFile, differences, locked, read_memory_file, version_of
from .passages import Passage
from .readers import ReaderLimits, Source, find_sources, open_source, unread_source
from .reading import (
    ProgressCallback,
    Reading,
    Record,
    SourceRecord,
    as_unicode,
    begin_source,
    check_something,
    pieces,
    read_whole,
    take,
    take_source,
    to_file,
)
from .search import Search

if TYPE_CHECKING:
    from .model import InfiniModel

PathLike = str | os.PathLike[str]
# How long `save` waits for another writer, who needs a moment only.
SECONDS_FOR_A_LOCK = 10.0
# Segments in one forward on a GPU.
BATCH = 8


class DocumentMemory(Answering):
    """What a model remembers of one or several documents.

    Make one with `ingest`, `from_text`, `load` or `merge`. Asking never changes it; appending does, and a failed
    append leaves it as it was.
    """

    def __init__(self, record: Record, *, reading: Reading | None = None, file: MemoryFile | None = None) -> None:
        self._record = record
        self._reading = reading
        # What `save` writes, once it is made; None after appending.
        self._file = file
        self._device: str | None = None
        self._adapter: PathLike | None = None
        self._searched: Search | None = None
        self._lock = threading.RLock()
        # The file it was loaded from or saved to, as it was then.
        self._place: tuple[Path, tuple[int, ...] | None] | None = None
        self._force = False
        self._forced: tuple[str, ...] = ()

    # Making

    @classmethod
    def ingest(
        cls,
        sources: PathLike | Iterable[PathLike],
        *,
        model: str | os.PathLike[str] | InfiniModel | None = None,
        rule: str | None = None,
        rule_settings: dict[str, Any] | None = None,
        segment_length: int | None = None,
        carry: int | None = None,
        passages: bool = True,
        progress: bool | ProgressCallback = False,
        device: str | None = None,
        adapter: PathLike | None = None,
        checkpoint: PathLike | None = None,
        resume: bool = False,
        skip_errors: bool = False,
        limits: ReaderLimits | None = None,
    ) -> DocumentMemory:
        """Read files (PDF, EPUB, HTML, Markdown, text), directories or glob patterns, once.

        model: None for the embedded default, a directory, a hub id, or an InfiniModel. rule: "slots" (default),
        "linear" or "delta"; rule_settings as the rule's constructor takes them. segment_length: tokens per segment,
        512 by default. carry: last tokens that stay as they are, 256 by default (0 under the paper's rules). passages:
        also keep the text, for citations and `mode="recall"`. progress: True for a bar on standard error, or a function
        that takes a `Progress`. adapter: a directory, "none", or None for the one that belongs to the default model;
        rule and settings are by default those it was trained with. checkpoint: a file that keeps what was read so far,
        written every 32 segments and never deleted. resume: go on from it, if it is there, to the same memory that
        reading without a break would give; source files, model and settings must be the same. skip_errors: leave out
        the files and pages that cannot be read; `info()["sources"]` says which, and why. limits: what parsing a file
        may use.

        Raises the SourceError, ModelError, AdapterError or InvalidSetting that names the cause; CheckpointMismatch;
        TargetNotWritable for the checkpoint.
        """
        if resume and checkpoint is None:
            raise InvalidSetting("there is nothing to resume from; name the checkpoint that was written while reading")
        opened = _opened(sources, skip_errors, limits)
        memory = cls._empty(
            passages,
            model,
            rule=rule,
            rule_settings=rule_settings,
            segment_length=segment_length,
            carry=carry,
            device=device,
            adapter=adapter,
        )
        kept = None if checkpoint is None else Checkpoint(Path(checkpoint))
        resume = resume and kept is not None and kept.path.exists()
        memory._read(opened, progress, kept, resume=resume, skip=skip_errors, limits=limits)
        return memory

    @classmethod
    def ingest_many(
        cls,
        sources: PathLike | Iterable[PathLike],
        *,
        batch: int | None = None,
        model: str | os.PathLike[str] | InfiniModel | None = None,
        rule: str | None = None,
        rule_settings: dict[str, Any] | None = None,
        segment_length: int | None = None,
        carry: int | None = None,
        passages: bool = True,
        progress: bool | ProgressCallback = False,
        device: str | None = None,
        adapter: PathLike | None = None,
        limits: ReaderLimits | None = None,
        on_error: Callable[[Path, SourceError], None] | None = None,
    ) -> Iterator[DocumentMemory]:
        """Read files into a memory each, several side by side; gives each memory as soon as it is done.

        batch: most segments in one forward. None for eight on a GPU, which one short text leaves idle, and one on a
        CPU, where several take longer than one after the other. A memory is the one that `ingest` makes of its file,
        but for rounding: its bytes may differ.
        on_error: is called with each file that cannot be read and what is wrong with it, and the others are read on;
        pages that cannot be read are then left out, and `info()["sources"]` says which. Without it the first error is
        raised. Other settings as for `ingest`.
        """
        if batch is not None and batch < 1:
            raise InvalidSetting(f"batch is {batch}, but at least one segment is read at a time")
        from .many import open_each, read_many

        # What cannot be read is said before the model is loaded, which takes a while.
        opened = list(open_each(find_sources(_paths(sources)), limits, on_error))
        chosen = cls._empty(
            passages,
            model,
            rule=rule,
            rule_settings=rule_settings,
            segment_length=segment_length,
            carry=carry,
            device=device,
            adapter=adapter,
        ).model

        def begin() -> tuple[Reading, Record]:
            empty = cls._empty(passages, chosen)
            return empty._open(), empty._record

        if batch is None:
            batch = 1 if chosen.device.type == "cpu" else BATCH
        found = read_many(begin, opened, batch, progress, limits, on_error)
        return (cls(record, reading=reading) for reading, record in found)

    @classmethod
    def from_text(
        cls,
        text: str,
        *,
        name: str = "text",
        model: str | os.PathLike[str] | InfiniModel | None = None,
        rule: str | None = None,
        rule_settings: dict[str, Any] | None = None,
        segment_length: int | None = None,
        carry: int | None = None,
        passages: bool = True,
        device: str | None = None,
        adapter: PathLike | None = None,
    ) -> DocumentMemory:
        """Read a string; it is cited as page 1 of `name`. Settings as for `ingest`."""
        if not text.strip():
            raise EmptySource("the text is empty; there is nothing to remember")
        memory = cls._empty(
            passages,
            model,
            rule=rule,
            rule_settings=rule_settings,
            segment_length=segment_length,
            carry=carry,
            device=device,
            adapter=adapter,
        )
        memory.append_text(text, name=name)
        return memory

    @classmethod
    def _empty(
        cls, passages: bool, model: str | os.PathLike[str] | InfiniModel | None, **settings: Any
    ) -> DocumentMemory:
        """A memory of nothing; settings of `shared_model`."""
        from .model import InfiniModel, shared_model

        if isinstance(model, InfiniModel):
            if given := [name for name, value in settings.items() if value is not None]:
                raise InvalidSetting(
                    f"an InfiniModel has its {', '.join(given)} already; leave out what you gave beside it"
                )
            chosen = model
        else:
            chosen = shared_model(model, **settings)
        record = Record(keep_passages=passages)
        if passages and chosen.addresses is not None:
            record.addresses = Addresses(chosen.addresses.sha256)
        return cls(record, reading=Reading.empty(chosen))

    def append(
        self,
        sources: PathLike | Iterable[PathLike],
        *,
        progress: bool | ProgressCallback = False,
        skip_errors: bool = False,
        limits: ReaderLimits | None = None,
    ) -> None:
        """Read more documents into this memory; equal to having read all of them in one go.

        Settings as for `ingest`.
        """
        self._read(_opened(sources, skip_errors, limits), progress, skip=skip_errors, limits=limits)

    def append_text(self, text: str, *, name: str = "text") -> None:
        """Read a string into this memory. With the name of the last source, if that was a string too, it goes on
        where that one stopped, so any split of a text gives the same memory."""
        text = as_unicode(text)
        if not name.strip():
            raise InvalidSetting("the text has no name; answers cite it by its name")
        with self._lock:
            record, reading = self._record.copy(), self._open_for_more().copy()
            last = record.sources[-1] if record.sources else None
            if last is None or last.kind != "string" or record.cutter.source != name:
                begin_source(reading, record, SourceRecord(name, "string", pages=1))
            for piece in pieces(text):
                take(reading, record, piece)
                read_whole(reading, record)
            # Of no text at all, what separates it from the one before may have made a segment whole.
            read_whole(reading, record)
            self._record, self._reading, self._file = record, reading, None

    def _read(
        self,
        opened: Sequence[Source],
        progress: bool | ProgressCallback,
        checkpoint: Checkpoint | None = None,
        *,
        resume: bool = False,
        skip: bool = False,
        limits: ReaderLimits | None = None,
    ) -> None:
        from .progress import reading_progress

        with self._lock, reading_progress(progress) as on_progress:
            record, reading, begun = self._record.copy(), self._open_for_more().copy(), 0
            if checkpoint is not None and resume:
                reading, record = checkpoint.resume(reading, record, opened)
                begun = len(record.sources)
            for number, source in enumerate(opened, start=1):
                if number < begun:
                    continue
                resumed = number == begun
                for _ in take_source(reading, record, source, on_progress, resumed, skip, limits):
                    read_whole(reading, record)
                    if checkpoint is not None:
                        checkpoint.keep(reading, record)
            check_something(record.sources[-len(opened) :])
            self._record, self._reading, self._file = record, reading, None

    @classmethod
    def merge(cls, memories: Iterable[DocumentMemory]) -> DocumentMemory:
        """One memory of several, made by equal models and settings.

        `linear`: states are added, exactly. `delta`: added too, an approximation (what both store under similar keys
        counts twice). `slots`: pooled and merged to capacity, an approximation of the same kind as reading. Carried
        tokens: as if read one after the other. In all cases the documents did not see each other while they were read.
        Raises MergeMismatch.
        """
        chosen = list(memories)
        if not chosen:
            raise InvalidSetting("there are no memories to merge")
        first = chosen[0]
        for other in chosen[1:]:
            different = differences(first.identity, other.identity)
            if different:
                raise MergeMismatch(
                    f"memories of different models or settings cannot be merged: {'; '.join(different)}"
                )
            if first._record.keep_passages != other._record.keep_passages:
                raise MergeMismatch("one memory has passages and another has none; read them with the same setting")
        model = first.model
        cache = model.merge_caches([memory._open_for_more().complete() for memory in chosen])
        record = Record(first._record.keep_passages)
        found = [memory.addresses() for memory in chosen]
        for memory in chosen:
            record.sources += memory._record.copy().sources
            record.closed += memory._record.passages
        if model.addresses is not None and None not in found:
            record.addresses = Addresses(model.addresses.sha256, [one for part in found for one in part or []])
        return cls(record, reading=Reading(model, cache, place=record.end))

    # Files

    def save(self, path: PathLike) -> int:
        """Write the memory file, atomically; returns its size in bytes.

        Raises TargetNotWritable; FileInUse while another process writes it; FileChanged where this memory came from
        that file and someone else wrote it since.
        """
        place = Path(os.path.realpath(path))
        file = self._to_file()
        with locked(path, wait=SECONDS_FOR_A_LOCK):
            if self._place is not None and self._place[0] == place and version_of(place) not in (None, self._place[1]):
                raise FileChanged(
                    f"'{path}' was written by someone else since this memory was loaded from it; load it again and "
                    "append again, or save under another name"
                )
            size = file.write(path)
            self._place = place, version_of(place)
        return size

    def __reduce__(self) -> NoReturn:
        raise TypeError("a DocumentMemory is not pickled or copied; save it, and load the file where it is needed")

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        model: str | os.PathLike[str] | InfiniModel | None = None,
        device: str | None = None,
        adapter: PathLike | None = None,
        force: bool = False,
    ) -> DocumentMemory:
        """Open a memory file. The model it names is loaded when it is needed, unless one is given here.

        adapter: where the adapter that the memory was made with is now; None looks where the file says. force: take
        another model too, as long as the memory's shapes fit it; its answers may mean nothing. It warns (ForcedModel),
        every answer says how the models differ (`forced`), and such a memory can be asked but not appended to.

        Raises MemoryFileNotFound, NotAMemoryFile, DamagedMemoryFile, UnsupportedVersion; ModelMismatch (at once with
        `model`, else when the model is loaded) if the memory was made by another model.
        """
        from .model import InfiniModel

        place = Path(os.path.realpath(path))
        version = version_of(place)
        file = read_memory_file(path)
        memory = cls(Record.from_file(file), file=file)
        memory._device, memory._adapter, memory._force, memory._place = device, adapter, force, (place, version)
        if isinstance(model, InfiniModel):
            if adapter is not None or device is not None:
                raise InvalidSetting("an InfiniModel has its device and adapter already; leave them out")
            memory._attach(model)
        elif model is not None:
            memory._attach(memory._load_model(model))
        return memory

    def _to_file(self) -> MemoryFile:
        with self._lock:
            if self._file is not None:
                return self._file
            self._file = to_file(self._open(), self._record)
            return self._file

    def _load_model(self, name: str | os.PathLike[str] | None) -> InfiniModel:
        from .adapter import adapter_directory
        from .model import shared_model
        from .pretrained import model_directory

        if self._file is None:
            raise InvalidSetting("this memory has a model already")
        identity = self._file.identity
        if name is None and not is_known(model_directory(self._file.model)):
            raise ModelNotFound(
                f"the memory file names the model directory '{self._file.model}', which was never named here; give it "
                "as model= (--model) to allow it"
            )
        if self._adapter is None and not is_known(adapter_directory(self._file.adapter)):
            raise AdapterNotFound(
                f"the memory file names the adapter directory '{self._file.adapter}', which was never named here; give "
                "it as adapter= (--adapter) to allow it"
            )
        return shared_model(
            self._file.model if name is None else name,
            rule=identity["rule"],
            rule_settings=identity["rule_settings"],
            segment_length=identity["segment_length"],
            memory_heads={int(layer): heads for layer, heads in identity["memory_heads"].items()},
            carry=identity["carry"],
            device=self._device,
            # A file from elsewhere must not decide what is fetched from a network.
            fetch=name is not None,
            adapter=self._file.adapter if self._adapter is None else self._adapter,
        )

    def _attach(self, model: InfiniModel) -> Reading:
        if self._file is None:
            raise InvalidSetting("this memory has a model already")
        different = differences(self._file.identity, model.identity())
        if different and not self._force:
            raise ModelMismatch(
                f"this memory was made by another model or with other settings than '{model.name}': "
                f"{'; '.join(different)}; load it with the model that made it ('{self._file.model}', adapter "
                f"'{self._file.adapter}')"
            )
        try:
            reading = Reading.from_file(model, self._file, self._record)
        except DamagedMemoryFile as error:
            if not different:
                raise
            raise ModelMismatch(
                f"this memory does not fit '{model.name}', which cannot be forced ({error}); load it with the model "
                f"that made it ('{self._file.model}')"
            ) from error
        if self._record.addresses is not None:
            head = model.addresses
            if head is None or head.sha256 != self._record.addresses.head:
                self._record.addresses = None
        if different:
            self._forced = tuple(different)
            warnings.warn(
                f"this memory was made by another model than '{model.name}', so its answers may mean nothing: "
                f"{'; '.join(different)}",
                ForcedModel,
                stacklevel=2,
            )
        else:
            # Where both are now, rather than where they were when the file was made.
            self._file = replace(self._file, model=model.name, adapter=model.adapter_name)
        self._reading = reading
        return reading

    def _open_for_more(self) -> Reading:
        """The reading, to be read on or merged."""
        reading = self._open()
        if self._forced:
            raise ModelMismatch(
                "this memory was loaded by force under another model than it was made by, so it can be asked, but not "
                f"appended to or merged ({'; '.join(self._forced)}); load it with the model that made it"
            )
        return reading

    def _open(self) -> Reading:
        """The reading, its model loaded."""
        with self._lock:
            return self._attach(self._load_model(None)) if self._reading is None else self._reading

    def open(self, *, ready: bool = False) -> None:
        """Load the model now rather than with the first question. Raises ModelMismatch and the ModelErrors.

        ready: also make all else that the first question would wait for: the reader, the index of the passages, and a
        memory that holds the unfinished segment.
        """
        reading = self._open()
        if ready:
            with self._lock:
                reading.complete()
            if self.keeps_passages and self.passages:
                self._search().prepare()
                reading.model.reader  # noqa: B018

    # Looking

    @property
    def model(self) -> InfiniModel:
        """The model behind this memory, loaded on first use."""
        return self._open().model

    @property
    def identity(self) -> dict[str, Any]:
        """What the memory depends on."""
        if self._reading is None and self._file is not None:
            return self._file.identity
        return self._open().model.identity()

    @property
    def passages(self) -> list[Passage]:
        """All passages, in reading order."""
        return self._record.passages

    def info(self) -> dict[str, Any]:
        """What is in this memory, as plain values."""
        file = self._to_file()
        return {
            "model": file.model,
            "rule": file.identity["rule"],
            "rule_settings": file.identity["rule_settings"],
            "segment_length": file.identity["segment_length"],
            "carry": file.identity["carry"],
            "memory_layers": len(file.identity["memory_heads"]),
            "tokens": file.reading["tokens"],
            "memory_bytes": file.memory_bytes,
            "pages": sum(source["pages"] for source in file.sources),
            "passages": len(self.passages),
            "sources": file.sources,
            "fingerprint": file.fingerprint,
        }

    def __repr__(self) -> str:
        names = ", ".join(source.name for source in self._record.sources)
        return f"DocumentMemory({names!r}, passages={len(self.passages)})"

    # Using

    def retrieve(self, query: str, k: int = 4, *, mode: str = "hybrid") -> list[Passage]:
        """The k passages that fit a query best, best first, with scores; fewer if fewer fit at all. Of passages with
        the same words the first one stands for all.

        mode: "memory" ranks by the addresses that the model gave the passages while it read them, "lexical" by BM25,
        without the model, "hybrid" by both. Where passages have no addresses, as under models that no head was trained
        for, "hybrid" is "lexical". Raises EmptyQuestion, NoPassages, NoAddresses, InvalidSetting.
        """
        search = self._search()
        return search.scored(search.rank(checked_question(query), k, mode))

    def _search(self) -> Search:
        with self._lock:
            if self._searched is None or not self._searched.is_current:
                self._searched = Search([self])
            return self._searched

    @property
    def keeps_passages(self) -> bool:
        """Whether the text is kept, for citations and `mode="recall"`."""
        return self._record.keep_passages

    def addresses(self) -> list[bytes] | None:
        """The addresses of all passages, see the module `addresses`; None where they have none."""
        return self.searchable()[1]()

    def searchable(self) -> tuple[list[Passage], Callable[[], list[bytes] | None]]:
        """The passages as they are now, and what gives their addresses; the memory may grow before it is called."""
        with self._lock:
            record, reading, file = self._record, self._reading, self._file

        def addresses() -> list[bytes] | None:
            # Without its model, as long as there is nothing that it could do.
            if record.addresses is None:
                return None
            with self._lock:
                opened = self._open() if reading is None else reading
                if record.addresses is None:
                    return None
                if file is not None and file.addresses is not None:
                    return split(file.addresses, file.reading["addresses"]["sizes"])
                return record.addresses.of_all(record.passages, record.begin, opened.rest())

        return record.passages, addresses

    # In LangChain

    def as_retriever(self, **settings: Any) -> Any:
        """A LangChain retriever over the passages; settings as for `langchain_infinimem.InfinimemRetriever`.

        Raises LangChainMissing where the package langchain-infinimem is not installed.
        """
        return component("InfinimemRetriever")(memory=self, **settings)

    def as_chat_model(self, **settings: Any) -> Any:
        """A LangChain chat model that answers from this memory; settings as for `langchain_infinimem.ChatInfinimem`.

        Raises LangChainMissing where the package langchain-infinimem is not installed.
        """
        return component("ChatInfinimem")(memory=self, **settings)


def _paths(sources: PathLike | Iterable[PathLike]) -> list[str]:
    # As texts: an empty one would be the current directory as a path.
    return [os.fspath(source) for source in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]


def _opened(sources: PathLike | Iterable[PathLike], skip: bool, limits: ReaderLimits | None) -> list[Source]:
    """The files that `sources` stand for. skip: one that cannot be opened has its place all the same."""
    opened = []
    for path in find_sources(_paths(sources)):
        try:
            opened.append(open_source(path, limits))
        except SourceError as error:
            if not skip:
                raise
            opened.append(unread_source(path, error))
    return opened
