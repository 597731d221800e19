"""Several documents side by side: every memory is the one its document gives alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, TEXT, MakeModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinimem import DocumentMemory, open_source
from infinimem.attention.batch import stack, unstack
from infinimem.errors import EmptySource, InvalidSetting, SourceError, SourceNotFound, UnsupportedSource
from infinimem.model.infini_model import InfiniModel
from infinimem.storage.memory_file import MemoryFile

WORDS = TEXT.split()
Write = Callable[..., list[Path]]


def words(count: int, start: int) -> str:
    """Words of the sample text, from another one on for each document, sentence after sentence."""
    return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(count))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes texts of so many words, a file each."""

    def files(*counts: int) -> list[Path]:
        paths = [tmp_path / f"{index}.txt" for index in range(len(counts))]
        for index, (path, count) in enumerate(zip(paths, counts, strict=True)):
            path.write_text(words(count, 7 * index))
        return paths

    return files


def file_of(memory: DocumentMemory) -> MemoryFile:
    return memory._open().to_file()


def read_alike(model: InfiniModel, paths: list[Path], batch: int, tolerance: float = 1e-4) -> None:
    """Reads files side by side and alone, and compares all that a memory holds."""
    many = {
        memory.info()["sources"][0]["name"]: memory
        for memory in DocumentMemory.ingest_many(paths, batch=batch, model=model)
    }
    assert sorted(many) == sorted(path.name for path in paths)
    for path in paths:
        single = DocumentMemory.ingest(path, model=model)
        one, alone = file_of(many[path.name]), file_of(single)
        assert one.sources == alone.sources
        assert one.reading == alone.reading
        assert np.array_equal(one.tail, alone.tail)
        assert np.array_equal(one.passages, alone.passages)
        # From the caches: files of short documents have no states.
        states, expected = (memory._open().cache.states() for memory in (many[path.name], single))
        assert states.keys() == expected.keys()
        for layer, state in expected.items():
            assert {n: t.shape for n, t in states[layer].items()} == {n: t.shape for n, t in state.items()}
            for name, tensor in state.items():
                assert torch.allclose(states[layer][name], tensor, atol=tolerance, rtol=tolerance), (layer, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_side_by_side_what_it_reads_alone(family: str, make_model: MakeModel, write: Write) -> None:
    model = make_model(family, carry=10, packing="float32", dtype=torch.float64)
    read_alike(model, write(90, 3, 41, 200), batch=3)


@pytest.mark.parametrize("carry", [0, 10])
@pytest.mark.parametrize("rule", ["slots", "linear", "delta", "recent"])
def test_every_rule_reads_side_by_side_what_it_reads_alone(
    rule: str, carry: int, make_model: MakeModel, write: Write
) -> None:
    packing = {} if rule in ("linear", "delta") else {"packing": "float32"}
    model = make_model("Llama", rule, carry=carry, dtype=torch.float64, **packing)
    read_alike(model, write(90, 3, 41, 8, 200, 16), batch=4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=7), batch=st.integers(1, 8))
def test_any_lengths_in_any_batch_give_the_memories_of_reading_alone(
    counts: list[int], batch: int, make_model: MakeModel, write: Write
) -> None:
    read_alike(make_model(carry=10, packing="float32", dtype=torch.float64), write(*counts), batch)


