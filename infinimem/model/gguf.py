"""GGUF files: metadata and the table of tensors, read with every length checked against the size of the file.

The layout is that of the GGUF specification, versions 2 and 3, little-endian: magic, version, counts, key-value pairs,
tensor descriptions, and the tensors' bytes, aligned. Files come from strangers, so nothing is allocated before the file
is known to have room for it. Importing this module loads no torch.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DamagedModelFile, ModelNotFound, UnsupportedModelFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MOST_ENTRIES = 1 << 16
MOST_DIMENSIONS = 4
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Formats of tensors: the number in the file to the name, the values of a block, and the bytes of a block.
FORMATS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor is in a GGUF file.

    shape: outermost dimension first, as torch has it.
    format: a name of FORMATS.
    start: first byte, from the beginning of the file.
    size: number of bytes.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    start: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says, without the values of its tensors.

    metadata: key to number, bool, string, or list of these.
    tensors: by name, in the order of the file.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """The family of the model in the words of GGUF, such as "llama"."""
        return str(self.metadata.get("general.architecture", ""))

    def setting(self, name: str, default: Any = None) -> Any:
        """The value of a key of this family, such as "block_count"."""
        return self.metadata.get(f"{self.architecture}.{name}", default)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Read metadata and tensor table. Raises ModelNotFound, DamagedModelFile, UnsupportedModelFile."""
    place = Path(path)
    try:
        with place.open("rb") as file:
            if file.read(4) != MAGIC:
                raise UnsupportedModelFile(f"'{path}' is not a GGUF file; name a GGUF file or a model directory")
            size = file.seek(0, os.SEEK_END)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                metadata, tensors = _Header(data, str(path), size).read()
    except OSError as error:
        raise ModelNotFound(f"the model file '{path}' cannot be read ({error.strerror or error})") from error
    return GgufFile(place, metadata, tensors)


class _Header:
    """A place in the bytes of a file, moving on with everything that is read."""

    def __init__(self, data: mmap.mmap, name: str, size: int) -> None:
        self.data, self.name, self.size, self.place = data, name, size, 4

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        (version,) = self.numbers("I")
        if version not in VERSIONS:
            raise UnsupportedModelFile(
                f"'{self.name}' has GGUF version {version}, or is big-endian; infinimem reads versions 2 and 3"
            )
        tensor_count, pair_count = self.numbers("QQ")
        if max(tensor_count, pair_count) > MOST_ENTRIES:
            raise self.damaged(f"it claims {tensor_count} tensors and {pair_count} keys")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self.string()
            if key in metadata:
                raise self.damaged(f"the key '{key}' is there twice")
            metadata[key] = self.value(self.numbers("I")[0])
        described = [self.description() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.damaged(f"its alignment is {alignment}")
        beginning = -(-self.place // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, number, offset in described:
            if name in tensors:
                raise self.damaged(f"the tensor '{name}' is there twice")
            tensors[name] = self.tensor(name, shape, number, beginning + offset)
        return metadata, tensors

    def tensor(self, name: str, shape: tuple[int, ...], number: int, start: int) -> GgufTensor:
        if number not in FORMATS:
            raise UnsupportedModelFile(
                f"'{self.name}' stores '{name}' in a format (number {number}) that infinimem does not read; take a "
                f"file in one of the formats {', '.join(name for name, _, _ in FORMATS.values())}"
            )
        kind, values, width = FORMATS[number]
        if not shape or min(shape) < 1 or shape[-1] % values:
            raise self.damaged(f"'{name}' has the shape {shape}")
        size = math.prod(shape) // values * width
        if start + size > self.size:
            raise self.damaged(f"'{name}' ends after the end of the file")
        return GgufTensor(name, shape, kind, start, size)

    def description(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        (dimensions,) = self.numbers("I")
        if dimensions > MOST_DIMENSIONS:
            raise self.damaged(f"'{name}' has {dimensions} dimensions")
        shape = self.numbers(f"{dimensions}Q")
        number, offset = self.numbers("IQ")
        return name, shape[::-1], number, offset

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            element, count = self.numbers("IQ")
            if element == STRING:
                self.check(count * 8)
                return [self.string() for _ in range(count)]
            self.check(count)
            return list(self.numbers(f"{count}{self.scalar(element)}"))
        return self.numbers(self.scalar(kind))[0]

    def scalar(self, kind: int) -> str:
        if kind not in SCALARS:
            raise self.damaged(f"a value has the unknown type {kind}")
        return SCALARS[kind]

    def string(self) -> str:
        (length,) = self.numbers("Q")
        self.check(length)
        self.place += length
        return self.data[self.place - length : self.place].decode("utf-8", "replace")

    def numbers(self, layout: str) -> tuple[Any, ...]:
        length = struct.calcsize(f"<{layout}")
        self.check(length)
        self.place += length
        return struct.unpack_from(f"<{layout}", self.data, self.place - length)

    def check(self, length: int) -> None:
        if length > self.size - self.place:
            raise self.damaged("it ends in the middle of its header")

    def damaged(self, reason: str) -> DamagedModelFile:
        return DamagedModelFile(f"the model file '{self.name}' is truncated or damaged: {reason}; get it again")
