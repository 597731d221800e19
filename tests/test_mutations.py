"""Memory files with damage: each is refused, or it is not damage at all and the content is the same to the last bit.

- mutations: every kind of harm at every kind of place of a file, stratified and seeded
- fuzzing: bytes at random, and content at random with checksums made to fit (INFINIMEM_FUZZ_CASES of each)
"""

from __future__ import annotations

import copy
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TEXT
from hostile import Forged, tiny_memory, tiny_model
from hostile import unframed as parts_of

from infinimem import DocumentMemory
from infinimem.cli.report import describe
from infinimem.errors import MemoryFileError
from infinimem.storage.memory_file import MemoryFile, read_memory_file

CASES = int(os.environ.get("INFINIMEM_FUZZ_CASES", "1000000"))
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A file that is written very often: in memory where the system has such a directory."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as directory:
        yield Path(directory) / "memory.safetensors"


@pytest.fixture(scope="module")
def sound(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With passages and addresses, closed and unfinished, slots, carried tokens, and an unfinished segment."""
    path = tmp_path_factory.mktemp("sound") / "memory.safetensors"
    tiny_memory(tiny_model(tokenizer)).save(path)
    return path


@pytest.fixture(scope="module")
def smallest(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Forged:
    """As little as a file can have of everything."""
    path = tmp_path_factory.mktemp("smallest") / "memory.safetensors"
    DocumentMemory.from_text(TEXT[:150], name="a", model=tiny_model(tokenizer, num_hidden_layers=2)).save(path)
    return Forged.of(path)


def content(file: MemoryFile) -> dict[str, Any]:
    """Everything that a memory file says, comparable."""

    def exact(tensor: np.ndarray | None) -> Any:
        return None if tensor is None else (tensor.dtype.str, tensor.shape, tensor.tobytes())

    return {
        "states": {i: {name: exact(t) for name, t in state.items()} for i, state in file.states.items()},
        "tail": exact(file.tail),
        "passages": exact(file.passages),
        "addresses": exact(file.term_weights),
        "sources": file.sources,
        "reading": file.reading,
        "identity": file.identity,
        "model": file.model,
        "adapter": file.adapter,
        "format": file.format,
        "fingerprint": file.fingerprint,
    }


# Mutations


def regions(data: bytes) -> dict[str, tuple[int, int]]:
    """Where each kind of byte stands: the length, the header's parts, its padding, every tensor, the end."""
    header, _ = parts_of(data)
    begin = 8 + int.from_bytes(data[:8], "little")
    text = data[8:begin].rstrip(b" ")
    opening = text.index(b'"__metadata__":{')
    metadata = json.dumps(header["__metadata__"], ensure_ascii=False, separators=(",", ":")).encode()
    assert metadata in text
    found = {
        "length": (0, 8),
        "metadata": (8 + opening, 8 + opening + len(metadata) + 15),
        "tensors of the header": (8 + opening + len(metadata) + 15, 8 + len(text)),
        "padding": (8 + len(text), begin),
        "end": (len(data) - 2, len(data)),
    }
    for name, one in header.items():
        if name != "__metadata__" and one["data_offsets"][0] < one["data_offsets"][1]:
            found[name] = (begin + one["data_offsets"][0], begin + one["data_offsets"][1])
    assert opening == 1 and all(start < end <= len(data) for start, end in found.values())
    return found


Mutation = Callable[[bytearray, int, random.Random], None]


def flip_a_bit(data: bytearray, at: int, chance: random.Random) -> None:
    data[at] ^= 1 << chance.randrange(8)


def overwrite(data: bytearray, at: int, chance: random.Random) -> None:
    size = chance.choice((1, 1, 2, 4, 8, 64))
    data[at : at + size] = chance.randbytes(len(data[at : at + size]))


def write_blanks(data: bytearray, at: int, chance: random.Random) -> None:
    data[at] = chance.choice(b" \t\n\r")


def write_a_character_of_json(data: bytearray, at: int, chance: random.Random) -> None:
    data[at] = chance.choice(b'0123456789-+.eE"\\[]{},:truefalsn')


def insert(data: bytearray, at: int, chance: random.Random) -> None:
    data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 8, 64)))


def repeat(data: bytearray, at: int, chance: random.Random) -> None:
    data[at:at] = data[at : at + chance.choice((1, 4, 16, 256))]


