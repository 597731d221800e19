"""`DocumentMemory`: documents in, one small file, answers out.

    memory = DocumentMemory.ingest("book.pdf")
    memory.save("book.safetensors")
    memory = DocumentMemory.load("book.safetensors")
    answer = memory.ask("Who is Ishmael?")
    print(answer.text, [p.page for p in answer.passages])

A memory file is opened without its model; the model is loaded when something has to be read or answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from .answering.answer import Answer
from .answering.conversation import REPLY, Reply, complete
from .answering.decoding import SHORT, Decoding, new_tokens
from .answering.followup import searched
from .answering.plan import (
    ANSWER_FROM,
    Plan,
    asked_after,
    plan_from_memory,
    plan_from_search,
    plan_summary,
)
from .answering.prompts import Conversation, History, checked_system, conversation
from .answering.stream import answer_texts, pieces_async, stream_answer, whole_sentences
from .errors import (
    EmptySource,
    FileChanged,
    ForcedModel,
    InvalidSetting,
    MergeMismatch,
    ModelMismatch,
    SourceError,
    warn_renamed,
)
from .ingest.batch import ingest_batch, open_each
from .ingest.checkpoint import Checkpoint
from .ingest.ingestion import Ingestion
from .ingest.opening import model_of, opened_under
from .ingest.progress import ProgressCallback, shown_progress
from .ingest.record import Record
from .ingest.stream import PathLike, Sources, found_sources, names_apart, opened_sources, read_sources
from .ingest.target import is_there, targets_in, writing
from .langchain import component
from .model.identity import differences
from .model.settings import MemorySettings
from .readers import ReaderLimits, Source
from .search.central import central_parts
from .search.search import Search
from .storage.files import locked, make_directory, version_of
from .storage.memory_file import MemoryFile, check_memory_target, read_memory_file
from .text.passages import Passage
from .text.term_weights import split
from .text.words import as_unicode, checked_question

if TYPE_CHECKING:
    from .attention import InfiniCache
    from .model.infini_model import InfiniModel

    Model = str | os.PathLike[str] | InfiniModel | None

# How long `save` waits for another writer, who needs only a moment.
SECONDS_FOR_A_LOCK = 10.0
# Segments in one forward on a GPU.
BATCH = 8
# Fewest tokens to write for a part of a summary.
TOKENS_OF_A_PART = 75
# Lower than for answers: a summary is longer, so it has more room for loops, and it need not quote.
NO_REPEAT_IN_SUMMARIES = 4
# Values of `mode` in older releases, and their present names.
OLD_ANSWER_MODES = {"recall": "passages"}
OLD_RANKINGS = {"memory": "learned"}


class Speed(NamedTuple):
    """How fast an ingestion was.

    tokens: tokens that were read.
    seconds: time for reading them, without the loading of the model.
    """

    tokens: int
    seconds: float


class DocumentMemory:
    """What a model remembers of one or several documents.

    Make a memory with `ingest`, `from_text`, `load` or `merge`. Asking never changes it, and any number of threads may
    ask at once. Appending changes it, but a failed append leaves it as it was.

    speed: of the last `ingest` or `append`; None before that.
    """

    def __init__(self, record: Record, *, ingestion: Ingestion | None = None, file: MemoryFile | None = None) -> None:
        self._record = record
        # None until the model is loaded.
        self._ingestion = ingestion
        # What `save` writes, once it is made; None after appending.
        self._file = file
        self._device: str | None = None
        self._adapter: PathLike | None = None
        self._weights: str | None = None
        self._searched: Search[DocumentMemory] | None = None
        self._lock = threading.RLock()
        # The path that the memory was loaded from or saved to, and the version of the file at that time.
        self._place: tuple[Path, tuple[int, ...] | None] | None = None
        self._force = False
        self._forced: tuple[str, ...] = ()
        self.speed: Speed | None = None

    # Making

    @classmethod
    def ingest(
        cls,
        sources: Sources,
        *,
        model: Model = None,
        rule: str | None = None,
        rule_settings: dict[str, Any] | None = None,
        segment_length: int | None = None,
        carry: int | None = None,
        passages: bool = True,
        progress: bool | ProgressCallback = False,
        device: str | None = None,
        adapter: PathLike | None = None,
        weights: str | None = None,
        output: PathLike | None = None,
        checkpoint: PathLike | None = None,
        resume: bool = False,
        skip_errors: bool = False,
        limits: ReaderLimits | None = None,
        ocr: bool = False,
    ) -> DocumentMemory:
        """Read documents once: PDF, EPUB, Office files, mail, notebooks, HTML, Markdown, and any other text.

        sources: files, directories, glob patterns, or a `Source` from `open_source`; one or several. Of a directory,
            all is read that can be; `info()["sources"]` names the files that were left out, and says why.
        model: None for the default model, a name of the catalogue (`infinimem models`), a directory, a GGUF file, a hub
            id, or an InfiniModel.
        rule: "slots" (default), the paper's rules "linear" and "delta", or "recent", a baseline.
        rule_settings: as the rule's constructor takes them.
        segment_length: most tokens of a segment, 512 by default.
        carry: number of last tokens that stay as they are, 256 by default (0 under the paper's rules).
        passages: also keep the text, for citations and answers from passages.
        progress: True for a bar on standard error, or a function that takes a `Progress`.
        device: such as "cpu" or "cuda:1"; None takes a GPU if there is one.
        adapter: a directory, "none", or None for the adapter of the default model. Rule and settings are by default
            those that the adapter was trained with.
        weights: "int8" keeps the model's weights in half the room of "bfloat16". None for what suits the model
            (docs/models.md). A memory belongs to the weights it was read with.
        output: the memory file to write. Until it is complete, FILE.partial beside it keeps what was read so far.
        checkpoint: without `output`, a file that keeps what was read so far. It is written every 32 segments and never
            deleted.
        resume: go on from FILE.partial or the checkpoint, if there is one. The memory is then the same as after an
            uninterrupted ingestion; source files, model and settings must be those of the first run.
        skip_errors: leave out the files and pages that cannot be read; `info()["sources"]` says which, and why.
        limits: what parsing a file may use.
        ocr: recognize the text of images, and of PDF pages that are images; `info()["sources"]` says with which
            confidence. Needs the extra `ocr`.

        Raises the SourceError, ModelError, AdapterError or InvalidSetting that names the cause; CheckpointMismatch;
        TargetNotWritable; with `output` also FileInUse, and NotReplaced where a document or another interrupted
        ingestion would be lost.
        """
        if output is not None and checkpoint is not None:
            raise InvalidSetting("an ingestion into output keeps a checkpoint beside output; leave checkpoint out")
        if resume and output is None and checkpoint is None:
            raise InvalidSetting("there is nothing to resume from; name the output or the checkpoint of the ingestion")
        settings = MemorySettings(rule, rule_settings, segment_length, None, carry, device, adapter, weights)
        found, limits = found_sources(sources), _with_ocr(limits, ocr)
        with contextlib.ExitStack() as stack:
            if output is not None:
                checkpoint = stack.enter_context(writing(Path(output), names_apart(found), resume))
            # Files are opened before the model is loaded, which takes a while: errors should come early.
            opened = stack.enter_context(opened_sources(found, skip_errors, limits))
            memory = cls._of(_empty(passages, model, settings))
            kept = None if checkpoint is None else Checkpoint(Path(checkpoint))
            memory._read(opened, progress, skip_errors, limits, kept, resume)
            if output is not None:
                memory.save(output)
        return memory

    @classmethod
    def ingest_many(
        cls,
        sources: Sources,
        *,
        batch: int | None = None,
        model: Model = None,
        rule: str | None = None,
        rule_settings: dict[str, Any] | None = None,
        segment_length: int | None = None,
        carry: int | None = None,
        passages: bool = True,
        progress: bool | ProgressCallback = False,
        device: str | None = None,
        adapter: PathLike | None = None,
        weights: str | None = None,
        output: PathLike | None = None,
        resume: bool = False,
        limits: ReaderLimits | None = None,
        on_error: Callable[[Path, SourceError], None] | None = None,
        skip_errors: bool | None = None,
        ocr: bool = False,
    ) -> Iterator[DocumentMemory]:
        """Read each document into a separate memory, several documents in one batch.

        Yields each memory as soon as it is complete. The memory equals the memory that `ingest` makes of the same file,
        except for rounding: its bytes may differ.

        batch: most segments in one forward. None for eight on a GPU, which a single short text leaves idle, and for one
            on a CPU, where a batch takes longer than its segments one after the other.
        output: a directory. The memory of book.pdf is saved there as book.pdf.safetensors before it is yielded.
        resume: leave out documents whose memory files are in `output` and up to date.
        on_error: called with the path and the error of each file that cannot be read and is left out.
        skip_errors: leave out files that cannot be read, and pages, which `info()["sources"]` then names; by default
            only where `on_error` is given. Files that were found in a directory, rather than named, are always left
            out.

        Other settings, and errors, as for `ingest`.
        """
        if batch is not None and batch < 1:
            raise InvalidSetting(f"batch is {batch}, but at least one segment is read at a time")
        if resume and output is None:
            raise InvalidSetting("there is nothing to resume from; name the output directory")
        settings = MemorySettings(rule, rule_settings, segment_length, None, carry, device, adapter, weights)
        found, limits = found_sources(sources), _with_ocr(limits, ocr)
        directory = None if output is None else Path(output)
        targets = {} if directory is None else targets_in(directory, found)
        skip = on_error is not None if skip_errors is None else skip_errors
        opened = list(open_each(found, limits, on_error, skip))
        if directory is not None:
            make_directory(directory)
            for target in targets.values():
                check_memory_target(target)
        chosen = _model(model, settings)
        if resume:
            opened = [one for one in opened if not is_there(targets[one.name], one, chosen, passages, skip)]
        if batch is None:
            batch = 1 if chosen.device.type == "cpu" else BATCH
        done = ingest_batch(lambda: Ingestion.empty(chosen, passages), opened, batch, progress, limits, on_error, skip)
        return (cls._of(ingestion)._saved_among(targets) for ingestion in done)

    @classmethod
    def from_text(
        cls,
        text: str,
        *,
        name: str = "text",
        model: Model = None,
        rule: str | None = None,
        rule_settings: dict[str, Any] | None = None,
        segment_length: int | None = None,
        carry: int | None = None,
        passages: bool = True,
        device: str | None = None,
        adapter: PathLike | None = None,
        weights: str | None = None,
    ) -> DocumentMemory:
        """Read a string, which answers cite as page 1 of `name`. Settings, and errors, as for `ingest`."""
        if not text.strip():
            raise EmptySource("the text is empty; there is nothing to remember")
        settings = MemorySettings(rule, rule_settings, segment_length, None, carry, device, adapter, weights)
        memory = cls._of(_empty(passages, model, settings))
        memory.append_text(text, name=name)
        return memory

    @classmethod
    def merge(cls, memories: Iterable[DocumentMemory]) -> DocumentMemory:
        """Merge memories that were made with the same model and settings into one.

        - `linear`: the states are added; the sum is exact
        - `delta`: the states are added; the sum is an approximation, as values that both memories store under similar
          keys count twice
        - `slots`: the slots are pooled and merged to capacity, an approximation of the same kind as a write
        - carried tokens: as if the documents had been read one after the other

        Under all rules, no document saw another document while it was read.

        Raises MergeMismatch; InvalidSetting where there are no memories; ModelMismatch where a model was forced.
        """
        chosen = list(memories)
        if not chosen:
            raise InvalidSetting("there are no memories to merge")
        first = chosen[0]
        for other in chosen[1:]:
            different = differences(first.identity, other.identity)
            if different:
                raise MergeMismatch(
                    f"memories of different models or settings cannot be merged: {'; '.join(different)}; ingest the "
                    "documents with the same model and settings"
                )
            if first._record.keep_passages != other._record.keep_passages:
                raise MergeMismatch("one memory has passages and another has none; ingest all of them in the same way")
        parts = [memory._open_for_more() for memory in chosen]
        return cls._of(Ingestion.merged(parts, [memory.term_weights() for memory in chosen]))

    @classmethod
    def _of(cls, ingestion: Ingestion) -> DocumentMemory:
        return cls(ingestion.record, ingestion=ingestion)

    def _saved_among(self, targets: Mapping[str, Path]) -> DocumentMemory:
        if targets:
            self.save(targets[self._record.sources[0].name])
        return self

    # Reading more

    def append(
        self,
        sources: Sources,
        *,
        progress: bool | ProgressCallback = False,
        skip_errors: bool = False,
        limits: ReaderLimits | None = None,
        ocr: bool = False,
    ) -> None:
        """Read more documents into this memory. The memory is then the same as if all had been read in one go.

        Settings, and errors, as for `ingest`.
        """
        limits = _with_ocr(limits, ocr)
        with opened_sources(found_sources(sources), skip_errors, limits) as opened:
            self._read(opened, progress, skip_errors, limits)

    def append_text(self, text: str, *, name: str = "text") -> None:
        """Read a string into this memory. If the last source is a string of the same name, the text continues that
        source, so any split of a text gives the same memory."""
        text = as_unicode(text)
        if not name.strip():
            raise InvalidSetting("the text has no name; answers cite it by its name")
        with self._lock:
            ingestion = self._open_for_more().copy()
            ingestion.take_string(text, name)
            self._replace(ingestion)

    def _read(
        self,
        opened: Sequence[Source],
        progress: bool | ProgressCallback,
        skip: bool,
        limits: ReaderLimits | None,
        checkpoint: Checkpoint | None = None,
        resume: bool = False,
    ) -> None:
        with self._lock, shown_progress(progress) as on_progress:
            ingestion, begun = self._open_for_more().copy(), 0
            if checkpoint is not None and resume and checkpoint.path.exists():
                ingestion = checkpoint.resume(ingestion, opened)
                begun = len(ingestion.record.sources)
            before, started = ingestion.tokens, time.perf_counter()
            read_sources(ingestion, opened, on_progress, skip, limits, checkpoint, begun)
            self.speed = Speed(ingestion.tokens - before, time.perf_counter() - started)
            self._replace(ingestion)

    def _replace(self, ingestion: Ingestion) -> None:
        self._record, self._ingestion, self._file = ingestion.record, ingestion, None

    # Files

    def save(self, path: PathLike) -> int:
        """Write the memory file, atomically. Returns its size in bytes.

        Raises TargetNotWritable; FileInUse while another process writes the file; FileChanged where this memory was
        loaded from the file and someone else has written the file since.
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
        model: Model = None,
        device: str | None = None,
        adapter: PathLike | None = None,
        weights: str | None = None,
        force: bool = False,
    ) -> DocumentMemory:
        """Open a memory file.

        model: as for `ingest`; None for the model that the file names, which is loaded when it is first needed.
        device: as for `ingest`.
        adapter: the directory where the adapter of the memory is now; None for the place that the file names.
        weights: as for `ingest`; None for the weights that the memory was read with.
        force: accept a model that did not make the memory, as long as the memory's shapes fit it. Answers may then mean
            nothing: the warning ForcedModel is given, every answer says how the models differ (`forced`), and the
            memory can be asked but not appended to or merged.

        Raises MemoryFileNotFound, NotAMemoryFile, DamagedMemoryFile, UnsupportedVersion; ModelMismatch where another
        model made the memory, at once with `model`, otherwise when the model is loaded.
        """
        place = Path(os.path.realpath(path))
        version = version_of(place)
        file = read_memory_file(path)
        memory = cls(Record.from_file(file), file=file)
        memory._device, memory._adapter, memory._weights = device, adapter, weights
        memory._force, memory._place = force, (place, version)
        if model is not None:
            memory._attach(memory._given_model(file, model))
        return memory

    def _given_model(self, file: MemoryFile, model: Model) -> InfiniModel:
        from .model.infini_model import InfiniModel

        if not isinstance(model, InfiniModel):
            return model_of(file, model, self._device, self._adapter, self._weights, self._force)
        if any(one is not None for one in (self._adapter, self._device, self._weights)):
            raise InvalidSetting("an InfiniModel has its device, adapter and weights already; leave them out")
        return model

    def _to_file(self) -> MemoryFile:
        with self._lock:
            if self._file is None:
                self._file = self._open().to_file()
            return self._file

    def _attach(self, model: InfiniModel) -> Ingestion:
        if self._file is None:
            raise InvalidSetting("this memory has a model already")
        ingestion, different = opened_under(model, self._file, self._record, self._force)
        if different:
            self._forced = tuple(different)
            warnings.warn(
                f"this memory was made by another model than '{model.name}', so its answers may mean nothing: "
                f"{'; '.join(different)}",
                ForcedModel,
                stacklevel=2,
            )
        else:
            # The places where model and adapter are now, not where they were when the file was made.
            self._file = replace(self._file, model=model.name, adapter=model.adapter_name)
        self._ingestion = ingestion
        return ingestion

    def _open(self) -> Ingestion:
        """The ingestion, with its model loaded."""
        with self._lock:
            if self._ingestion is None and self._file is not None:
                return self._attach(model_of(self._file, None, self._device, self._adapter, self._weights))
            if self._ingestion is None:
                raise InvalidSetting("this memory has neither a model nor a file")
            return self._ingestion

    def _open_for_more(self) -> Ingestion:
        """The ingestion, to append to or to merge. Raises ModelMismatch where the model was forced."""
        ingestion = self._open()
        if self._forced:
            raise ModelMismatch(
                "this memory was loaded by force under another model than it was made by, so it can be asked, but not "
                f"appended to or merged ({'; '.join(self._forced)}); load it with the model that made it"
            )
        return ingestion

    def open(self, *, ready: bool = False) -> None:
        """Load the model now, rather than with the first question.

        ready: also make everything else that the first question would wait for: the answer adapter, the index of the
            passages, and a memory that holds the unfinished segment.

        Raises ModelMismatch and the ModelErrors.
        """
        ingestion = self._open()
        if ready:
            with self._lock:
                ingestion.complete()
            if self.keeps_passages and self.passages:
                self._search().prepare()
                ingestion.model.answering_model  # noqa: B018

    # Looking

    @property
    def model(self) -> InfiniModel:
        """The model behind this memory, loaded on first use."""
        return self._open().model

    @property
    def identity(self) -> dict[str, Any]:
        """Everything in the model and its settings that the memory depends on."""
        if self._ingestion is None and self._file is not None:
            return self._file.identity
        return self._open().model.identity()

    @property
    def passages(self) -> list[Passage]:
        """All passages, in reading order."""
        return self._record.passages

    @property
    def keeps_passages(self) -> bool:
        """Whether the text is kept, for citations and answers from passages."""
        return self._record.keep_passages

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

    # Finding passages

    def retrieve(self, query: str, k: int = 4, *, rank_by: str = "hybrid", mode: str | None = None) -> list[Passage]:
        """Find the passages that fit a query best.

        k: most passages; fewer are returned where fewer fit at all.
        rank_by: "learned" ranks by the term weights that the model gave the words of the passages during ingestion,
            "lexical" by BM25, without the model, "hybrid" by both. Where passages have no term weights, as under models
            without a term head, "hybrid" is "lexical".
        mode: the name of `rank_by` in older releases, where "memory" stood for "learned".

        Returns passages with scores, best first; of passages with the same words, only the best. Raises EmptyQuestion,
        NoPassages, NoTermWeights, InvalidSetting.
        """
        rank_by = _renamed("rank_by", rank_by, mode, OLD_RANKINGS)
        return [passage for passage, _ in self._search().find(query, k, rank_by)]

    def _search(self) -> Search[DocumentMemory]:
        with self._lock:
            if self._searched is None or not self._searched.is_current:
                self._searched = Search([self])
            return self._searched

    def term_weights(self) -> list[bytes] | None:
        """The term weights of all passages, a byte a word; None where the passages have no term weights."""
        return self.searchable()[1]()

    def addresses(self) -> list[bytes] | None:
        """`term_weights`, under the name of older releases."""
        warn_renamed("DocumentMemory.addresses", "DocumentMemory.term_weights")
        return self.term_weights()

    def searchable(self) -> tuple[list[Passage], Callable[[], list[bytes] | None]]:
        """The passages as they are now, and a function that gives their term weights, even if the memory has grown when
        the function is called."""
        with self._lock:
            record, ingestion, file = self._record, self._ingestion, self._file

        def term_weights() -> list[bytes] | None:
            # Where there are no term weights, the model need not be loaded.
            if record.term_weights is None:
                return None
            with self._lock:
                opened = self._open() if ingestion is None else ingestion
                if record.term_weights is None:
                    return None
                if file is not None and file.term_weights is not None:
                    return split(file.term_weights, file.reading["addresses"]["sizes"])
                return opened.term_weights()

        return record.passages, term_weights

    # Asking

    def ask(
        self,
        question: str,
        *,
        k: int = 4,
        answer_from: str = "passages",
        mode: str | None = None,
        history: History = (),
        system: str | None = None,
        style: str = SHORT,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Answer:
        """Answer a question.

        k: most passages to search for. Under greedy decoding, a model with an answer adapter is shown the best passage
            and the best sentences in separate candidate prompts (answering/ensemble.py).
        answer_from: "passages" shows the model the passages; where none fits the question, the answer is that the
            document does not say. "memory" shows the model the question alone, and every layer reads the compressive
            memory.
        mode: the name of `answer_from` in older releases, where "recall" stood for "passages".
        history: earlier (question, answer) pairs of the conversation. A follow-up question, such as "And how deep is
            it?", is searched with the questions before it.
        system: your own instructions to the model, which follow those of this library.
        style: "short" asks for a few words, "full" for whole sentences. An adapter that was trained for short answers,
            such as the default model's, gives short answers anyway.
        max_new_tokens: most tokens of the answer; None for 64 in the short style, and 192 in the full style.
        temperature: 0 is greedy; above 0, sampling with `top_p`, repeatable with `seed`.

        Raises EmptyQuestion, NoPassages, InvalidSetting.
        """
        answer_from = _renamed("answer_from", answer_from, mode, OLD_ANSWER_MODES)
        decoding = Decoding(new_tokens(max_new_tokens, style), temperature, top_p, seed)
        reply = self._reply(asked_after(history, question, system, style), k, answer_from, decoding)
        return Answer(reply.text(), reply.plan.answer_from, reply.passages, question, self._forced)

    def stream(
        self,
        question: str,
        *,
        k: int = 4,
        answer_from: str = "passages",
        mode: str | None = None,
        history: History = (),
        system: str | None = None,
        style: str = SHORT,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Answer like `ask`, but piece by piece as the model writes; closing the iterator stops the model.

        An ensemble, as a model with an answer adapter uses it under greedy decoding, chooses among complete answers:
        its first piece comes when the answer is complete.
        """
        answer_from = _renamed("answer_from", answer_from, mode, OLD_ANSWER_MODES)
        decoding = Decoding(new_tokens(max_new_tokens, style), temperature, top_p, seed)
        return self._reply(asked_after(history, question, system, style), k, answer_from, decoding).continuation

    def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        k: int = 4,
        answer_from: str = "passages",
        mode: str | None = None,
        style: str = SHORT,
        decoding: Decoding = REPLY,
    ) -> Reply:
        """Reply to a conversation. The reply is written while it is iterated.

        messages: {"role": "system", "user" or "assistant", "content": text} each; the last message is the user's.
        k, answer_from, mode, style: as for `ask`.

        Raises EmptyQuestion, NoPassages, InvalidSetting.
        """
        answer_from = _renamed("answer_from", answer_from, mode, OLD_ANSWER_MODES)
        return self._reply(conversation(messages, style), k, answer_from, decoding)

    def complete(self, texts: Sequence[str], decoding: Decoding = REPLY) -> list[str]:
        """Continue plain texts with the memory in view; see `answering.conversation.complete`."""
        return complete(self.model, texts, self.complete_memory(), decoding)

    def ask_many(
        self,
        questions: Sequence[str],
        *,
        k: int = 4,
        answer_from: str = "passages",
        mode: str | None = None,
        system: str | None = None,
        style: str = SHORT,
        max_new_tokens: int | None = None,
    ) -> list[Answer]:
        """Answer several questions as one batch, with greedy decoding. Settings, and errors, as for `ask`."""
        answer_from = _renamed("answer_from", answer_from, mode, OLD_ANSWER_MODES)
        decoding = Decoding(new_tokens(max_new_tokens, style))
        if isinstance(questions, str):
            raise InvalidSetting("questions is one text; give a list of questions")
        plans = [
            self._plan(asked_after((), question, system, style), k, answer_from, decoding) for question in questions
        ]
        texts = answer_texts(self.model, plans, self.complete_memory, decoding) if plans else []
        return [
            Answer(text, plan.answer_from, plan.passages, question, self._forced)
            for text, plan, question in zip(texts, plans, questions, strict=True)
        ]

    async def aask(self, question: str, **settings: Any) -> Answer:
        """`ask` without blocking the event loop."""
        return await asyncio.to_thread(self.ask, question, **settings)

    def astream(self, question: str, **settings: Any) -> AsyncIterator[str]:
        """`stream` without blocking the event loop; leaving the `async for` loop stops the model."""
        return pieces_async(lambda: self.stream(question, **settings))

    def summarize(
        self, focus: str | None = None, *, system: str | None = None, max_new_tokens: int = 300, k: int = 6
    ) -> Answer:
        """Summarize the document from passages in reading order; without passages, from the compressive memory.

        A long document is summarized part by part, in as many parts as `max_new_tokens` has room for.

        focus: what the summary should be about, in one part; None for the whole document.
        system: your own instructions to the model, as for `ask`.
        max_new_tokens: most tokens of the summary, shared by its parts.
        k: most passages for each part.

        Raises EmptyQuestion, InvalidSetting.
        """
        if k < 1:
            raise InvalidSetting(f"k is {k}; a summary needs at least one passage")
        if not self.keeps_passages:
            parts: list[list[Passage]] = [[]]
        elif focus is None:
            parts = central_parts(self.passages, k, max_new_tokens // TOKENS_OF_A_PART)
        else:
            search = self._search()
            parts = [search.scored(sorted(search.rank(checked_question(focus), k)))]
        decoding = Decoding(max_new_tokens // len(parts), no_repeat=NO_REPEAT_IN_SUMMARIES)
        own = checked_system(system)
        plans = [plan_summary(self.model, part, focus, own, decoding) for part in parts]
        text = "\n\n".join(map(whole_sentences, answer_texts(self.model, plans, self.complete_memory, decoding)))
        shown = [passage for plan in plans for passage in plan.passages]
        return Answer(text, "passages" if shown else "memory", shown, focus, self._forced)

    def _plan(self, asked: Conversation, k: int, answer_from: str, decoding: Decoding) -> Plan:
        if answer_from not in ANSWER_FROM:
            raise InvalidSetting(f"answer_from cannot be {answer_from!r}; choose one of {', '.join(ANSWER_FROM)}")
        if answer_from == "memory":
            return plan_from_memory(self.model, asked, decoding)
        # Ranked before the model is loaded: there may be no passages, or nothing to look for.
        search = self._search()
        ranked = search.rank(searched(asked), k)
        return plan_from_search(self.model, search, ranked, asked, decoding)

    def _reply(self, asked: Conversation, k: int, answer_from: str, decoding: Decoding) -> Reply:
        plan = self._plan(asked, k, answer_from, decoding)
        return Reply(plan, plan.answer_from, stream_answer(self.model, plan, self.complete_memory, decoding))

    def complete_memory(self) -> InfiniCache:
        """The compressive memory, with the unfinished segment in it: what the model sees instead of passages."""
        with self._lock:
            return self._open().complete()

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


def _model(model: Model, settings: MemorySettings) -> InfiniModel:
    """`model` itself, or the shared model of that name with these settings."""
    from .model.infini_model import InfiniModel
    from .model.shared import shared_model

    if not isinstance(model, InfiniModel):
        return shared_model(model, settings)
    if given := settings.given():
        raise InvalidSetting(f"an InfiniModel has its {', '.join(given)} already; leave out what you gave beside it")
    return model


def _empty(passages: bool, model: Model, settings: MemorySettings) -> Ingestion:
    return Ingestion.empty(_model(model, settings), passages)


def _renamed(name: str, value: str, old: str | None, values: Mapping[str, str]) -> str:
    """The value of a setting that older releases call `mode`, where some values have other names."""
    if old is None:
        return value
    value = values.get(old, old)
    warn_renamed(f"mode={old!r}", f"{name}={value!r}", stacklevel=4)
    return value


def _with_ocr(limits: ReaderLimits | None, ocr: bool) -> ReaderLimits | None:
    return replace(limits or ReaderLimits(), ocr=True) if ocr else limits
