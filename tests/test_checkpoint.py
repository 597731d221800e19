"""Reading that is interrupted: what is kept, and that going on from it gives the same bytes."""

from __future__ import annotations

import contextlib
import io
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import TEXT, MakeModel

from infinimem import DocumentMemory, InfiniModel, Progress
from infinimem import document_memory as module
from infinimem.cli.main import main
from infinimem.errors import CheckpointMismatch, DamagedMemoryFile, InvalidSetting, TargetNotWritable
from infinimem.ingest.checkpoint import Checkpoint
from infinimem.ingest.ingestion import Ingestion
from infinimem.storage.memory_file import read_memory_file


class Stopped(Exception):
    pass


@pytest.fixture
def model(make_model: MakeModel) -> InfiniModel:
    return make_model(segment_length=64)


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """A text of several pages, a page of HTML, and a short text."""
    words = TEXT.split()
    paragraphs = [" ".join(random.Random(n).choices(words, k=60)).capitalize() + "." for n in range(24)]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    (tmp_path / "b.html").write_text(f"<html><body><h1>Long</h1><p>{' '.join(paragraphs[:9])}</p></body></html>")
    (tmp_path / "c.txt").write_text(TEXT)
    return [tmp_path / name for name in ("a.txt", "b.html", "c.txt")]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after every piece that ends a segment, several to a page."""
    monkeypatch.setattr(module, "Checkpoint", lambda path: Checkpoint(path, segments=1))
    monkeypatch.setattr(
        "infinimem.ingest.stream.pieces", lambda text: (text[i : i + 1500] for i in range(0, len(text), 1500))
    )


def read_until(
    calls: int, sources: list[Path], partial: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> bool:
    """Read, and stop after so many pieces of text; whether it came to that."""
    left = calls
    original = Checkpoint.keep

    def keep(self: Checkpoint, *args: Any) -> None:
        nonlocal left
        original(self, *args)
        left -= 1
        if left == 0:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "keep", keep)
        try:
            DocumentMemory.ingest(sources, checkpoint=partial, **settings)
        except Stopped:
            return True
    return False


def test_going_on_from_any_piece_gives_the_bytes_of_reading_without_a_break(
    model: InfiniModel, sources: list[Path], tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed, partial = tmp_path / "whole", tmp_path / "resumed", tmp_path / "partial"
    DocumentMemory.ingest(sources, model=model).save(whole)
    stops = 0
    while read_until(stops + 1, sources, partial, monkeypatch, model=model):
        stops += 1
        memory = DocumentMemory.ingest(sources, model=model, checkpoint=partial, resume=True)
        memory.save(resumed)
        assert resumed.read_bytes() == whole.read_bytes()
    assert stops > sum(source["pages"] for source in memory.info()["sources"]) > 3


def test_what_was_read_is_not_read_again(
    model: InfiniModel, sources: list[Path], tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, seen = tmp_path / "partial", []
    assert read_until(5, sources, partial, monkeypatch, model=model)
    known = read_memory_file(partial).reading["seen"]
    whole = DocumentMemory.ingest(sources, model=model).info()["tokens"]
    original = model.read_segment
    monkeypatch.setattr(
        model, "read_segment", lambda tokens, *a, **k: seen.append(tokens.shape[1]) or original(tokens, *a, **k)
    )
    DocumentMemory.ingest(sources, model=model, checkpoint=partial, resume=True)
    # The unfinished segment at the end is not read before something is asked.
    assert known > 0 and (whole - known) // 2 < sum(seen) <= whole - known


def test_reading_that_is_stopped_twice_goes_on_twice(
    model: InfiniModel, sources: list[Path], tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, result = tmp_path / "partial", tmp_path / "result"
    assert read_until(3, sources, partial, monkeypatch, model=model)
    assert read_until(3, sources, partial, monkeypatch, model=model, resume=True)
    assert read_memory_file(partial).reading["seen"] > 0
    DocumentMemory.ingest(sources, model=model, checkpoint=partial, resume=True).save(result)
    DocumentMemory.ingest(sources, model=model).save(partial)
    assert result.read_bytes() == partial.read_bytes()


def test_without_resume_or_without_a_checkpoint_reading_begins_anew(
    model: InfiniModel, sources: list[Path], tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, first = tmp_path / "partial", []

    def note(progress: Progress) -> None:
        first.append((progress.source, progress.page))

    for resume in (True, False):
        first.clear()
        DocumentMemory.ingest(sources, model=model, checkpoint=partial, resume=resume, progress=note)
        assert first[0] == ("a.txt", 1) and partial.exists()


def test_a_checkpoint_is_written_every_so_many_segments(
    model: InfiniModel, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    checkpoint = Checkpoint(tmp_path / "partial", segments=8)
    original = checkpoint.keep

    def keep(ingestion: Ingestion) -> None:
        before = checkpoint._kept
        original(ingestion)
        if checkpoint._kept != before:
            assert read_memory_file(checkpoint.path).reading["seen"] == ingestion.seen
            written.append(ingestion.seen - before)

    monkeypatch.setattr(checkpoint, "keep", keep)
    monkeypatch.setattr(module, "Checkpoint", lambda path: checkpoint)
    DocumentMemory.ingest(sources, model=model, checkpoint=tmp_path / "partial")
    assert len(written) > 2 and min(written) >= 8 * 64


def test_other_sources_settings_and_contents_are_refused_and_the_checkpoint_stays(
    make_model: MakeModel, model: InfiniModel, sources: list[Path], tmp_path: Path, often: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    partial = tmp_path / "partial"
    assert read_until(5, sources, partial, monkeypatch, model=model)
    kept = partial.read_bytes()
    other = make_model(segment_length=32)
    for given, settings, said in (
        (sources[1:], {"model": model}, r"begun with 'a.txt'"),
        (sources, {"model": other}, r"segment_length: 64 in the file, 32 here"),
        (sources, {"model": model, "passages": False}, r"passages"),
    ):
        with pytest.raises(CheckpointMismatch, match=said):
            DocumentMemory.ingest(given, checkpoint=partial, resume=True, **settings)  # type: ignore[arg-type]
    sources[0].write_text("Another text. " * 400)
    with pytest.raises(CheckpointMismatch, match="another content"):
        DocumentMemory.ingest(sources, model=model, checkpoint=partial, resume=True)
    assert partial.read_bytes() == kept
    partial.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(DamagedMemoryFile):
        DocumentMemory.ingest(sources, model=model, checkpoint=partial, resume=True)


def test_resuming_needs_a_checkpoint_and_a_checkpoint_a_place(
    model: InfiniModel, sources: list[Path], tmp_path: Path, often: None
) -> None:
    with pytest.raises(InvalidSetting, match="checkpoint"):
        DocumentMemory.ingest(sources, model=model, resume=True)
    with pytest.raises(TargetNotWritable):
        DocumentMemory.ingest(sources, model=model, checkpoint=tmp_path / "no" / "partial")


def test_what_killed_writers_left_beside_a_checkpoint_is_removed(
    model: InfiniModel, sources: list[Path], tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "p[1]"
    assert read_until(2, sources, partial, monkeypatch, model=model)
    strays = [tmp_path / f".p[1].{digit * 16}.tmp" for digit in "0a"]
    others = [tmp_path / name for name in (".p1.0000000000000000.tmp", ".p[1].tmp", "notes.tmp")]
    for path in (*strays, *others):
        path.write_bytes(b"x")
    DocumentMemory.ingest(sources, model=model, checkpoint=partial, resume=True)
    assert not any(path.exists() for path in strays) and all(path.exists() for path in others)


# The command line


def test_an_interrupted_ingest_says_how_to_go_on_and_leaves_nothing_when_done(
    tiny_directory: Path, sources: list[Path], tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "memory"
    arguments = ["ingest", *map(str, sources), "-o", str(output), "-m", str(tiny_directory), "--segment-length", "64"]
    original = Checkpoint.keep

    def interrupted(self: Checkpoint, *args: Any) -> None:
        original(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "keep", interrupted)
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and f"is in {output}.partial; go on with --resume" in result.stderr
    assert not output.exists()
    resumed = CliRunner().invoke(main, [*arguments, "--resume"])
    assert resumed.exit_code == 0 and "tokens/s" in resumed.stdout
    first = output.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.html", "c.txt", "memory"]
    assert CliRunner().invoke(main, arguments).exit_code == 0 and output.read_bytes() == first


def ingest_silently(arguments: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(arguments)


@pytest.fixture(scope="module")
def start() -> Callable[[list[str]], Any]:
    """Starts an ingest in a process of its own, which need not import everything anew where processes can be forked."""
    import multiprocessing

    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(
            ["infinimem.model.infini_model", "transformers.models.llama.modeling_llama", "pytest"]
        )

    def begin(arguments: list[str]) -> Any:
        process = context.Process(target=ingest_silently, args=(arguments,))
        process.start()
        return process

    return begin


def kill_and_resume(
    start: Callable[[list[str]], Any], directory: Path, source: Path, model: Path, kills: int, seed: int
) -> int:
    """Kill an ingest so many times, each time after a new checkpoint and a random while; then let it end. How often it
    was killed before it was done."""
    output, generator = directory / "memory", random.Random(seed)
    partial = directory / "memory.partial"
    arguments = ["ingest", str(source), "-o", str(output), "-m", str(model), "--segment-length", "32", "--resume"]
    for number in range(kills):
        before = partial.stat().st_mtime_ns if partial.exists() else 0
        process = start(arguments)
        while process.is_alive() and (not partial.exists() or partial.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(generator.random() * 0.3)
        process.kill()
        process.join()
        if output.exists():
            return number
        read_memory_file(partial)
    process = start(arguments)
    process.join()
    assert process.exitcode == 0
    return kills


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_ingest_is_resumed_to_the_same_bytes(
    start: Callable[[list[str]], Any], tiny_directory: Path, tmp_path: Path, kills: int
) -> None:
    words = TEXT.split()
    source = tmp_path / "long.txt"
    source.write_text("\n\n".join(" ".join(random.Random(n).choices(words, k=80)) + "." for n in range(120)))
    (tmp_path / "whole").mkdir()
    kill_and_resume(start, tmp_path / "whole", source, tiny_directory, 0, 0)
    expected = (tmp_path / "whole" / "memory").read_bytes()
    killed = ingests = 0
    while killed < kills:
        directory = tmp_path / str(ingests)
        directory.mkdir()
        killed += kill_and_resume(start, directory, source, tiny_directory, min(kills - killed, 4), ingests)
        ingests += 1
        assert (directory / "memory").read_bytes() == expected
        assert [path.name for path in directory.iterdir()] == ["memory"]
    print(f"\n{killed} kills in {ingests} ingests, all of which ended with the same {len(expected):,} bytes")
