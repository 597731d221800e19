"""Memory files from strangers: what each tries, and that it ends in one clear error, with flat memory, at once.

The catalogue is docs/attacks.md. Checksums are right wherever a wrong one would hide the check behind it.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import math
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import TEXT
from hostile import ESCAPES, TERABYTE, Forged, entry, framed, needs_linux, peak_growth, tiny_memory, tiny_model
from hostile import unframed as parts_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from infinimem import DocumentMemory
from infinimem.answering.decoding import Decoding
from infinimem.cli.main import main
from infinimem.cli.report import describe, html_report
from infinimem.errors import (
    AdapterNotFound,
    DamagedMemoryFile,
    InfinimemError,
    InvalidSetting,
    MemoryFileError,
    MemoryFileNotFound,
    ModelMismatch,
    ModelNotFound,
    NotAMemoryFile,
    UnsupportedVersion,
)
from infinimem.model import directories
from infinimem.model.infini_model import InfiniModel
from infinimem.storage import memory_file
from infinimem.storage.memory_file import read_memory_file
from infinimem.text.passages import LIMIT

ROOT = Path(__file__).parents[1]
MEGABYTE = 1 << 20
F32 = np.float32


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> InfiniModel:
    return tiny_model(tokenizer)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, model: InfiniModel) -> Path:
    path = tmp_path_factory.mktemp("sound") / "memory.safetensors"
    tiny_memory(model).save(path)
    return path


@pytest.fixture
def forged(sound: Path) -> Forged:
    return Forged.of(sound)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "forged.safetensors"


def load(path: Path, data: bytes | Forged) -> DocumentMemory:
    path.write_bytes(data if isinstance(data, bytes) else data.bytes())
    return DocumentMemory.load(path)


def looked_at(path: Path) -> None:
    """Everything that can be done without the model."""
    memory = DocumentMemory.load(path)
    assert memory.info()["passages"] == len(memory.passages)
    html_report(describe(path)).encode()


def test_what_the_attacks_begin_with_is_sound(forged: Forged, file: Path, sound: Path, model: InfiniModel) -> None:
    looked_at(forged.write(file))
    assert read_memory_file(file).fingerprint == read_memory_file(sound).fingerprint
    assert {"passages.zlib", "passages.addresses", "layers.1.keys", "layers.0.carried_keys"} <= set(forged.tensors)
    assert DocumentMemory.load(file, model=model).retrieve("captain", rank_by="learned")


# The catalogue


def table() -> list[tuple[str, set[str]]]:
    """What stops each attack, and the tests of it."""
    lines = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8").splitlines()
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines if "`test_" in line]
    assert rows and all(len(row) == 4 for row in rows)
    return [(row[2], set(re.findall(r"`(test_\w+)`", row[3]))) for row in rows]


def test_every_test_that_the_catalogue_names_is_there_and_every_attack_is_in_the_catalogue() -> None:
    every = {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    named = {name for _, tests in table() for name in tests}
    mine = {name for name in globals() if name.startswith("test_")}
    about = {name for name in mine if "catalogue" in name or "begin_with" in name}
    assert named <= every and mine - about <= named


def test_the_catalogue_says_which_attacks_are_still_open() -> None:
    def is_open(name: str) -> bool:
        marks = list(getattr(globals()[name], "pytestmark", []))
        given = [values for mark in marks if mark.name == "parametrize" for values in mark.args[1]]
        marks += [mark for values in given for mark in getattr(values, "marks", [])]
        return any(mark.name == "xfail" for mark in marks)

    for stopped_by, tests in table():
        if mine := [name for name in tests if name in globals()]:
            assert stopped_by.startswith("open: ") == any(map(is_open, mine)), tests


# The header


@pytest.mark.parametrize("length", [0, 1, 7, 1 << 13, 99_999_999, 100_000_001, 1 << 63, (1 << 64) - 1])
def test_a_header_length_that_is_not_the_headers_is_refused(sound: Path, file: Path, length: int) -> None:
    data = sound.read_bytes()
    assert length != int.from_bytes(data[:8], "little")
    with pytest.raises(NotAMemoryFile):
        load(file, length.to_bytes(8, "little") + data[8:])


@pytest.mark.parametrize("length", range(9))
def test_a_file_that_ends_in_its_first_field_is_refused(sound: Path, file: Path, length: int) -> None:
    with pytest.raises(NotAMemoryFile):
        load(file, sound.read_bytes()[:length])


@needs_linux
@pytest.mark.parametrize("length", [99_999_999, TERABYTE])
def test_a_gigantic_header_is_refused_at_once_with_flat_memory(file: Path, length: int) -> None:
    file.write_bytes(length.to_bytes(8, "little") + b'{"a":')
    os.truncate(file, 8 + length)  # zeros that take no space on the disk
    started = time.monotonic()

    def attempt() -> None:
        with pytest.raises(NotAMemoryFile):
            DocumentMemory.load(file)

    # What is mapped counts as resident once it is looked at, so a header of the largest size allowed does.
    assert peak_growth(attempt) < 120 * MEGABYTE and time.monotonic() - started < 5


@pytest.mark.parametrize("begin", [b"[", b'{"a":', b'{"__metadata__":{"infinimem.format":', b'{"a":{"shape":['])
def test_deep_nesting_in_the_header_is_refused(file: Path, begin: bytes) -> None:
    for depth in (200, 100_000):
        with pytest.raises(NotAMemoryFile):
            load(file, framed(begin * depth))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"[" + text + b"]",
        lambda text: text + text,
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text + b"\0" * 8,
        lambda text: text[:-1],
        lambda text: text.replace(b"light.txt", b"light\xff.txt"),
        lambda text: text.replace(b'"__metadata__": {', b'"__metadata__": {"infinimem.x": 3, '),
        lambda text: json.dumps({**json.loads(text), "__metadata__": None}).encode(),
    ],
    ids=["array", "twice", "byte order mark", "zeros after it", "cut", "not utf-8", "number", "none"],
)
def test_a_header_that_is_not_one_json_object_of_texts_is_refused(sound: Path, file: Path, change: Any) -> None:
    header, data = parts_of(Forged.of(sound).bytes())
    text = json.dumps(header).encode()
    assert change(text) != text
    with pytest.raises(NotAMemoryFile):
        load(file, framed(change(text), data))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 10**15),
        (10**15, 10**15 + 1),
        (-8, 0),
        (8, 0),
        (0, (1 << 64) - 1),
        (1 << 64, 1 << 65),
        (0.0, 1.0),
        ("0", "1"),
    ],
)
def test_offsets_out_of_range_backward_or_of_a_wrong_type_are_refused(
    forged: Forged, file: Path, start: Any, end: Any
) -> None:
    header, data = parts_of(forged.bytes())
    header["layers.1.keys"]["data_offsets"] = [start, end]
    with pytest.raises(NotAMemoryFile):
        load(file, framed(header, data))


@pytest.mark.parametrize("kind", ["overlap", "same bytes", "gap", "gap at the start", "bytes after the end"])
def test_overlaps_gaps_and_bytes_after_the_end_are_refused(forged: Forged, file: Path, kind: str) -> None:
    header, data = parts_of(forged.bytes())
    placed = [one for name, one in header.items() if name != "__metadata__"]
    placed.sort(key=lambda one: one["data_offsets"])
    if kind == "overlap":
        placed[1]["data_offsets"][0] -= 4
    elif kind == "same bytes":
        header["layers.1.values"]["data_offsets"] = header["layers.1.keys"]["data_offsets"]
    elif kind.startswith("gap"):
        for one in placed[0 if kind.endswith("start") else 1 :]:
            one["data_offsets"] = [place + 8 for place in one["data_offsets"]]
        data = data[:8] + data
    else:
        data += b"PK\x05\x06" + b"\0" * 18
    with pytest.raises(NotAMemoryFile):
        load(file, framed(header, data))


@needs_linux
@pytest.mark.parametrize(
    "shape", [[TERABYTE], [1 << 20, 1 << 20], [1 << 40, 1 << 40], [1 << 63, 2], [-1], [1.0], [1, "1"]]
)
def test_a_terabyte_that_only_the_header_has_is_refused_at_once_with_flat_memory(
    forged: Forged, file: Path, shape: list[Any]
) -> None:
    header, data = parts_of(forged.bytes())
    header["layers.1.keys"] = entry("I8", shape, 0, TERABYTE)
    file.write_bytes(framed(header, data))
    started = time.monotonic()

    def attempt() -> None:
        with pytest.raises(NotAMemoryFile):
            DocumentMemory.load(file)

    assert peak_growth(attempt) < 16 * MEGABYTE and time.monotonic() - started < 5


@needs_linux
def test_a_terabyte_of_zeros_that_takes_no_space_on_the_disk_is_refused(forged: Forged, file: Path) -> None:
    header, data = parts_of(forged.bytes())
    header["layers.2.keys"] = entry("I8", [1, TERABYTE // 16, 16], len(data), len(data) + TERABYTE)
    file.write_bytes(framed(header, data))
    os.truncate(file, file.stat().st_size + TERABYTE)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    # Room for mapping it, not for a copy, also where the system promises memory that it does not have.
    resource.setrlimit(resource.RLIMIT_AS, (TERABYTE + TERABYTE // 2, limits[1]))
    try:
        with pytest.raises(MemoryFileError, match="memory"):
            DocumentMemory.load(file)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("dimensions", [1, 2, 4, 33, 65, 1000])
def test_shapes_of_other_dimensions_are_refused(forged: Forged, file: Path, dimensions: int) -> None:
    header, data = parts_of(forged.bytes())
    size = math.prod(header["layers.1.keys"]["shape"])
    header["layers.1.keys"]["shape"] = [1] * (dimensions - 1) + [size]
    with pytest.raises(MemoryFileError):
        load(file, framed(header, data))


def test_duplicate_keys_cannot_smuggle_in_other_content(forged: Forged, file: Path) -> None:
    before = read_memory_file(forged.write(file)).fingerprint
    header, data = parts_of(forged.bytes())
    text = json.dumps(header)[:-1]
    again = json.dumps({**header["layers.1.keys"], "data_offsets": header["layers.1.values"]["data_offsets"]})
    other = json.dumps({**header["__metadata__"], "infinimem.model": '"other"'})
    once = json.dumps(header["__metadata__"])
    twice = once[:-1] + ', "infinimem.model": "\\"other\\""}'
    for hostile in (
        f'{text}, "layers.1.keys": {again}}}',
        f'{text}, "__metadata__": {other}}}',
        f'{text}, "__metadata__": {once}}}',
        json.dumps(header).replace(once, twice),
    ):
        assert hostile != json.dumps(header)
        with pytest.raises(MemoryFileError):
            load(file, framed(hostile.encode(), data))
    # The same said twice is the same.
    file.write_bytes(framed(f'{text}, "layers.1.keys": {json.dumps(header["layers.1.keys"])}}}'.encode(), data))
    assert read_memory_file(file).fingerprint == before


# Tensors: names, types, values, shapes


@pytest.mark.parametrize(
    "name",
    ["__pickle__", "", "weight", "layers.1.extra", "layers.-1.keys", "layers.10000.keys", "layers.1.keys\n",
     "layers.1.keys\0", "passages.zlib.0", "../layers.1.keys", "layers.1.carried_matrix"],
)  # fmt: skip
def test_tensors_that_no_memory_has_are_refused(forged: Forged, file: Path, name: str) -> None:
    forged.tensors[name] = np.ones((2, 3), F32)
    with pytest.raises(DamagedMemoryFile, match="no format"):
        load(file, forged)


@pytest.mark.parametrize(
    "name",
    ["layers.01.keys", "layers.0001.keys", "layers.\N{ARABIC-INDIC DIGIT ONE}.keys"],
)  # fmt: skip
def test_a_second_spelling_of_a_layer_is_refused(forged: Forged, file: Path, name: str) -> None:
    forged.tensors[name] = np.zeros_like(forged.tensors["layers.1.keys"])
    with pytest.raises(DamagedMemoryFile):
        load(file, forged)


@pytest.mark.parametrize("dtype", ["F64", "I64", "BOOL", "U8", "I32", "BF16", "F8_E4M3", "F4", "C64", "f32", "", "O"])
@pytest.mark.parametrize("name", ["layers.1.counts", "tail.tokens", "passages.zlib"])
def test_wrong_dtypes_are_refused(forged: Forged, file: Path, name: str, dtype: str) -> None:
    header, data = parts_of(forged.bytes())
    if dtype in memory_file.LAYOUT["tensors"][re.sub(r"\.\d\.", ".*.", name)][0]:
        pytest.skip("that is its type")
    size = header[name]["data_offsets"][1] - header[name]["data_offsets"][0]
    width = {"F64": 8, "I64": 8, "C64": 8, "I32": 4, "BF16": 2, "F4": 0.5}.get(dtype, 1)
    header[name] |= {"dtype": dtype, "shape": [int(size // width)]}
    with pytest.raises(MemoryFileError):
        load(file, framed(header, data))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers.1.counts", np.nan),
        ("layers.1.counts", np.inf),
        ("layers.1.counts", -1),
        ("layers.1.keys_scale", np.nan),
        ("layers.1.keys_scale", -1e-30),
        ("layers.1.values_scale", -np.inf),
        ("layers.0.carried_keys_scale", -1),
        ("layers.0.carried_counts", 0),
        ("layers.0.carried_counts", 2),
        ("layers.0.carried_counts", np.nan),
        ("layers.1.counts", 1e38),
        ("layers.1.keys_scale", 3e38),
        ("layers.1.values_scale", 3e38),
        ("layers.0.carried_keys_scale", 3e38),
        ("layers.0.carried_values_scale", 3e38),
    ],
)
def test_values_that_no_memory_can_have_are_refused(forged: Forged, file: Path, name: str, value: float) -> None:
    forged.tensors[name].flat[0] = value
    with pytest.raises(DamagedMemoryFile, match=r"values that no memory|other than once"):
        load(file, forged)


@pytest.mark.parametrize("name", ["layers.1.keys", "layers.1.values"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_slots_that_are_no_numbers_are_refused(forged: Forged, file: Path, name: str, dtype: Any, value: float) -> None:
    forged.tensors[name] = forged.tensors[name].astype(dtype)
    forged.tensors[name][-1, -1, -1] = value
    with pytest.raises(DamagedMemoryFile, match="values that no memory"):
        load(file, forged)


@pytest.mark.parametrize("value", [1e12, 0.0])
def test_the_largest_values_that_are_read_neither_crash_nor_hang_an_answer(
    forged: Forged, file: Path, model: InfiniModel, value: float
) -> None:
    for name, tensor in forged.tensors.items():
        if name.endswith("scale") or name == "layers.1.counts":
            tensor[:] = value
    memory = DocumentMemory.load(forged.write(file), model=model)
    for decoding in (Decoding(3), Decoding(3, temperature=1.0, seed=0)):
        said = memory.reply(
            [{"role": "user", "content": "Who is the captain?"}], answer_from="memory", decoding=decoding
        )
        assert said.text() is not None and said.tokens <= 3


LAYER = ("keys", "keys_scale", "values", "values_scale", "counts")


@pytest.mark.parametrize(
    "change",
    [
        {"layers.1.keys": np.zeros((2, 6, 15), np.int8)},
        {"layers.1.values": np.zeros((2, 6, 17), np.int8)},
        {f"layers.1.{name}": np.zeros((3, 6, 16)[: 2 + (name in ("keys", "values"))], F32) for name in LAYER},
        {"layers.1.counts": np.ones((2, 7), F32)},
        {"layers.1.counts": None},
        {"layers.1.keys_scale": None},
        {f"layers.1.{name}": None for name in LAYER},
        {"layers.1.keys": np.zeros((2, 6, 16), F32)},
        {"layers.1.matrix": np.zeros((2, 16, 16), F32)},
        {"layers.2.counts": np.ones((2, 6), F32)},
        {"layers.9999.counts": np.ones((2, 6), F32)},
        {"layers.0.carried_keys": np.zeros((2, 5, 16), np.int8)},
        {"layers.0.carried_keys": np.zeros((2, 600, 16), np.int8)},
        {"layers.0.carried_counts": None},
        {"tail.tokens": np.full((2, 16), 5, np.int32)},
        {"tail.tokens": np.full(32, 512, np.int32)},
        {"tail.tokens": np.full(32, -2, np.int32)},
        {"tail.tokens": np.full(32, 1 << 30, np.int32)},
        {"passages.addresses": None},
    ],
    ids=lambda change: " ".join(f"{name} {'gone' if t is None else t.shape}" for name, t in change.items())[:60],
)
def test_shapes_that_are_not_the_models_are_refused(
    forged: Forged, file: Path, model: InfiniModel, change: dict[str, Any]
) -> None:
    forged.tensors = {k: v for k, v in {**forged.tensors, **change}.items() if v is not None}
    with pytest.raises(DamagedMemoryFile):
        DocumentMemory.load(forged.write(file), model=model)


@pytest.mark.parametrize(
    "change",
    [
        {"layers.1.counts": np.ones((), F32)},
        {"layers.1.keys_scale": np.ones((5, 7), F32)},
        {"layers.1.keys": np.zeros((0, 1 << 50), np.int8)},
        {"layers.1.keys": np.zeros((2, 6), np.int8)},
        {"tail.tokens": np.full((), 5, np.int32)},
        {"tail.tokens": np.full((2, 16), 5, np.int32)},
        {"tail.tokens": np.full(31, 5, np.int32)},
        {"tail.tokens": None},
        {"passages.zlib": "2-d"},
        {"passages.addresses": np.zeros((2, 3), np.uint8)},
    ],
    ids=lambda change: " ".join(change),
)
def test_shapes_that_do_not_agree_with_each_other_are_refused_without_the_model(
    forged: Forged, file: Path, change: dict[str, Any]
) -> None:
    if change.get("passages.zlib") == "2-d":
        change = {"passages.zlib": forged.tensors["passages.zlib"].reshape(1, -1)}
    forged.tensors = {k: v for k, v in {**forged.tensors, **change}.items() if v is not None}
    with pytest.raises(DamagedMemoryFile):
        load(file, forged)


@needs_linux
def test_shapes_cannot_make_inspect_fill_the_memory(forged: Forged, file: Path) -> None:
    size = 5000
    forged.tensors["layers.1.keys"] = np.ones((1, 1, size), np.int8)
    forged.tensors["layers.1.keys_scale"] = np.ones((size, 1), F32)
    forged.write(file)

    def attempt() -> None:
        with pytest.raises(DamagedMemoryFile):
            describe(file)

    assert peak_growth(attempt) < 32 * MEGABYTE


# Passages


def packed(rows: Any) -> np.ndarray:
    data = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    return np.frombuffer(zlib.compress(data, 9), np.uint8)


def with_passages(forged: Forged, rows: Any) -> Forged:
    """These passages, without addresses."""
    forged.tensors["passages.zlib"] = packed(rows)
    forged.tensors.pop("passages.addresses", None)
    return forged.put("reading", "addresses", value=None)


@pytest.mark.parametrize(
    "rows",
    [
        None,
        5,
        True,
        "abcdef",
        ["abcdef"],
        {"abcdef": 1},
        [None],
        [[]],
        [["s", 1, None, 0, 1]],
        [["s", 1, None, 0, 1, "a", 1]],
        [[["s", 1, None, 0, 1, "a"]]],
        b"",
        b"[",
        b"\0\0\0\0",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'[["s",1,null,0,1,"\xff"]]',
        b'[["s",NaN,null,0,1,"a"]]',
        b'[["s",1,null,0,Infinity,"a"]]',
        b'[["s",1,null,0,' + b"9" * 5000 + b',"a"]]',
        {},
        [["s", "7", None, 0, 1, "a"]],
        [["s", 1.5, None, 0, 1, "a"]],
        [["s", True, None, 0, 1, "a"]],
        [["s", 1, None, 0, 1, ["a"]]],
        [["s", 1, {}, 0, 1, "a"]],
        [[5, 1, None, 0, 1, "a"]],
        [["s", 1, None, 0, 1, None]],
        '[["s",1,null,0,1,"a"]]'.encode("utf-16"),
        [["s", -1, None, 0, 1, "a"]],
        [["s", 10**400, None, 0, 1, "a"]],
        [["s", 1, None, -1, 0, "a"]],
        [["s", 1, None, 1, 0, "a"]],
        [["s", 1, None, 0, 2, "a"]],
        [["s", 1, None, 10**400, 10**400 + 1, "a"]],
        [["s", 1, None, 0, LIMIT + 1, "a" * (LIMIT + 1)]],
        [["s", 1, None, 0, 0, ""]],
    ],
    ids=lambda rows: str(rows)[:40],
)
def test_passages_of_wrong_types_or_absurd_places_are_refused(forged: Forged, file: Path, rows: Any) -> None:
    with pytest.raises(DamagedMemoryFile):
        load(file, with_passages(forged, rows))


@pytest.mark.parametrize("change", ["cut", "after the end", "none", "zeros", "another method", "a dictionary"])
def test_passages_that_are_not_zlib_are_refused(forged: Forged, file: Path, change: str) -> None:
    whole = packed([]).tobytes()
    dictionary = zlib.compressobj(zdict=b"passages")
    forged.tensors["passages.zlib"] = np.frombuffer(
        {
            "cut": whole[:-1],
            "after the end": whole + b"\0",
            "none": b"",
            "zeros": b"\0" * 64,
            "another method": b"\x1f\x8b" + whole,
            "a dictionary": dictionary.compress(b"[]") + dictionary.flush(),
        }[change],
        np.uint8,
    )
    with pytest.raises(DamagedMemoryFile):
        load(file, forged)


@needs_linux
@pytest.mark.parametrize(
    ("rows", "size"),
    [
        pytest.param(b"[],", 8 * MEGABYTE, id="empty rows"),
        pytest.param(b'["",1,null,0,1,"a"],', 24 * MEGABYTE, id="tiny rows"),
        pytest.param(b'["light.txt",1,null,0,1,"a"],', 24 * MEGABYTE, id="tiny rows of the source"),
        pytest.param(b" ", 200 * MEGABYTE, id="blanks"),
        pytest.param(b'[[[[[[[["a"]]]]]]]],', 8 * MEGABYTE, id="nested rows"),
    ],
)
def test_a_zlib_bomb_in_the_passages_is_refused_with_flat_memory(
    forged: Forged, file: Path, rows: bytes, size: int
) -> None:
    forged.put("sources", 0, "characters", value=1 << 52)
    with_passages(forged, b"[" + (rows * (size // len(rows)))[:-1] + b"]").write(file)
    assert file.stat().st_size < MEGABYTE

    def attempt() -> None:
        with pytest.raises(DamagedMemoryFile):
            DocumentMemory.load(file)

    assert peak_growth(attempt) < 96 * MEGABYTE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("sizes",), [1]),
        (("sizes",), [10**15] * 3),
        (("sizes",), [-1, 1]),
        (("sizes", 0), 1.0),
        (("sizes", 0), True),
        (("sizes", 0), None),
        (("done",), 10**6),
        (("starts",), [5, 4]),
        (("ends",), [7, 3]),
        (("weights",), [256]),
        (("weights",), [0] * 10_000),
        (("head",), 5),
        (("tail",), "abc"),
    ],
)
def test_term_weights_that_fit_no_passages_are_refused(forged: Forged, file: Path, path: Any, value: Any) -> None:
    with pytest.raises(DamagedMemoryFile):
        load(file, forged.put("reading", "addresses", *path, value=value))


def test_term_weights_of_other_words_are_refused_when_they_are_ranked(
    forged: Forged, file: Path, model: InfiniModel
) -> None:
    sizes = forged.metadata["reading"]["addresses"]["sizes"]
    forged.put("reading", "addresses", "sizes", value=[sizes[0] - 1, sizes[1] + 1, *sizes[2:]])
    memory = DocumentMemory.load(forged.write(file), model=model)
    with pytest.raises(DamagedMemoryFile, match="term weights"):
        memory.retrieve("captain")


@pytest.mark.parametrize(
    ("field", "size"),
    [
        ("pending", 4_000_000),
        ("pending_text", 4_000_000),
    ],
)
def test_an_unfinished_text_that_no_reading_leaves_is_refused_at_once(
    forged: Forged, file: Path, field: str, size: int
) -> None:
    path = ("reading", "cutter", "pending") if field == "pending" else ("reading", field)
    forged.put(*path, value="a" * size)
    forged.tensors.pop("passages.addresses")
    forged.put("reading", "addresses", value=None).write(file)
    started = time.monotonic()
    with pytest.raises(DamagedMemoryFile):
        DocumentMemory.load(file)
    assert time.monotonic() - started < 2


# Metadata

PLACES = [
    ("identity", "segment_length"),
    ("identity", "carry"),
    ("reading", "tokens"),
    ("reading", "seen"),
    ("reading", "cutter", "page"),
    ("reading", "cutter", "offset"),
    ("reading", "addresses", "done"),
    ("sources", 0, "pages"),
    ("sources", 0, "characters"),
]


@pytest.mark.parametrize("path", PLACES, ids=str)
@pytest.mark.parametrize(
    "text",
    ["-1", "1.0", "1e3", "1e999", "NaN", "Infinity", "-Infinity", f"1{'0' * 400}", "9" * 5000, "null", '"7"', "[7]",
     "9007199254740992"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_numbers_that_are_none_or_absurd_are_refused(
    forged: Forged, file: Path, path: tuple[Any, ...], text: str
) -> None:
    with pytest.raises(DamagedMemoryFile):
        load(file, forged.spell(*path, json_text=text))


@pytest.mark.parametrize("path", PLACES, ids=str)
def test_booleans_that_stand_for_integers_are_refused(forged: Forged, file: Path, path: tuple[Any, ...]) -> None:
    with pytest.raises(DamagedMemoryFile, match="wrong type"):
        load(file, forged.spell(*path, json_text="true"))


@pytest.mark.parametrize(
    "length",
    [0, 31, 33, 10**12, (1 << 53) - 1],
)  # fmt: skip
def test_a_segment_length_that_is_not_the_tails_is_refused(forged: Forged, file: Path, length: int) -> None:
    with pytest.raises(DamagedMemoryFile):
        load(file, forged.put("identity", "segment_length", value=length))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model",), 5),
        (("adapter",), ["none"]),
        (("identity",), []),
        (("identity", "rule"), None),
        (("identity", "rule_settings"), [["slots", 6]]),
        (("identity", "memory_heads"), [[0]]),
        (("identity", "memory_heads", "1"), 0),
        (("identity", "memory_heads", "1"), ["0"]),
        (("identity", "memory_heads", "1"), [True]),
        (("identity", "memory_heads", "-1"), [0]),
        (("identity", "memory_heads", "1.0"), [0]),
        (("identity", "memory_heads", ""), [0]),
        (("identity", "memory_heads", "9" * 5000), [0]),
        (("identity", "memory_heads", "01"), [0]),
        (("sources",), {}),
        (("sources",), [None]),
        (("sources", 0, "extra"), 1),
        (("sources", 0, "name"), None),
        (("sources", 0, "sha256"), 0),
        (("reading",), None),
        (("reading", "extra"), 1),
        (("reading", "pending_text"), 5),
        (("reading", "cutter"), None),
        (("reading", "cutter", "title"), 5),
        (("reading", "cutter", "extra"), 5),
        (("reading", "addresses"), []),
        (("reading", "addresses", "extra"), []),
    ],
    ids=lambda value: str(value)[:50],
)
def test_metadata_of_wrong_types_are_refused(forged: Forged, file: Path, path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(DamagedMemoryFile):
        load(file, forged.put(*path, value=value))


@pytest.mark.parametrize("key", ["model", "identity", "sources", "reading", "format", "layout"])
def test_metadata_that_are_missing_are_refused(forged: Forged, file: Path, key: str) -> None:
    del forged.metadata[key]
    with pytest.raises(MemoryFileError):
        load(file, forged)


@pytest.mark.parametrize("key", ["model", "identity", "sources", "reading"])
@pytest.mark.parametrize("text", ["", "{", "nonsense", "{'a': 1}", '{"a": 1}]', '"\x01"', "\ufeff{}", "\0"])
def test_metadata_that_are_not_json_are_refused(forged: Forged, file: Path, key: str, text: str) -> None:
    forged.raw[key] = text
    with pytest.raises(DamagedMemoryFile, match="not JSON"):
        load(file, forged)


@pytest.mark.parametrize(
    "text",
    ["NaN", "-Infinity", "1e999"],
)  # fmt: skip
def test_metadata_that_only_python_takes_for_json_are_refused(forged: Forged, file: Path, text: str) -> None:
    with pytest.raises(DamagedMemoryFile):
        load(file, forged.spell("identity", "rule_settings", "balance", json_text=text))


def deep_in_the_stack(frames: int, work: Any) -> Any:
    return work() if frames == 0 else deep_in_the_stack(frames - 1, work)


@pytest.mark.parametrize("brackets", ["[]", "{}"])
@pytest.mark.parametrize("depth", [100, 900, 5000, 1_000_000])
def test_deep_nesting_in_metadata_is_refused(forged: Forged, file: Path, brackets: str, depth: int) -> None:
    begin = "[" if brackets == "[]" else '{"a":'
    with pytest.raises(DamagedMemoryFile):
        load(file, forged.spell("identity", "nested", json_text=begin * depth + "1" + brackets[1] * depth))


@pytest.mark.parametrize(
    "path",
    [("model",), ("adapter",), ("identity", "weights"), ("identity", "x"), ("sources", 0, "name"),
     ("sources", 0, "kind"), ("reading", "pending_text"), ("reading", "cutter", "title"),
     ("reading", "cutter", "source"), ("reading", "cutter", "pending")],
    ids=str,
)  # fmt: skip
def test_half_a_character_in_metadata_is_refused(forged: Forged, file: Path, path: tuple[Any, ...]) -> None:
    with pytest.raises(DamagedMemoryFile, match="not JSON"):
        load(file, forged.spell(*path, json_text=r'"\ud800"'))


@pytest.mark.parametrize(
    "row", [r'["s",1,null,0,1,"\ud800"]', r'["\udfff",1,null,0,1,"a"]', r'["s",1,"\ud800",0,1,"a"]']
)
def test_half_a_character_in_a_passage_is_refused(forged: Forged, file: Path, row: str) -> None:
    with pytest.raises(DamagedMemoryFile):
        load(file, with_passages(forged, f"[{row}]".encode()))


@pytest.mark.parametrize(
    ("key", "text"),
    [("format", "1"), ("format", "99"), ("format", f'"{memory_file.FORMAT}"'), ("format", f"{memory_file.FORMAT}.0"),
     ("format", "true"), ("format", "[]"), ("layout", '"0"'), ("layout", "null"), ("layout", "0"),
     ("layout", f'"{memory_file.OLDER[1]}"')],
)  # fmt: skip
def test_another_layout_under_the_right_version_is_refused(forged: Forged, file: Path, key: str, text: str) -> None:
    forged.raw[key] = text
    with pytest.raises(UnsupportedVersion):
        load(file, forged)


# Settings that the file gives to the model it names


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path) -> Path:
    """A memory file that names a model's directory."""
    path = tmp_path_factory.mktemp("named") / "memory.safetensors"
    model = InfiniModel.from_pretrained(tiny_directory, rule_settings={"slots": 6}, segment_length=32, carry=6)
    DocumentMemory.from_text(TEXT * 6, name="light.txt", model=model).save(path)
    return path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("identity", "rule"), "evil"),
        (("identity", "rule"), "__class__"),
        (("identity", "rule"), "linear"),
        (("identity", "rule_settings"), {"evil": 1}),
        (("identity", "rule_settings"), {"self": 1}),
        (("identity", "rule_settings", "slots"), -1),
        (("identity", "rule_settings", "slots"), "six"),
        (("identity", "rule_settings", "slots"), [6]),
        (("identity", "rule_settings", "distance"), 10**30),
        (("identity", "rule_settings", "mass"), 10**400),
        (("identity", "rule_settings", "packing"), ["int8"]),
        (("identity", "carry"), (1 << 53) - 1),
        (("identity", "memory_heads"), {}),
        (("identity", "memory_heads"), {"99": [0]}),
        (("identity", "memory_heads"), {"1": [10**30]}),
        (("identity", "memory_heads"), {"1": [-1]}),
        (("identity", "weights"), "0"),
        (("identity", "config", "vocab_size"), 10**12),
        (("identity", "prefix"), [1]),
    ],
    ids=str,
)
def test_settings_that_no_model_has_are_refused_by_the_model(
    named: Path, file: Path, path: tuple[Any, ...], value: Any
) -> None:
    memory = DocumentMemory.load(Forged.of(named).put(*path, value=value).write(file))
    with pytest.raises((InvalidSetting, ModelMismatch)):
        memory.open()