def test_a_file_of_each_kind_is_read_in_as_few_forwards_as_the_batch_allows(
    make_model: MakeModel, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = make_model(), []
    read = InfiniModel.read_batch

    def counted(self: InfiniModel, segments: list[list[int]], *rest: object) -> None:
        rows.append(len(segments))
        read(self, segments, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(InfiniModel, "read_batch", counted)
    list(DocumentMemory.ingest_many(write(*[2] * 12), batch=4, model=model))
    assert rows == [4, 4, 4]
    rows.clear()
    list(DocumentMemory.ingest_many(write(*[2] * 12), model=model))
    assert rows == [1] * 12, "on a CPU, where no batch is asked for"


@pytest.mark.parametrize("rule", ["slots", "linear"])
def test_memories_come_back_from_a_batch_bit_by_bit(rule: str, make_model: MakeModel) -> None:
    model = make_model("Llama", rule, carry=10)
    caches = []
    for length in (0, 5, 12, 30, 64):
        caches.append(model.new_cache())
        model.read_tokens(list(range(10, 10 + length)), caches[-1])
    before = [cache.clone() for cache in caches]
    unstack(stack(caches), caches)
    for old, new in zip(before, caches, strict=True):
        assert (old.seen is None) == (new.seen is None or not int(new.seen))
        states, again = old.states(), new.states()
        assert states.keys() == again.keys()
        for layer in states:
            assert all(torch.equal(tensor, again[layer][name]) for name, tensor in states[layer].items())


def test_memories_in_the_middle_of_a_segment_are_not_put_side_by_side(make_model: MakeModel) -> None:
    model = make_model()
    caches = [model.new_cache(), model.new_cache()]
    model.model(input_ids=torch.tensor([[5, 6]]), past_key_values=caches[1])
    with pytest.raises(InvalidSetting, match="between two segments"):
        stack(caches)


def test_memories_of_a_batch_answer_and_grow_like_others(make_model: MakeModel, write: Write) -> None:
    model, paths = make_model(carry=10), write(50, 70)
    many = list(DocumentMemory.ingest_many(paths, model=model))
    for memory in many:
        path = next(path for path in paths if path.name == memory.info()["sources"][0]["name"])
        alone = DocumentMemory.ingest(path, model=model)
        assert memory.ask("Who counted?", answer_from="memory", max_new_tokens=8).text == (
            alone.ask("Who counted?", answer_from="memory", max_new_tokens=8).text
        )
        memory.append_text("More ships came.", name="more")
        assert [source["name"] for source in memory.info()["sources"]] == [path.name, "more"]


def test_what_cannot_be_read_is_reported_and_the_others_are_read(
    make_model: MakeModel, write: Write, tmp_path: Path
) -> None:
    paths = write(20, 30)
    binary, empty = tmp_path / "binary.txt", tmp_path / "empty.html"
    binary.write_bytes(bytes(range(256)) * 20)
    empty.write_text("<p></p>")
    failed: dict[str, SourceError] = {}
    many = DocumentMemory.ingest_many(
        [*paths, binary, empty], model=make_model(), on_error=lambda path, error: failed.setdefault(path.name, error)
    )
    assert sorted(memory.info()["sources"][0]["name"] for memory in many) == ["0.txt", "1.txt"]
    assert isinstance(failed.pop("binary.txt"), UnsupportedSource)
    assert isinstance(failed.pop("empty.html"), EmptySource) and not failed


def test_parsers_end_with_the_reading_whatever_ends_it(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: list[Any]
) -> None:
    pages = [tmp_path / f"{index}.html" for index in range(3)]
    for page in pages:
        page.write_text("".join(f"<p>{words(200, index)}</p>" for index in range(60)))
    model = make_model()

    def refuse(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(InfiniModel, "read_batch", refuse)
    with pytest.raises(KeyboardInterrupt) as kept:
        list(DocumentMemory.ingest_many(pages, model=model, batch=3))
    assert kept.value.__traceback__ is not None
    assert len(children) == 3 and not any(child.is_alive for child in children)


def test_a_document_that_is_named_twice_gives_two_memories_but_not_one_file(
    make_model: MakeModel, write: Write, tmp_path: Path
) -> None:
    model, (path,) = make_model(segment_length=32), write(100)
    source = open_source(path)
    one, other = DocumentMemory.ingest_many([source, source], model=model, batch=2)
    one.save(tmp_path / "one")
    other.save(tmp_path / "other")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    with pytest.raises(InvalidSetting, match="have the same name"):
        DocumentMemory.ingest_many([source, source], model=model, output=tmp_path / "memories")


def test_a_short_document_does_not_wait_for_a_long_one(make_model: MakeModel, write: Write) -> None:
    done = DocumentMemory.ingest_many(write(2, 4000), batch=2, model=make_model())
    assert next(done).info()["sources"][0]["name"] == "0.txt"


def test_without_on_error_the_first_error_is_raised(make_model: MakeModel, write: Write, tmp_path: Path) -> None:
    empty = tmp_path / "empty.html"
    empty.write_text("<p></p>")
    with pytest.raises(SourceError, match=r"empty\.html"):
        list(DocumentMemory.ingest_many([*write(20), empty], model=make_model()))


def test_what_is_wrong_with_the_arguments_is_said_at_once(make_model: MakeModel, write: Write, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="batch is 0"):
        DocumentMemory.ingest_many(write(5), batch=0, model=make_model())
    with pytest.raises(SourceNotFound):
        DocumentMemory.ingest_many(tmp_path / "missing.txt", model=make_model())


def test_the_default_model_reads_side_by_side_what_it_reads_alone(embedded: InfiniModel, write: Write) -> None:
    paths = write(30, 700, 60)
    many = {m.info()["sources"][0]["name"]: m for m in DocumentMemory.ingest_many(paths, model=embedded)}
    for path in paths:
        memory, alone = many[path.name], DocumentMemory.ingest(path, model=embedded)
        assert memory.passages == alone.passages and memory.info()["tokens"] == alone.info()["tokens"]
        for one, other in zip(memory.term_weights() or [], alone.term_weights() or [], strict=True):
            # A weight is a byte, 32 steps to 1; rounding in bfloat16 moves few of them, and by little.
            assert np.abs(np.frombuffer(one, np.uint8).astype(int) - np.frombuffer(other, np.uint8)).max() <= 8
