"""Ingestion into a file: what the command line has, a Python user has too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import nasty_pdfs
import pytest
from click.testing import CliRunner
from conftest import TEXT, MakeModel

from infinimem import DocumentMemory, Source, open_source
from infinimem.cli.main import main
from infinimem.errors import FileInUse, InvalidSetting, ModelNotFound, NotReplaced, UnsupportedSource
from infinimem.ingest import stream
from infinimem.ingest.checkpoint import Checkpoint
from infinimem.ingest.target import partial_of
from infinimem.model.infini_model import InfiniModel
from infinimem.readers import source as source_module
from infinimem.readers.process import parent
from infinimem.readers.process.limits import ReaderLimits
from infinimem.storage.files import locked


class Interrupted(Exception):
    pass


@pytest.fixture
def model(make_model: MakeModel) -> InfiniModel:
    return make_model(segment_length=64)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT * 40, encoding="utf-8")
    return path


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    path = tmp_path / "paper.pdf"
    path.write_bytes(nasty_pdfs.texts(*(b"BT /F1 12 Tf 72 700 Td (The page %d.) Tj ET" % page for page in (1, 2, 3))))
    return path


@pytest.fixture
def after_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ingestions write a checkpoint after every segment, and end with the first one."""
    keep = Checkpoint.keep

    def keep_and_stop(self: Checkpoint, ingestion: Any) -> None:
        self._segments = 1
        keep(self, ingestion)
        if self._kept:
            raise Interrupted

    monkeypatch.setattr(Checkpoint, "keep", keep_and_stop)


def test_the_file_is_written_and_nothing_else_is_left(model: InfiniModel, book: Path, tmp_path: Path) -> None:
    output, expected = tmp_path / "out" / "m.safetensors", tmp_path / "expected"
    output.parent.mkdir()
    memory = DocumentMemory.ingest(book, model=model, output=output)
    DocumentMemory.ingest(book, model=model).save(expected)
    assert output.read_bytes() == expected.read_bytes()
    assert [path.name for path in output.parent.iterdir()] == ["m.safetensors"]
    assert memory.speed is not None and 0 < memory.speed.tokens <= memory.info()["tokens"] and memory.speed.seconds > 0