# What is printed


def obeyed(text: str) -> set[str]:
    """Characters that a terminal obeys rather than shows."""
    return {character for character in text if not character.isprintable() and character not in "\n\t"}


def run(*arguments: Any) -> tuple[str, str]:
    """What a terminal gets; our own colours aside. Standard output, standard error."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], color=True)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return re.sub(r"\x1b\[[012]m", "", result.stdout), result.stderr


def escaping(forged: Forged) -> Forged:
    """Escapes wherever a file has text."""
    forged.put("sources", 0, "name", value=f"name{ESCAPES}")
    forged.put("adapter", value=f"adapter{ESCAPES}").put("model", value=f"model{ESCAPES}")
    forged.put("identity", "rule", value=f"rule{ESCAPES}").put("identity", "rule_settings", ESCAPES, value=ESCAPES)
    forged.put("identity", ESCAPES, value=ESCAPES)
    text = f"lighthouse text{ESCAPES}"
    return with_passages(forged, [[f"name{ESCAPES}", 1, f"title{ESCAPES}", 0, len(text), text]])


def test_escape_sequences_in_names_and_titles_are_not_printed(forged: Forged, file: Path) -> None:
    escaping(forged).write(file)
    for arguments in (["inspect", file], ["inspect", file, "--json"], ["retrieve", file, "lighthouse", "--json"]):
        out, err = run(*arguments)
        assert "u001b" in out + err or "name\N{REPLACEMENT CHARACTER}" in out + err
        assert not obeyed(out + err), arguments
    shown = json.loads(run("inspect", file, "--json")[0])
    assert shown["sources"][0]["name"] == f"name{ESCAPES}"
    assert json.loads(run("retrieve", file, "lighthouse", "--json")[0])["passages"][0]["text"].endswith(ESCAPES)


def test_escape_sequences_in_the_kind_of_a_source_are_not_printed(forged: Forged, file: Path) -> None:
    out, _ = run("inspect", forged.put("sources", 0, "kind", value=f"kind{ESCAPES}").write(file))
    assert "kind" in out and not obeyed(out)


def test_escape_sequences_in_passages_are_not_printed(forged: Forged, file: Path) -> None:
    text = f"lighthouse\n\ttext{ESCAPES}"
    forged.put("sources", 0, "name", value=f"source{ESCAPES}")
    with_passages(forged, [[f"source{ESCAPES}", 1, f"title{ESCAPES}", 0, len(text), text]]).write(file)
    out, _ = run("retrieve", file, "lighthouse", "--mode", "lexical")
    assert "lighthouse\n\ttext" in out and "title" in out and not obeyed(out)


@pytest.fixture(scope="module")
def escaping_directory(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path) -> Path:
    """A model that answers everything with an escape sequence."""
    directory = tmp_path_factory.mktemp("models") / "escaping"
    network, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_directory),
        AutoTokenizer.from_pretrained(tiny_directory),
    )
    said = tokenizer.encode("\x1b", add_special_tokens=False)
    assert len(said) == 1
    with torch.no_grad():
        # Nothing is added to the embedding, which is one for all tokens: so all of them are followed by the same.
        for name, parameter in network.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
        network.get_input_embeddings().weight[:] = 1.0
        network.lm_head.weight.zero_()
        network.lm_head.weight[said[0]] = 1.0
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "Who counted the ships?", "--max-new-tokens", 3],
        ["summarize", "--max-new-tokens", 3],
        ["ask", "Who counted the ships?", "--max-new-tokens", 3, "--json"],
        ["summarize", "--max-new-tokens", 3, "--json"],
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:1] + arguments[-1:])),
)
def test_escape_sequences_in_answers_are_not_printed(
    escaping_directory: Path, file: Path, arguments: list[Any]
) -> None:
    DocumentMemory.from_text(TEXT * 2, name=f"name{ESCAPES}", model=escaping_directory).save(file)
    answer = DocumentMemory.load(file, model=escaping_directory).ask("Who counted the ships?", max_new_tokens=3)
    assert answer.text.count("\x1b") == 3
    out, err = run(arguments[0], file, *arguments[1:], "-m", escaping_directory)
    assert out and not err and not obeyed(out)


def test_escape_sequences_in_errors_are_not_printed(forged: Forged, named: Path, file: Path) -> None:
    def said(*arguments: Any) -> str:
        out, err = run(*arguments)
        assert err.startswith("Error: ") and not obeyed(out + err)
        return err

    forged.raw["layout"] = json.dumps(f"layout{ESCAPES}", ensure_ascii=False)
    assert "layout]" not in said("inspect", forged.write(file))
    strange = Forged.of(named)
    strange.tensors[f"tensor{ESCAPES}"] = np.ones(3, F32)
    assert "tensor" in said("verify", strange.write(file))
    ask = ["ask", file, "Who is the captain?"]
    Forged.of(named).put("model", value=f"model{ESCAPES}").write(file)
    assert "model" in said(*ask)
    Forged.of(named).put("adapter", value=f"adapter{ESCAPES}").write(file)
    assert "adapter" in said(*ask)
    Forged.of(named).put("identity", f"field{ESCAPES}", value=ESCAPES).write(file)
    assert "field" in said(*ask)


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_html_in_a_file_stays_text_in_the_report(forged: Forged, tmp_path: Path) -> None:
    evil = "</td></title></style><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload='alert(1)&lt;b&gt;<!--"
    for path in (("sources", 0, "name"), ("sources", 0, "kind"), ("sources", 0, "sha256"), ("model",), ("adapter",),
                 ("identity", "rule"), ("identity", "rule_settings", evil)):  # fmt: skip
        forged.put(*path, value=evil)
    path = with_passages(forged, []).write(tmp_path / "<script>alert(1)<")
    run("inspect", path, "--html", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("&lt;script&gt;alert(1)") >= 7
    found = Tags(page)
    assert found.tags == {"html", "meta", "title", "style", "h1", "h2", "table", "tr", "th", "td"}
    assert found.attributes == {"lang", "charset"}


# Models and adapters that a file names


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No network; what was tried."""
    tried: list[Any] = []

    def refuse(*arguments: Any, **settings: Any) -> Any:
        tried.append(arguments[-1] if arguments and isinstance(arguments[0], socket.socket) else arguments)
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tried


