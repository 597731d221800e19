"""Short documents: the file has their tokens in place of states, and everything else is as with states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import TEXT, MakeModel
from hostile import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinimem import DocumentMemory
from infinimem.cli.main import main
from infinimem.errors import DamagedMemoryFile
from infinimem.ingest.ingestion import KEPT_SEGMENTS
from infinimem.model.infini_model import InfiniModel
from infinimem.storage.memory_file import MemoryFile, read_memory_file

NOTE = "The captain of the Heron was called Odile Marchetti. Her parrot spoke Danish. " + TEXT
LONG = NOTE + TEXT * 6


@pytest.fixture(params=[0, 10], ids=["nothing carried", "ten carried"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> InfiniModel:
    return make_model(carry=request.param)


def saved(memory: DocumentMemory, path: Path) -> MemoryFile:
    memory.save(path)
    return read_memory_file(path)


def test_a_short_document_is_kept_as_its_tokens_and_a_long_one_as_its_states(
    model: InfiniModel, tmp_path: Path
) -> None:
    short = saved(DocumentMemory.from_text(NOTE, model=model), tmp_path / "short")
    assert short.states == {} and short.segment_tokens is not None
    assert 0 < short.segment_tokens.size == short.reading["seen"] <= KEPT_SEGMENTS * model.segment_length
    long = saved(DocumentMemory.from_text(LONG, model=model), tmp_path / "long")
    assert long.states and long.segment_tokens is None and long.reading["seen"] > KEPT_SEGMENTS * model.segment_length
    assert short.memory_bytes == 4 * short.segment_tokens.size < long.memory_bytes


@pytest.mark.parametrize("rule", ["slots", "linear", "delta", "recent"])
def test_the_states_that_are_computed_again_are_the_same_to_the_last_bit(
    rule: str, make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model("Llama", rule, carry=10)
    memory = DocumentMemory.from_text(NOTE, model=model)
    memory.save(tmp_path / "m")
    loaded = DocumentMemory.load(tmp_path / "m", model=model)
    expected, again = (one.complete_memory().states() for one in (memory, loaded))
    assert expected.keys() == again.keys() and expected
    for layer, state in expected.items():
        assert all(np.array_equal(tensor.numpy(), again[layer][name].numpy()) for name, tensor in state.items())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(40, len(LONG)), cuts=st.lists(st.floats(0, 1), max_size=3))
def test_any_split_that_is_saved_and_loaded_between_gives_the_same_file(
    size: int, cuts: list[float], tokenizer: Any, tmp_path: Path
) -> None:
    # With a term head: the words of tokens that are read again must not be weighed twice.
    model = tiny_model(tokenizer, segment_length=16)
    text = LONG[:size]
    DocumentMemory.from_text(text, name="note", model=model).save(tmp_path / "whole")
    places = sorted({40, size, *(40 + int(cut * (size - 40)) for cut in cuts)})
    memory = DocumentMemory.from_text(text[:40], name="note", model=model)
    for start, end in zip(places, places[1:], strict=False):
        memory.save(tmp_path / "part")
        memory = DocumentMemory.load(tmp_path / "part", model=model)
        memory.append_text(text[start:end], name="note")
    memory.save(tmp_path / "parts")
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_tokens_are_read_again_only_for_what_needs_the_memory(
    model: InfiniModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DocumentMemory.from_text(NOTE, model=model).save(tmp_path / "m")
    read: list[int] = []
    original = InfiniModel.read_batch

    def counted(self: InfiniModel, segments: list[list[int]], *rest: Any) -> None:
        read.extend(map(len, segments))
        original(self, segments, *rest)

    monkeypatch.setattr(InfiniModel, "read_batch", counted)
    memory = DocumentMemory.load(tmp_path / "m", model=model)
    assert memory.info()["tokens"] and memory.retrieve("captain", 1)
    assert memory.ask("Who is the captain?", max_new_tokens=2).passages
    memory.save(tmp_path / "again")
    assert read == [] and (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()
    for _ in range(2):
        memory.ask("Who?", answer_from="memory", max_new_tokens=2)
    assert sum(read) == memory.info()["tokens"]


def test_inspect_says_that_the_memory_is_read_again_from_tokens(model: InfiniModel, tmp_path: Path) -> None:
    for text, where in ((NOTE, "of tokens, which are read again when they are needed"), (LONG, "layers")):
        DocumentMemory.from_text(text, model=model).save(tmp_path / "m")
        shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "m")])
        memory = next(line for line in shown.output.splitlines() if line.startswith("memory"))
        assert shown.exit_code == 0 and memory.endswith(where)


def test_without_passages_no_tokens_of_whole_segments_are_kept(model: InfiniModel, tmp_path: Path) -> None:
    file = saved(DocumentMemory.from_text(NOTE, model=model, passages=False), tmp_path / "m")
    assert file.states and file.segment_tokens is None and file.reading["seen"] > 0


def test_memories_of_short_documents_are_merged_as_before_they_were_saved(model: InfiniModel, tmp_path: Path) -> None:
    parts = [DocumentMemory.from_text(text, name=name, model=model) for name, text in (("a", NOTE), ("b", TEXT * 2))]
    for number, part in enumerate(parts):
        part.save(tmp_path / f"{number}")
    loaded = [DocumentMemory.load(tmp_path / f"{number}", model=model) for number in range(2)]
    for name, memories in (("x", parts), ("y", loaded)):
        DocumentMemory.merge(memories).save(tmp_path / name)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    # The states of a merge do not come from reading its tokens one after the other.
    assert read_memory_file(tmp_path / "x").segment_tokens is None


@pytest.mark.parametrize(
    ("tokens", "told"),
    [([512] * 20, "tokens that the model does not know"), ([5] * 200, "200 tokens in place of states")],
)
def test_tokens_that_ingestion_never_leaves_are_refused(
    tokens: list[int], told: str, model: InfiniModel, tmp_path: Path
) -> None:
    file = saved(DocumentMemory.from_text(NOTE, model=model), tmp_path / "m")
    reading = {**file.reading, "seen": len(tokens)}
    replace(file, segment_tokens=np.asarray(tokens, np.int32), reading=reading).write(tmp_path / "bad")
    with pytest.raises(DamagedMemoryFile, match=told):
        DocumentMemory.load(tmp_path / "bad", model=model)