def test_an_interrupted_ingestion_is_kept_and_resumed(
    model: InfiniModel, book: Path, tmp_path: Path, after_one_segment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "m.safetensors"
    with pytest.raises(Interrupted):
        DocumentMemory.ingest(book, model=model, output=output)
    assert partial_of(output).is_file() and not output.exists()
    monkeypatch.undo()
    memory = DocumentMemory.ingest(book, model=model, output=output, resume=True)
    assert memory.speed is not None and memory.speed.tokens < memory.info()["tokens"]
    DocumentMemory.ingest(book, model=model).save(tmp_path / "whole")
    assert output.read_bytes() == (tmp_path / "whole").read_bytes() and not partial_of(output).exists()


def test_an_interrupted_ingestion_of_other_documents_is_not_lost(
    model: InfiniModel, book: Path, tmp_path: Path, after_one_segment: None
) -> None:
    output, other = tmp_path / "m.safetensors", tmp_path / "other.txt"
    other.write_text(TEXT, encoding="utf-8")
    with pytest.raises(Interrupted):
        DocumentMemory.ingest(book, model=model, output=output)
    kept = partial_of(output).read_bytes()
    with pytest.raises(NotReplaced, match=r"'book\.txt'"):
        DocumentMemory.ingest(other, model=model, output=output)
    assert partial_of(output).read_bytes() == kept


def test_a_document_is_never_replaced(model: InfiniModel, book: Path) -> None:
    told = book.read_bytes()
    with pytest.raises(NotReplaced):
        DocumentMemory.ingest(book, model=model, output=book)
    assert book.read_bytes() == told


def test_another_writer_is_respected(model: InfiniModel, book: Path, tmp_path: Path) -> None:
    import threading

    output, seen = tmp_path / "m.safetensors", []

    def ingest() -> None:
        try:
            DocumentMemory.ingest(book, model=model, output=output)
        except FileInUse as error:
            seen.append(error)

    with locked(output):
        thread = threading.Thread(target=ingest)
        thread.start()
        thread.join()
    assert len(seen) == 1 and "being written by another process" in str(seen[0]) and not output.exists()


@pytest.mark.parametrize("settings", [{"output": "m", "checkpoint": "c"}, {"resume": True}])
def test_settings_that_do_not_go_together_are_refused(
    model: InfiniModel, book: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    places = {name: tmp_path / value if isinstance(value, str) else value for name, value in settings.items()}
    with pytest.raises(InvalidSetting):
        DocumentMemory.ingest(book, model=model, **places)


@pytest.mark.parametrize("output", [".", "/"])
def test_an_output_that_can_be_no_file_is_refused_in_one_line(book: Path, tiny_directory: Path, output: str) -> None:
    result = CliRunner().invoke(main, ["ingest", str(book), "-o", output, "-m", str(tiny_directory)])
    assert result.exit_code == 1 and result.stderr.startswith("Error: ") and "no regular file" in result.stderr


def test_many_documents_are_written_into_a_directory_and_only_new_ones_are_read_again(
    model: InfiniModel, book: Path, tmp_path: Path
) -> None:
    (tmp_path / "second.txt").write_text(TEXT * 3, encoding="utf-8")
    sources, output = [book, tmp_path / "second.txt"], tmp_path / "memories"
    made = list(DocumentMemory.ingest_many(sources, model=model, output=output))
    assert len(made) == 2 and sorted(p.name for p in output.iterdir()) == [
        "book.txt.safetensors",
        "second.txt.safetensors",
    ]
    assert list(DocumentMemory.ingest_many(sources, model=model, output=output, resume=True)) == []
    (tmp_path / "second.txt").write_text(TEXT * 4, encoding="utf-8")
    (again,) = DocumentMemory.ingest_many(sources, model=model, output=output, resume=True)
    assert again.info()["sources"][0]["name"] == "second.txt"
    with pytest.raises(InvalidSetting, match="output"):
        DocumentMemory.ingest_many(sources, model=model, resume=True)


def test_a_file_that_is_open_already_is_not_opened_again(
    model: InfiniModel, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_source(book)
    monkeypatch.setattr(source_module, "open_source", lambda *_: pytest.fail("it was opened again"))
    memory = DocumentMemory.ingest(opened, model=model)
    (tmp_path / "second.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.undo()
    both = DocumentMemory.ingest([tmp_path / "second.txt", opened], model=model)
    assert [source["name"] for source in memory.info()["sources"]] == ["book.txt"]
    assert [source["name"] for source in both.info()["sources"]] == ["second.txt", "book.txt"]


def test_a_pdf_is_hashed_once_and_parsed_by_one_process(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paper: Path
) -> None:
    seen: Counter[str] = Counter()

    class Counted(parent._Process):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            seen["processes"] += 1
            super().__init__(*arguments, **settings)

    sha256 = source_module.hashlib.sha256

    def counted(*arguments: Any) -> Any:
        seen["hashes"] += 1
        return sha256(*arguments)

    monkeypatch.setattr(parent, "_Process", Counted)
    monkeypatch.setattr(source_module.hashlib, "sha256", counted)
    opened = open_source(paper, wait=True)
    assert seen == {"hashes": 1, "processes": 1}
    monkeypatch.setattr(source_module.hashlib, "sha256", sha256)
    memory = DocumentMemory.ingest(opened, model=make_model(), output=tmp_path / "m")
    assert seen["processes"] == 1 and memory.info()["pages"] == 3


def test_a_process_that_waits_ends_when_nobody_needs_its_file(tmp_path: Path, paper: Path) -> None:
    import gc

    opened = open_source(paper, wait=True)
    assert opened.parser is not None and opened.parser._process is not None
    process = opened.parser._process
    assert process.is_alive
    del opened
    gc.collect()
    assert not process.is_alive


def test_no_process_waits_after_an_ingestion_that_failed(tmp_path: Path, children: list[Any], paper: Path) -> None:
    with pytest.raises(ModelNotFound) as kept:
        DocumentMemory.ingest(paper, model=tmp_path / "nothing")
    assert kept.value.__traceback__ is not None and [child.is_alive for child in children] == [False]


def test_no_process_waits_for_a_file_that_was_read_before_the_interruption(
    make_model: MakeModel, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: list[Any], paper: Path
) -> None:
    model, checkpoint, alive = make_model(), tmp_path / "c", []
    whole = DocumentMemory.ingest([paper, book], model=model, checkpoint=checkpoint)
    whole.save(checkpoint)
    take = stream.take_source

    def seen(ingestion: Any, source: Source, *arguments: Any) -> Any:
        alive.append((source.name, children[-1].is_alive))
        return take(ingestion, source, *arguments)

    monkeypatch.setattr(stream, "take_source", seen)
    DocumentMemory.ingest([paper, book], model=model, checkpoint=checkpoint, resume=True)
    assert len(children) == 2 and alive == [("book.txt", False)]


def test_a_process_with_other_limits_is_not_used(children: list[Any], paper: Path) -> None:
    opened = open_source(paper, wait=True)
    assert sum(1 for _ in source_module.read_pages(opened, limits=ReaderLimits(pages=100))) == 3
    assert [child.is_alive for child in children] == [False, False]


def test_a_process_that_has_ended_while_it_waited_is_started_again(model: InfiniModel, paper: Path) -> None:
    opened = open_source(paper, wait=True)
    assert opened.parser is not None and opened.parser._process is not None
    opened.parser._process._child.kill()
    opened.parser._process._child.wait()
    assert sum(1 for _ in source_module.read_pages(opened)) == 3


def test_no_other_process_reads_it_than_one_with_the_limits_of_reading(tmp_path: Path, paper: Path) -> None:
    opened = open_source(paper, wait=True)
    with pytest.raises(source_module.SourceTooLarge):
        list(source_module.read_pages(opened, limits=source_module.ReaderLimits(page_characters=10)))


def test_a_directory_named_as_a_source_is_refused(tmp_path: Path, model: InfiniModel) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsupportedSource):
        DocumentMemory.ingest(tmp_path / "empty", model=model, output=tmp_path / "m")