NAMES = [
    "someone/some-model", "gpt2", "https://example.com/model", "hf://someone/model", "file:///etc", "-rf", "a:b", "",
    "//server/share/model", "\\\\server\\share\\model", "C:\\windows", "~nosuchuser/model", "~", "x" * 5000, "\0",
    "a/" * 3000, "\n", " ", "../../../etc", "someone/../../etc", "/proc/self/root/etc", "/proc/self/fd/0", "/dev/fd/0",
    "/dev/zero",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:24])
def test_a_model_name_in_a_file_reaches_no_network_and_ends_in_a_clear_error(
    named: Path, file: Path, unplugged: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    memory = DocumentMemory.load(Forged.of(named).put("model", value=name).write(file))
    with pytest.raises(ModelNotFound):
        memory.ask("Who is the captain?")
    assert unplugged == []


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:24])
def test_an_adapter_name_in_a_file_reaches_no_network_and_ends_in_a_clear_error(
    named: Path, file: Path, unplugged: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    memory = DocumentMemory.load(Forged.of(named).put("adapter", value=name).write(file))
    with pytest.raises(AdapterNotFound):
        memory.ask("Who is the captain?")
    assert unplugged == []


def test_a_cached_hub_model_that_a_file_names_is_loaded_without_asking_the_hub(
    named: Path, file: Path, tiny_directory: Path, unplugged: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "cache" / "models--someone--tiny"
    shutil.copytree(tiny_directory, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    memory = DocumentMemory.load(Forged.of(named).put("model", value="someone/tiny").write(file))
    assert memory.ask("Who counted the ships?", max_new_tokens=2).passages
    assert unplugged == [] and memory.model.name == "someone/tiny"


def copy_of(directory: Path, place: Path, **changes: Any) -> Path:
    """A model directory of the user's own."""
    directories.trust(place)
    shutil.copytree(directory, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, **changes}))
    return place


class Pickled:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def test_pickled_weights_that_a_file_names_are_not_read(
    named: Path, file: Path, tiny_directory: Path, tmp_path: Path
) -> None:
    directory, mark = copy_of(tiny_directory, tmp_path / "model"), tmp_path / "ran"
    weights = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    (directory / "model.safetensors").unlink()
    memory = DocumentMemory.load(Forged.of(named).put("model", value=str(directory)).write(file))
    for content in (weights, {"weight": Pickled(mark)}):
        torch.save(content, directory / "pytorch_model.bin")
        with pytest.raises(ModelNotFound):
            memory.open()
    assert not mark.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        {"auto_map": {"AutoModelForCausalLM": "someone/evil--evil.Model"}},
        {"attn_implementation": "someone/evil-kernel"},
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"transformers_weights": "../other/model.safetensors"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": "evil"},
        {"dtype": "os"},
        {"hidden_size": -1},
        {"model_type": ["llama"]},
    ],
    ids=str,
)
def test_a_configuration_that_a_file_names_runs_no_code_and_fetches_nothing(
    named: Path, file: Path, tiny_directory: Path, tmp_path: Path, unplugged: list[Any], changes: dict[str, Any]
) -> None:
    directory = copy_of(tiny_directory, tmp_path / "model", **changes)
    (directory / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})\n")
    memory = DocumentMemory.load(Forged.of(named).put("model", value=str(directory)).write(file))
    # What it can still be loaded as is the model that the file was made with.
    with contextlib.suppress(ModelNotFound):
        memory.open()
    assert not (tmp_path / "ran").exists() and unplugged == [] and "evil" not in sys.modules


