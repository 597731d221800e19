"""The memory file: what goes in comes out, and nothing else is accepted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from safetensors import safe_open
from safetensors.numpy import save_file

from infinimem import DocumentMemory
from infinimem.errors import (
    DamagedMemoryFile,
    FileInUse,
    InfinimemError,
    MemoryFileError,
    MemoryFileNotFound,
    NotAMemoryFile,
    NotReplaced,
    TargetNotWritable,
    UnsupportedVersion,
)
from infinimem.model.identity import differences
from infinimem.storage import memory_file
from infinimem.storage.files import check_writable, locked
from infinimem.storage.memory_file import MemoryFile, read_memory_file
from infinimem.storage.passage_table import pack, unpack
from infinimem.text.passages import Passage

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = Path(__file__).parents[1] / "docs" / "memory-file.schema.json"
if TYPE_CHECKING:
    from conftest import MakeModel

CUTTER = {"source": "book", "page": 1, "title": None, "offset": 0, "pending": "", "label": None}
SOURCE = {
    "name": "book é.txt",
    "kind": "text",
    "sha256": "00",
    "pages": 2,
    "characters": 10,
    "skipped": [],
    "about": {"title": "Harbour"},
    "left_out": {"page numbers": 2},
    "doubtful": [{"page": 2, "reason": "its letters stand apart"}],
    "recognized": [{"page": 1, "percent": 97}],
}


def sample() -> MemoryFile:
    generator = np.random.default_rng(0)
    states = {
        i: {
            "keys": generator.normal(size=(2, 5, 4)).astype(np.float32),
            "values": generator.normal(size=(2, 5, 4)).astype(np.float32),
            "counts": np.ones((2, 5), np.float32),
        }
        for i in (0, 3)
    }
    return MemoryFile(
        model="tiny",
        identity={
            "rule": "slots",
            "rule_settings": {"slots": 5},
            "segment_length": 16,
            "memory_heads": {"0": [0, 1], "3": [1]},
            "carry": 0,
        },
        sources=[SOURCE],
        reading={
            "tokens": 12,
            "seen": 10,
            "pending_text": "tail ☂",
            "cutter": CUTTER,
            "addresses": {
                "head": "h",
                "done": 1,
                "sizes": [1],
                "starts": [],
                "ends": [5],
                "weights": [7],
                "tail": [8, 9],
            },
        },
        states=states,
        tail=np.array([3, 4], np.int32),
        passages=pack([Passage("a", "book", 1, 0, 1)]),
        term_weights=np.array([32], np.uint8),
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "memory.safetensors"
    sample().write(path)
    return path


def test_what_is_written_is_read_back_bit_by_bit(written: Path) -> None:
    expected, got = sample(), read_memory_file(written)
    assert (got.model, got.identity, got.sources, got.reading) == (
        expected.model,
        expected.identity,
        expected.sources,
        expected.reading,
    )
    assert list(got.states) == [0, 3] and got.fingerprint == expected.fingerprint
    for index, state in expected.states.items():
        assert all(np.array_equal(got.states[index][name], tensor) for name, tensor in state.items())
    assert np.array_equal(got.tail, expected.tail) and np.array_equal(got.passages, expected.passages)


def test_equal_memories_make_equal_bytes(written: Path, tmp_path: Path) -> None:
    sample().write(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == written.read_bytes()


def test_the_file_is_plain_safetensors(written: Path) -> None:
    with safe_open(written, framework="np") as file:
        assert set(file.keys()) == {
            *(f"layers.{i}.{name}" for i in (0, 3) for name in ("keys", "values", "counts")),
            "tail.tokens",
            "passages.zlib",
            "passages.addresses",
        }
        assert set(file.metadata()) == {f"infinimem.{key}" for key in memory_file.LAYOUT["metadata"]}


def test_the_layout_of_a_version_is_frozen() -> None:
    assert {**memory_file.OLDER, memory_file.FORMAT: memory_file.LAYOUT_HASH} == {
        1: "f7d56d9fb5ca99cc",
        2: "cbbac0acb6313fa5",
        3: "09dadc90982035b4",
        4: "65a23ec9b8ef5a79",
        5: "dc69d3d781d6d465",
        6: "35bc86782f2a0abf",
    }


def test_every_older_version_has_a_golden_file_that_is_read() -> None:
    assert sorted(memory_file.OLDER) == list(range(1, memory_file.FORMAT)) and len(memory_file.MIGRATIONS) == len(
        memory_file.OLDER
    )
    for version in memory_file.OLDER:
        assert read_memory_file(GOLDEN / f"memory-{version}.safetensors").format == version


def test_a_file_of_version_3_is_read_as_one_of_which_nothing_was_left_out() -> None:
    file = read_memory_file(GOLDEN / "memory-3.safetensors")
    assert [source["skipped"] for source in file.sources] == [[]]
    assert (file.fingerprint, file.term_weights.tolist()) == (sample().fingerprint, [32])


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_the_header_fits_its_schema(version: int, written: Path) -> None:
    path = written if version == 6 else GOLDEN / f"memory-{version}.safetensors"
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    with memory_file._opened(path) as file:
        header = memory_file._parsed(path, file.metadata())
    assert list(validator.iter_errors(header)) == []
    for key in ("sources", "reading", "identity"):
        assert list(validator.iter_errors({**header, key: 3}))


def test_a_file_of_version_2_is_read_as_one_whose_words_were_not_weighed() -> None:
    file = read_memory_file(GOLDEN / "memory-2.safetensors")
    assert file.term_weights is None and file.reading["addresses"] is None and file.identity["carry"] == 2
    assert file.states[3]["carried_keys"].shape == (2, 2, 4)
    assert file.passages is not None and [passage.text for passage in unpack(file.passages, [("book", "text", 1)])] == [
        "a"
    ]


def test_a_file_of_version_5_is_read_as_one_that_knows_nothing_about_its_sources() -> None:
    file = read_memory_file(GOLDEN / "memory-5.safetensors")
    assert [(source["about"], source["left_out"], source["doubtful"]) for source in file.sources] == [({}, {}, [])]
    assert file.reading["cutter"]["label"] is None and file.fingerprint == sample().fingerprint


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_what_was_read_by_an_older_version_is_asked_and_grows(
    version: int, make_model: MakeModel, tmp_path: Path
) -> None:
    path = GOLDEN / f"read-{version}.safetensors"
    file = read_memory_file(path)
    assert file.format == version and (file.segment_tokens is not None or file.states[1]["carried_keys"].size)
    memory = DocumentMemory.load(path, model=make_model(slots=8, memory_heads=[1], carry=2))
    assert [passage.source for passage in memory.retrieve("ships on Friday")] == ["more.txt", "harbour.txt"]
    assert memory.ask("How many ships?", answer_from="memory", max_new_tokens=3).text is not None
    memory.append_text(" The bell rang.", name="more.txt")
    memory.save(tmp_path / "memory.safetensors")
    assert DocumentMemory.load(tmp_path / "memory.safetensors").passages[-1].text.endswith("The bell rang.")


def test_a_file_of_version_1_is_read_as_one_in_which_nothing_is_carried_over() -> None:
    file = read_memory_file(GOLDEN / "memory-1.safetensors")
    assert file.identity["carry"] == 0 and file.reading["tokens"] == 75
    assert {name: tensor.shape for name, tensor in file.states[1].items()} == {
        "keys": (2, 8, 16),
        "keys_scale": (2, 8),
        "values": (2, 8, 16),
        "values_scale": (2, 8),
        "counts": (2, 8),
    }
    memory = DocumentMemory.load(GOLDEN / "memory-1.safetensors")
    assert [passage.source for passage in memory.retrieve("How many ships passed on Monday?")] == ["harbour.txt"]


def test_a_model_that_carries_nothing_goes_on_with_a_file_of_version_1(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(slots=8, memory_heads=[1])
    memory = DocumentMemory.load(GOLDEN / "memory-1.safetensors", model=model)
    memory.append_text(" The bell rang.", name="harbour.txt")
    memory.save(tmp_path / "memory.safetensors")
    assert read_memory_file(tmp_path / "memory.safetensors").identity == model.identity()


def test_a_file_of_version_4_is_read_as_one_that_has_its_states() -> None:
    file = read_memory_file(GOLDEN / "memory-4.safetensors")
    assert file.segment_tokens is None and file.fingerprint == sample().fingerprint


def short_sample() -> MemoryFile:
    """With tokens of whole segments in place of states."""
    return replace(sample(), states={}, segment_tokens=np.arange(10, dtype=np.int32))


def test_tokens_in_place_of_states_are_read_back(tmp_path: Path) -> None:
    short_sample().write(tmp_path / "short")
    got = read_memory_file(tmp_path / "short")
    assert got.segment_tokens is not None and got.segment_tokens.tolist() == list(range(10))
    assert got.states == {} and got.memory_bytes == 10 * 4 and got.fingerprint == short_sample().fingerprint


@pytest.mark.parametrize(
    "changes", [{"states": sample().states}, {"segment_tokens": np.arange(9, dtype=np.int32)}], ids=["both", "too few"]
)
def test_tokens_that_do_not_stand_for_all_states_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    replace(short_sample(), **changes).write(tmp_path / "bad")
    with pytest.raises(DamagedMemoryFile, match="tokens of whole segments that do not fit"):
        read_memory_file(tmp_path / "bad")


def test_every_truncation_is_refused(written: Path, tmp_path: Path) -> None:
    data, cut = written.read_bytes(), tmp_path / "cut"
    for length in [*range(300), *range(300, len(data), 101)]:
        cut.write_bytes(data[:length])
        with pytest.raises(MemoryFileError):
            read_memory_file(cut)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_refused(written: Path, place: float, bit: int) -> None:
    data = bytearray(written.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    flipped = written.with_name("flipped")
    flipped.write_bytes(data)
    with pytest.raises(MemoryFileError):
        read_memory_file(flipped)


def test_bytes_after_the_end_are_refused(written: Path) -> None:
    with written.open("ab") as file:
        file.write(b"more")
    with pytest.raises(MemoryFileError):
        read_memory_file(written)


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.txt", b"My only copy."), ("notes", b"%PDF-1.7"), ("weights.safetensors", None), ("weights", None)],
)
def test_what_is_no_memory_file_is_not_replaced(
    written: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    target = tmp_path / name
    if content is None:
        save_file({"weight": np.zeros(3, np.float32)}, target)
    else:
        target.write_bytes(content)
    before = target.read_bytes()
    with pytest.raises(NotReplaced, match=r"is there and is no memory file; name another one, or delete it"):
        read_memory_file(written).write(target)
    assert target.read_bytes() == before


def test_memory_files_whole_or_damaged_and_empty_files_are_replaced(written: Path, tmp_path: Path) -> None:
    data = written.read_bytes()
    for name, content in (("whole", data), ("empty", b""), ("cut.safetensors", data[:999]), ("a.partial", b"damaged")):
        (tmp_path / name).write_bytes(content)
        read_memory_file(written).write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == data


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(MemoryFileNotFound, match=r"no memory file is at .*infinimem ingest"):
        read_memory_file(tmp_path / "none")


@pytest.mark.parametrize("content", [b"", b"text", b"%PDF-1.7", b"\x00" * 100, b"\xff" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(NotAMemoryFile):
        read_memory_file(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "weights")
    with pytest.raises(NotAMemoryFile, match="did not write"):
        read_memory_file(tmp_path / "weights")


def rewrite(path: Path, change: dict[str, str], tensors: dict[str, np.ndarray] | None = None) -> None:
    """Write the file again with other metadata and tensors, its checksums made to fit."""
    with safe_open(path, framework="np") as file:
        texts = {key.removeprefix("infinimem."): value for key, value in file.metadata().items()}
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    kept.update(tensors or {})
    texts.update(change)
    texts.pop("metadata_sha256")
    texts["tensors_sha256"] = json.dumps(memory_file._hash_tensors(kept))
    texts["metadata_sha256"] = json.dumps(memory_file._hash_metadata(texts))
    save_file(kept, path, {f"infinimem.{key}": value for key, value in texts.items()})


@pytest.mark.parametrize("change", [{"format": "1"}, {"format": "7"}, {"format": '"6"'}, {"layout": '"0"'}])
def test_another_version_is_refused_even_with_right_checksums(written: Path, change: dict[str, str]) -> None:
    rewrite(written, change)
    with pytest.raises(UnsupportedVersion, match="update infinimem"):
        read_memory_file(written)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("layers.0.keys", np.full((2, 5, 4), np.nan, np.float32)),
        ("layers.0.values", np.full((2, 5, 4), np.inf, np.float32)),
        ("layers.0.counts", np.full((2, 5), -1, np.float32)),
        ("layers.0.keys", np.zeros((2, 5, 4), np.float64)),
        ("layers.0.extra", np.zeros(3, np.float32)),
        ("tail.tokens", np.zeros(3, np.int64)),
        ("__pickle__", np.zeros(3, np.uint8)),
    ],
)
def test_impossible_tensors_are_refused_even_with_right_checksums(written: Path, name: str, tensor: np.ndarray) -> None:
    rewrite(written, {}, {name: tensor})
    with pytest.raises(DamagedMemoryFile):
        read_memory_file(written)


def test_metadata_that_is_not_json_is_refused(written: Path) -> None:
    rewrite(written, {"reading": "{broken"})
    with pytest.raises(DamagedMemoryFile, match="not JSON"):
        read_memory_file(written)


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    written: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = written.read_bytes()

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, fail)
    with pytest.raises(TargetNotWritable, match="No space left"):
        sample().write(written)
    assert written.read_bytes() == before and os.listdir(written.parent) == [written.name]


@pytest.mark.parametrize("target", ["missing/memory", "."])
def test_an_impossible_target_is_refused_before_and_after_reading(tmp_path: Path, target: str) -> None:
    with pytest.raises(TargetNotWritable):
        check_writable(tmp_path / target)
    with pytest.raises(TargetNotWritable):
        sample().write(tmp_path / target)
    assert os.listdir(tmp_path) == []


def test_checking_a_target_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "memory")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no mode bits")
def test_mode_bits_follow_the_umask_and_then_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    old = os.umask(0o027)
    try:
        sample().write(path)
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o600)
        sample().write(path)
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its input ends."""
    code = (
        "import sys; from infinimem.storage.files import locked\n"
        f"with locked({str(path)!r}): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    return other


def test_a_second_writer_is_refused_until_the_first_is_done_and_no_lock_is_left(written: Path) -> None:
    with hold(written) as other:
        with pytest.raises(FileInUse, match="being written by another process"), locked(written):
            pass
        read_memory_file(written)
        assert other.stdin is not None
        other.stdin.close()
    with locked(written), locked(written):
        assert len(os.listdir(written.parent)) == 2
    assert os.listdir(written.parent) == [written.name]


def test_a_writer_that_is_killed_leaves_no_lock(written: Path) -> None:
    with hold(written) as other:
        other.kill()
    with locked(written):
        pass
    assert os.listdir(written.parent) == [written.name]


def test_many_writers_write_one_after_the_other(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from infinimem.storage.files import locked\n"
        "place = Path(sys.argv[1])\n"
        "for _ in range(20):\n"
        "    with locked(place, wait=60): place.write_text(str(int(place.read_text()) + 1))\n"
    )
    place = tmp_path / "count"
    place.write_text("0")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(place)]) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert place.read_text() == "80"


def test_where_no_lock_can_be_made_nothing_can_be_written(tmp_path: Path) -> None:
    for target in (tmp_path / "missing" / "memory", tmp_path):
        with pytest.raises(TargetNotWritable), locked(target):
            pass
    assert os.listdir(tmp_path) == []


def test_differences_name_the_fields_down_to_the_leaf() -> None:
    found = differences({"a": 1, "rule": {"slots": 3, "x": 1}}, {"a": 1, "rule": {"slots": 4, "x": 1}, "b": "y"})
    assert found == ["b: null in the file, y here", "rule.slots: 3 in the file, 4 here"]


def test_reading_a_memory_file_imports_no_torch(written: Path) -> None:
    code = (
        "import sys; from infinimem.storage.memory_file import read_memory_file; "
        f"read_memory_file({str(written)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_error_of_the_file_is_an_infinimem_error() -> None:
    assert issubclass(MemoryFileError, InfinimemError)
