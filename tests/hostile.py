"""Memory files as an attacker writes them: any header, any tensors, with checksums that fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np  # noqa: TC002
import pytest
import torch
from conftest import TEXT, tiny_network
from safetensors import safe_open

from infinimem import DocumentMemory
from infinimem.attention.rules import make_rule
from infinimem.model.infini_model import InfiniModel
from infinimem.model.term_head import HeadSettings, TermHead
from infinimem.storage import memory_file
from infinimem.storage.layout import PREFIX

DTYPES = {"<f4": "F32", "<f2": "F16", "<f8": "F64", "<i4": "I32", "<i8": "I64", "|i1": "I8", "|u1": "U8", "|b1": "BOOL"}
TERABYTE = 1 << 40
# Sets the terminal's title, clears the screen, goes on in red; C1 controls, an override of direction, a backspace.
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b31m‮\x08\x7f"
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, or makes sparse files")


def framed(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of this header and these bytes; length: what it says of its header, if not the truth."""
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def unframed(file: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    end = 8 + int.from_bytes(file[:8], "little")
    return dict(json.loads(file[8:end])), file[end:]


def entry(dtype: str, shape: list[Any], start: Any, end: Any) -> dict[str, Any]:
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@dataclass
class Forged:
    """A memory file taken apart: metadata by their names without prefix, parsed, and tensors.

    raw: metadata as they stand, in place of the JSON of the parsed ones.
    """

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]
    raw: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Forged:
        """The parts of a sound file."""
        with safe_open(path, framework="np") as file:
            texts = {key.removeprefix(PREFIX): value for key, value in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return cls({key: json.loads(text) for key, text in texts.items() if not key.endswith("_sha256")}, tensors)

    def put(self, *path: Any, value: Any) -> Forged:
        """Replace one place in the metadata."""
        place: Any = self.metadata
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return self

    def spell(self, *path: Any, json_text: str) -> Forged:
        """Replace one place in the metadata by JSON that Python itself would not write."""
        self.put(*path, value="\N{SNOWMAN} here")
        self.raw[path[0]] = memory_file._json(self.metadata[path[0]]).replace('"\N{SNOWMAN} here"', json_text)
        return self

    def bytes(self) -> bytes:
        """The file, with the checksums that its reader expects."""
        texts = {key: memory_file._json(value) for key, value in self.metadata.items()} | self.raw
        texts["tensors_sha256"] = json.dumps(memory_file._hash_tensors(self.tensors))
        texts["metadata_sha256"] = json.dumps(memory_file._hash_metadata(texts))
        header: dict[str, Any] = {"__metadata__": {PREFIX + key: text for key, text in texts.items()}}
        data = b""
        for name in sorted(self.tensors, key=lambda name: (-self.tensors[name].itemsize, name)):
            tensor = self.tensors[name]
            header[name] = entry(DTYPES[tensor.dtype.str], list(tensor.shape), len(data), len(data) + tensor.nbytes)
            data += tensor.tobytes()
        return framed(header, data)

    def write(self, path: Path) -> Path:
        """Write it; returns the path."""
        path.write_bytes(self.bytes())
        return path


def tiny_model(tokenizer: Any, segment_length: int = 32, **changes: Any) -> InfiniModel:
    """A random model with slots, carried tokens and a head for addresses."""
    model = InfiniModel(
        tiny_network("Llama", **changes),
        tokenizer,
        make_rule("slots", slots=6, distance=16),
        segment_length=segment_length,
        memory_heads=[1],
        carry=6,
        name="tiny",
    )
    torch.manual_seed(0)
    head = TermHead(HeadSettings(layer=1, width=64, hidden=4), "head")
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.use_term_head(head.requires_grad_(False).eval())
    return model


def tiny_memory(model: InfiniModel) -> DocumentMemory:
    """Of two sources, with closed and unfinished passages, and an unfinished segment."""
    memory = DocumentMemory.from_text(TEXT * 5, name="light.txt", model=model)
    memory.append_text("The captain of the Heron was called Odile Marchetti. " + TEXT * 4, name="heron.txt")
    return memory


def peak_growth(work: Callable[[], Any]) -> int:
    """Bytes by which resident memory rose above where it was, at most, while `work` ran. Linux only."""

    def kilobytes(field: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = kilobytes("VmRSS")
    work()
    return (kilobytes("VmHWM") - before) * 1024