@pytest.mark.parametrize("what", ["tokenizer.json", "config.json", "model.safetensors", "tokenizer_config.json"])
def test_a_damaged_model_that_a_file_names_ends_in_a_clear_error(
    named: Path, file: Path, tiny_directory: Path, tmp_path: Path, what: str
) -> None:
    directory = copy_of(tiny_directory, tmp_path / "model")
    memory = DocumentMemory.load(Forged.of(named).put("model", value=str(directory)).write(file))
    for content in (b"", b"{", b"[]", b"\xff" * 100):
        (directory / what).write_bytes(content)
        with pytest.raises(ModelNotFound):
            memory.open()


def test_a_directory_that_only_the_file_names_is_not_loaded(
    named: Path, file: Path, tiny_directory: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_directory, directory)
    memory = DocumentMemory.load(Forged.of(named).put("model", value=str(directory)).write(file))
    with pytest.raises(ModelNotFound, match="model="):
        memory.open()
    assert DocumentMemory.load(file, model=directory).ask("Who counted the ships?", max_new_tokens=2).passages
    # Having named it once is enough.
    DocumentMemory.load(file).open()


def test_a_directory_beside_the_user_does_not_pass_for_a_hub_model(
    named: Path, file: Path, tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_directory, tmp_path / "someone" / "tiny")
    monkeypatch.chdir(tmp_path)
    memory = DocumentMemory.load(Forged.of(named).put("model", value="someone/tiny").write(file))
    with pytest.raises(ModelNotFound):
        memory.open()