def delete(data: bytearray, at: int, chance: random.Random) -> None:
    del data[at : at + chance.choice((1, 2, 4, 8, 64))]


def swap(data: bytearray, at: int, chance: random.Random) -> None:
    size, other = chance.choice((1, 2, 4, 16, 64)), chance.randrange(len(data))
    first, second = sorted((at, other))
    size = min(size, second - first, len(data) - second)
    one, two = data[first : first + size], data[second : second + size]
    data[first : first + size], data[second : second + size] = two, one


def cut(data: bytearray, at: int, chance: random.Random) -> None:
    del data[at:]


MUTATIONS: tuple[Mutation, ...] = (
    flip_a_bit,
    overwrite,
    write_blanks,
    write_a_character_of_json,
    insert,
    repeat,
    delete,
    swap,
    cut,
)


def mutate(sound: Path, place: Path, count: int) -> Counter[tuple[str, str, str]]:
    """So many mutations; how often what came of (region, mutation). Fails on anything but a refusal or the same."""
    data = sound.read_bytes()
    where, expected = regions(data), content(read_memory_file(sound))
    passages = DocumentMemory.load(sound).passages
    strata = [(region, mutation) for region in where for mutation in MUTATIONS]
    came: Counter[tuple[str, str, str]] = Counter()
    for number in range(count):
        region, mutation = strata[number % len(strata)]
        chance = random.Random(number)
        harmed = bytearray(data)
        mutation(harmed, chance.randrange(*where[region]), chance)
        kind = "the same bytes"
        if harmed != data:
            place.write_bytes(harmed)
            try:
                found = read_memory_file(place)
            except MemoryFileError as error:
                kind = type(error).__name__
            else:
                kind = "the same content"
                assert content(found) == expected, (number, region, mutation.__name__)
                assert DocumentMemory.load(place).passages == passages
        came[region, mutation.__name__, kind] += 1
    return came


def check_coverage(came: Counter[tuple[str, str, str]], sound: Path) -> None:
    strata: Counter[tuple[str, str]] = Counter()
    kinds: Counter[str] = Counter()
    for (region, mutation, kind), times in came.items():
        kinds[kind] += times
        if kind != "the same bytes":
            strata[region, mutation] += times
    where = regions(sound.read_bytes())
    for region in where:
        for mutation in MUTATIONS:
            # Blanks on padding are the padding, more often than not.
            assert strata[region, mutation.__name__] >= 2, (region, mutation.__name__)
    assert kinds["the same content"] and kinds["NotAMemoryFile"] and kinds["DamagedMemoryFile"], kinds
    # What is no damage is white space in the header, and nothing else.
    inert = {region for region, _, kind in came if kind == "the same content"}
    assert inert <= {"padding", "metadata", "tensors of the header"}, inert


def test_three_thousand_mutations_are_refused_or_change_nothing(sound: Path, place: Path) -> None:
    check_coverage(mutate(sound, place, 3_000), sound)


@pytest.mark.slow
def test_fifty_thousand_mutations_are_refused_or_change_nothing(sound: Path, place: Path) -> None:
    came = mutate(sound, place, 50_000)
    check_coverage(came, sound)
    kinds: Counter[str] = Counter()
    for (_, _, kind), times in came.items():
        kinds[kind] += times
    print(f"\n{sum(kinds.values()):,} mutations: {dict(kinds)}")


def test_every_single_byte_of_a_header_matters_or_is_blank(sound: Path, place: Path) -> None:
    data = sound.read_bytes()
    where, expected = regions(data), content(read_memory_file(sound))
    begin, end = where["length"][0], where["padding"][0]
    for at in range(begin, end):
        harmed = bytearray(data)
        harmed[at] ^= 1
        place.write_bytes(harmed)
        with pytest.raises(MemoryFileError):
            content(read_memory_file(place))
    assert content(read_memory_file(sound)) == expected


# Fuzzing


class Outcomes(Counter[str]):
    """What came of the cases."""

    def told(self, memory: int) -> str:
        counts = ", ".join(f"{kind} {times:,}" for kind, times in self.most_common())
        return f"{sum(self.values()):,} cases: {counts}; resident memory grew by {memory / MEGABYTE:.0f} MB"


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def look_at(path: Path) -> str:
    """What comes of a file: the error that refuses it, or that all that needs no model can be done with it."""
    try:
        memory = DocumentMemory.load(path)
    except MemoryFileError as error:
        return type(error).__name__
    info = memory.info()
    assert info["passages"] == len(memory.passages)
    json.dumps(info, allow_nan=False).encode()
    json.dumps(describe(path), ensure_ascii=False, allow_nan=False).encode()
    return "loaded"


def fuzz(place: Path, cases: int, make: Callable[[random.Random], bytes]) -> tuple[Outcomes, int]:
    """Outcomes, and by how much resident memory grew after the first tenth."""
    came, before = Outcomes(), 0
    for number in range(cases):
        if number == cases // 10:
            before = resident()
        place.write_bytes(make(random.Random(number)))
        try:
            came[look_at(place)] += 1
        except BaseException as error:
            raise AssertionError(f"case {number} ended in {type(error).__name__}: {error}") from error
    return came, resident() - before


def random_bytes(smallest: Forged) -> Callable[[random.Random], bytes]:
    """Files that begin as sound ones and are harmed in up to eight places, whatever the checksums say."""
    sound = smallest.bytes()

    def make(chance: random.Random) -> bytes:
        data = bytearray(sound)
        for _ in range(chance.randint(1, 8)):
            if data:
                chance.choice(MUTATIONS)(data, chance.randrange(len(data)), chance)
        return bytes(data)

    return make


NUMBERS = (0, 1, -1, 2, 31, 32, 33, 255, 256, 1 << 15, 1 << 31, 1 << 53, (1 << 53) - 1, 1 << 63, 10**30, 10**400)
STRINGS = (
    "",
    "a",
    "\0",
    "\x1b[31m",
    "\u202e",
    "é",
    "\N{GRINNING FACE}",
    "a" * 5000,
    "1",
    "-1",
    "NaN",
    "../..",
    "layers.1",
)
FLOATS = (0.0, -0.0, 1.5, -1.0, 1e-45, 1e12, 1e13, 3e38, float("nan"), float("inf"), -float("inf"))