def test_an_adapter_directory_that_only_the_file_names_is_not_read(named: Path, file: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "EVIL"}')
    memory = DocumentMemory.load(Forged.of(named).put("adapter", value=str(tmp_path / "adapter")).write(file))
    with pytest.raises(AdapterNotFound, match="adapter="):
        memory.open()


def test_names_of_sources_are_never_opened(named: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = file.parent / "secret.txt"
    secret.write_text("secret")
    forged = Forged.of(named).put("sources", 0, "name", value=str(secret))
    forged.put("reading", "cutter", "source", value=str(secret)).write(file)
    opened: list[str] = []

    def watch(module: Any) -> None:
        original = module.open

        def open_watched(place: Any, *arguments: Any, **settings: Any) -> Any:
            opened.append(str(place))
            return original(place, *arguments, **settings)

        monkeypatch.setattr(module, "open", open_watched)

    watch(io)
    watch(os)
    memory = DocumentMemory.load(file)
    assert memory.retrieve("lighthouse")[0].source == "light.txt" or memory.passages
    memory.append_text("More.", name="more")
    memory.save(file.parent / "again")
    describe(file.parent / "again")
    assert str(file) in opened and str(secret) not in opened


# What is no file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code = "import sys; from infinimem.storage.memory_file import read_memory_file as read; read(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "pipe"], capture_output=True, text=True, timeout=5)
    assert "NotAMemoryFile" in done.stderr


@pytest.mark.parametrize(
    "place", ["/dev/zero", "/dev/null", "/dev/full", "/dev/urandom", "/proc/self/mem", "/proc/self/maps"]
)
def test_devices_and_what_looks_like_files_are_refused_at_once(place: str) -> None:
    if not Path(place).exists():
        pytest.skip("it is not on this system")
    with pytest.raises(NotAMemoryFile):
        DocumentMemory.load(place)


def test_directories_sockets_and_links_that_lead_nowhere_are_refused(tmp_path: Path, sound: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(NotAMemoryFile):
        DocumentMemory.load(tmp_path)
    with pytest.raises(MemoryFileNotFound):
        DocumentMemory.load(tmp_path / "dangling")
    with pytest.raises(NotAMemoryFile):
        DocumentMemory.load(tmp_path / "loop")
    with pytest.raises(InfinimemError):
        DocumentMemory.load(sound / "inside a file")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening, contextlib.chdir(tmp_path):
        listening.bind("socket")
        with pytest.raises(NotAMemoryFile):
            DocumentMemory.load("socket")


def test_a_link_is_read_through_and_stays_a_link_when_it_is_written(tmp_path: Path, sound: Path) -> None:
    (tmp_path / "target").write_bytes(sound.read_bytes())
    (tmp_path / "link").symlink_to(tmp_path / "target")
    DocumentMemory.load(tmp_path / "link").save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "target").is_symlink()
    looked_at(tmp_path / "target")


def test_the_catalogue_has_no_test_twice() -> None:
    source = inspect.getsource(sys.modules[__name__])
    names = re.findall(r"^def (test_\w+)", source, re.MULTILINE)
    assert len(names) == len(set(names))