def some_value(chance: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say, and some that only Python's can."""
    kind = chance.randrange(9 if depth < 3 else 6)
    if kind >= 6:
        size = chance.randrange(4)
        values = [some_value(chance, depth + 1) for _ in range(size)]
        return values if kind == 6 else {chance.choice(STRINGS): value for value in values}
    return chance.choice((chance.choice(NUMBERS), chance.choice(STRINGS), chance.choice(FLOATS), None, True, False))


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all places in a tree of JSON."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from walk(child, (*path, key))


def change_metadata(forged: Forged, chance: random.Random) -> None:
    path = chance.choice(list(walk(forged.metadata)))
    parent: Any = forged.metadata
    for key in path[:-1]:
        parent = parent[key]
    kind = chance.randrange(5)
    if kind == 0 and len(path) > 1:
        del parent[path[-1]]
    elif kind == 1 and isinstance(parent, dict):
        parent[chance.choice(STRINGS)] = some_value(chance)
    elif kind == 2 and isinstance(parent[path[-1]], (int, float)):
        parent[path[-1]] += chance.choice((-2, -1, 1, 2, 1000))
    elif kind == 3:
        parent[path[-1]] = copy.deepcopy(parent[chance.choice(list(parent)) if isinstance(parent, dict) else 0])
    else:
        parent[path[-1]] = some_value(chance)


def change_text(forged: Forged, chance: random.Random) -> None:
    """The JSON of one field as no writer would write it."""
    key = chance.choice([key for key in forged.metadata if key not in ("format", "layout")])
    text = json.dumps(forged.metadata[key])
    at, size = chance.randrange(len(text)), chance.choice((0, 1, 1, 4))
    piece = chance.choice(
        ('"', "\\", "\\ud800", "[", "]", "{", "}", ",", ":", "NaN", "1e999", "true", "0", "-", " ", "\n")
    )
    forged.raw[key] = text[:at] + piece * chance.choice((1, 1, 2, 500)) + text[at + size :]


def change_tensor(forged: Forged, chance: random.Random) -> None:
    if not forged.tensors:
        return
    name = chance.choice(sorted(forged.tensors))
    tensor = forged.tensors[name]
    kind = chance.randrange(8)
    if kind == 0:
        del forged.tensors[name]
    elif kind == 1 and tensor.size:
        tensor = tensor.copy()
        # Some are too large for float16.
        with np.errstate(all="ignore"):
            tensor.flat[chance.randrange(tensor.size)] = (
                chance.choice(FLOATS)
                if tensor.dtype.kind == "f"
                else chance.randint(np.iinfo(tensor.dtype).min, np.iinfo(tensor.dtype).max)
            )
        forged.tensors[name] = tensor
    elif kind == 2:
        shape = [chance.choice((0, 1, 2, 3, 5, 16, 17)) for _ in range(chance.randrange(5))]
        forged.tensors[name] = np.ones(shape, tensor.dtype)
    elif kind == 3:
        with np.errstate(all="ignore"):
            forged.tensors[name] = tensor.astype(chance.choice((np.float32, np.float16, np.int8, np.uint8, np.int32)))
    elif kind == 4:
        other = name.replace(
            chance.choice("0123lks_."), chance.choice(("1", "0", "01", "9", "", "x", "\N{ARABIC-INDIC DIGIT ONE}")), 1
        )
        forged.tensors[other] = tensor
    elif kind == 5:
        forged.tensors[name] = forged.tensors[chance.choice(sorted(forged.tensors))]
    elif kind == 6:
        forged.tensors[name] = tensor.reshape(-1) if chance.random() < 0.5 else tensor[None]
    elif tensor.ndim:
        forged.tensors[name] = np.concatenate((tensor, tensor))[chance.randrange(3) :]


def change_passages(forged: Forged, chance: random.Random) -> None:
    import zlib

    if "passages.zlib" not in forged.tensors:
        return
    try:
        rows = json.loads(zlib.decompress(forged.tensors["passages.zlib"].tobytes()))
        for _ in range(chance.randint(1, 3)):
            path = chance.choice(list(walk(rows)) or [()])
            parent: Any = rows
            for key in path[:-1]:
                parent = parent[key]
            if path:
                parent[path[-1]] = some_value(chance)
            else:
                rows.append(some_value(chance))
        text = json.dumps(rows)
    except (ValueError, zlib.error, TypeError, RecursionError):
        text = "[" * chance.randrange(3000)
    if chance.random() < 0.3:
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice(("\\ud800", "NaN", "[[", "]]", "null", "1e999", " " * 1000)) + text[at:]
    forged.tensors["passages.zlib"] = np.frombuffer(zlib.compress(text.encode()), np.uint8)
    if chance.random() < 0.7:
        forged.tensors.pop("passages.addresses", None)
        if isinstance(forged.metadata.get("reading"), dict):
            forged.metadata["reading"]["addresses"] = None


def random_content(smallest: Forged) -> Callable[[random.Random], bytes]:
    """Files whose checksums are right, whatever they hold."""
    kept = json.dumps(smallest.metadata)

    def make(chance: random.Random) -> bytes:
        forged = Forged(json.loads(kept), dict(smallest.tensors))
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            chance.choice((change_metadata, change_metadata, change_text, change_tensor, change_passages))(
                forged, chance
            )
        return forged.bytes()

    return make


GROWTH = 100 * MEGABYTE


def test_fuzzed_bytes_are_refused_or_can_be_looked_at(smallest: Forged, place: Path) -> None:
    came, grown = fuzz(place, 2_000, random_bytes(smallest))
    assert came["NotAMemoryFile"] and came["DamagedMemoryFile"] and grown < GROWTH, came.told(grown)


def test_fuzzed_content_is_refused_or_can_be_looked_at(smallest: Forged, place: Path) -> None:
    came, grown = fuzz(place, 3_000, random_content(smallest))
    assert came["loaded"] > 100 and came["DamagedMemoryFile"] > 1000 and grown < GROWTH, came.told(grown)


@pytest.mark.slow
def test_fuzzed_bytes_at_length(smallest: Forged, place: Path) -> None:
    came, grown = fuzz(place, CASES, random_bytes(smallest))
    print(f"\n{came.told(grown)}")
    assert grown < GROWTH


@pytest.mark.slow
def test_fuzzed_content_at_length(smallest: Forged, place: Path) -> None:
    came, grown = fuzz(place, CASES, random_content(smallest))
    print(f"\n{came.told(grown)}")
    assert grown < GROWTH
