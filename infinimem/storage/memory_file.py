"""The memory file: one safetensors file, written whole or not at all, refused if a byte of it changed.

Tensors
    layers.{i}.{name}   the state of layer i, (R, ...) for its R KV heads with a memory
    layers.{i}.carried_{name}   the last W tokens in layer i as they are, (G, W, ...) for all G KV heads
    segments.tokens     tokens of the whole segments, int32; a short document has them in place of all states, which are
                        then computed again when they are needed
    tail.tokens         tokens of the unfinished segment, int32
    passages.zlib       the passages, compressed, uint8 (only if there are passages)
    passages.addresses  their term weights, a byte a word (only if the model has a term head)
Metadata: JSON strings under the prefix `infinimem.`
    format, layout      version, and the hash of the layout it stands for
    model, identity     name of the model; everything that the state depends on
    adapter             name or directory of the adapter; absent if there was none
    sources, reading    what was ingested (SHA-256, pages, what it says about itself, parts left out); what is needed to
                        ingest more
    tensors_sha256      over names, types, shapes and bytes of all tensors, in name order
    metadata_sha256     over all other metadata
The names `passages.addresses` and `reading` are historical: new names would be a new version of the format.

This module needs neither torch nor a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import (
    DamagedMemoryFile,
    MemoryFileNotFound,
    NotAMemoryFile,
    NotReplaced,
    UnsupportedVersion,
)
from . import strict_json
from .files import check_writable, write_atomically
from .layout import FORMAT, LAYOUT, LAYOUT_HASH, MIGRATIONS, OLDER, PREFIX, STATE_TENSOR, check_tensors, check_types

HEADER_STEP = 1 << 14  # bytes
# Suffixes of memory files, and of the files that an interrupted ingestion leaves.
SUFFIXES = (".safetensors", ".partial")


NEVER_NEGATIVE = ("counts", "normalizer", "scale")
# Far above any value that a model computes from a document, and so far below float32's limit that products are finite.
LARGEST_VALUE = 1e13
# A larger file is no memory file, and may not fit into RAM.
MAX_FILE_BYTES = 1 << 36


@dataclass
class MemoryFile:
    """The content of a memory file: state tensors by layer and name, the tail, the passages, and the metadata.

    segment_tokens: tokens of the whole segments, (N,) int32, in place of the states; None where the states are there,
        or where no segment is whole.
    """

    model: str
    identity: dict[str, Any]
    sources: list[dict[str, Any]]
    reading: dict[str, Any]
    states: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    segment_tokens: np.ndarray | None = None
    tail: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    passages: np.ndarray | None = None
    term_weights: np.ndarray | None = None
    adapter: str = "none"
    format: int = FORMAT

    @property
    def memory_bytes(self) -> int:
        """Bytes of the compressive memory and of the carried tokens, or of the tokens in place of both."""
        if self.segment_tokens is not None:
            return int(self.segment_tokens.nbytes)
        return sum(tensor.nbytes for state in self.states.values() for tensor in state.values())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that the memory depends on and holds; equal for equal memories only."""
        digest = hashlib.sha256(_json(self.identity).encode())
        digest.update(_hash_tensors(self._tensors()).encode())
        return digest.hexdigest()

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = {f"layers.{i}.{name}": t for i, state in self.states.items() for name, t in state.items()}
        room = max(0, int(self.identity["segment_length"]) - len(self.tail))
        tensors["tail.tokens"] = np.pad(self.tail, (0, room), constant_values=-1)
        if self.segment_tokens is not None:
            tensors["segments.tokens"] = self.segment_tokens
        if self.passages is not None:
            tensors["passages.zlib"] = self.passages
        if self.term_weights is not None:
            tensors["passages.addresses"] = self.term_weights
        return tensors

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write a temporary file beside `path`, sync it to disk, then rename it to `path`. Returns the number of bytes.

        Raises TargetNotWritable, NotReplaced; an old file is then unchanged.
        """
        from safetensors.numpy import save

        check_replaceable(Path(path))
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in self._tensors().items()}
        metadata = {
            "format": _json(FORMAT),
            "layout": _json(LAYOUT_HASH),
            "model": _json(self.model),
            "identity": _json(self.identity),
            "sources": _json(self.sources),
            "reading": _json(self.reading),
            "tensors_sha256": _json(_hash_tensors(tensors)),
        }
        if self.adapter != "none":
            metadata["adapter"] = _json(self.adapter)
        metadata["metadata_sha256"] = _json(_hash_metadata(metadata))
        data = _ordered_header(save(tensors, {PREFIX + key: value for key, value in metadata.items()}))
        write_atomically(Path(path), data)
        return len(data)


def read_memory_file(path: str | os.PathLike[str]) -> MemoryFile:
    """Read and check a memory file: structure, version, checksums, dtypes, finite values.

    Raises MemoryFileNotFound, NotAMemoryFile, UnsupportedVersion or DamagedMemoryFile.
    """
    from safetensors import SafetensorError

    place = Path(path)
    tensors: dict[str, np.ndarray] = {}
    with _opened(place) as file:
        raw = _parsed(place, file.metadata() or {})
        try:
            check_tensors(place, file, raw["identity"]["segment_length"])
            for name in file.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                tensors[name] = file.get_tensor(name)
        except (SafetensorError, OSError, MemoryError) as error:
            raise DamagedMemoryFile(
                f"'{place}' is damaged ({error}); restore a copy or ingest the document again"
            ) from error
    if _hash_tensors(tensors) != raw["tensors_sha256"]:
        raise DamagedMemoryFile(
            f"the tensors in '{place}' do not match their checksum; restore a copy or ingest the document again"
        )
    memory = MemoryFile(raw["model"], raw["identity"], raw["sources"], raw["reading"])
    memory.adapter, memory.format = raw.get("adapter", memory.adapter), raw["format"]
    for name, tensor in tensors.items():
        if match := STATE_TENSOR.fullmatch(name):
            # NaN fails this comparison. It is made in float32 because in float16 the bound would be infinite.
            sound = tensor.dtype == np.int8 or bool((np.abs(tensor.astype(np.float32)) <= LARGEST_VALUE).all())
            if not sound or (match[2].endswith(NEVER_NEGATIVE) and (tensor < 0).any()):
                raise DamagedMemoryFile(
                    f"'{name}' in '{place}' has values that no memory can have; ingest the document again"
                )
            if match[2] == "carried_counts" and (tensor != 1).any():
                raise DamagedMemoryFile(
                    f"'{name}' in '{place}' counts a token other than once; ingest the document again"
                )
            memory.states.setdefault(int(match[1]), {})[match[2]] = tensor
    memory.states = dict(sorted(memory.states.items()))
    tail = tensors.get("tail.tokens", memory.tail)
    memory.tail = tail[: int(np.argmax(tail == -1))] if (tail == -1).any() else tail
    memory.segment_tokens = tensors.get("segments.tokens")
    memory.passages = tensors.get("passages.zlib")
    memory.term_weights = tensors.get("passages.addresses")
    if memory.segment_tokens is not None and (memory.states or memory.segment_tokens.size != memory.reading["seen"]):
        raise DamagedMemoryFile(
            f"'{place}' has tokens of whole segments that do not fit the rest of it; restore a copy or ingest the "
            "document again"
        )
    if (memory.term_weights is None) != (memory.reading["addresses"] is None):
        raise DamagedMemoryFile(
            f"'{place}' has only one half of its term weights (tensor or header); restore a copy or ingest "
            "the document again"
        )
    return memory


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The safetensors file, mapped once: all that is read comes from one version, even while the file is replaced."""
    from safetensors import SafetensorError, safe_open

    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise NotAMemoryFile(f"'{path}' is no regular file; name a memory file")
        if found.st_size > MAX_FILE_BYTES:
            raise NotAMemoryFile(
                f"'{path}' has {found.st_size:,} bytes, but a memory file has at most "
                f"{MAX_FILE_BYTES:,}; restore a copy or ingest the document again"
            )
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise MemoryFileNotFound(
            f"no memory file is at '{path}'; make one with: infinimem ingest SOURCE -o '{path}'"
        ) from error
    except OSError as error:
        raise NotAMemoryFile(
            f"'{path}' cannot be opened ({error.strerror}); name a memory file you may read"
        ) from error
    try:
        handle = safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise NotAMemoryFile(
            f"'{path}' is not a memory file, or was cut off ({error}); restore a copy or ingest the document again"
        ) from error
    with handle as file:
        yield file


def _parsed(path: Path, found: dict[str, str]) -> dict[str, Any]:
    """The metadata, parsed and checked."""
    texts = {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}
    if "format" not in texts:
        raise NotAMemoryFile(f"'{path}' is a safetensors file that infinimem did not write; name a memory file")
    known = {_json(version): _json(layout) for version, layout in {**OLDER, FORMAT: LAYOUT_HASH}.items()}
    if known.get(texts["format"]) != texts.get("layout", ""):
        raise UnsupportedVersion(
            f"'{path}' has format {texts['format']} (layout {texts.get('layout')}); this infinimem reads formats up "
            f"to {FORMAT} (layout {LAYOUT_HASH}); update infinimem or ingest the document again"
        )
    missing = [key for key in LAYOUT["metadata"] if key not in texts]
    if missing:
        raise DamagedMemoryFile(
            f"'{path}' lacks {', '.join(missing)} in its header; restore a copy or ingest the document again"
        )
    sealed = texts.pop("metadata_sha256")
    if _json(_hash_metadata(texts)) != sealed:
        raise DamagedMemoryFile(
            f"the header of '{path}' does not match its checksum; restore a copy or ingest the document again"
        )
    try:
        parsed = {key: strict_json.parse(text) for key, text in texts.items()}
    except ValueError as error:
        raise DamagedMemoryFile(f"the header of '{path}' is not JSON ({error}); restore a copy") from error
    try:
        for migrate in MIGRATIONS[parsed["format"] - 1 :]:
            migrate(parsed)
    except (TypeError, AttributeError) as error:
        raise DamagedMemoryFile(f"the header of '{path}' has fields of the wrong type; restore a copy") from error
    check_types(path, parsed)
    return parsed


def _ordered_header(data: bytes) -> bytes:
    """The same safetensors file with sorted metadata: the library writes metadata in random order.

    The header is padded with spaces, as the format allows, so that files of equal tensors have equal sizes.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_STEP)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _hash_metadata(texts: dict[str, str]) -> str:
    return hashlib.sha256(_json(texts).encode()).hexdigest()


def _hash_tensors(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}:{tensor.dtype.str}:{tensor.shape};".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def check_memory_target(path: Path) -> None:
    """Raise TargetNotWritable or NotReplaced now, where no memory file could be written there later."""
    check_writable(path)
    check_replaceable(path)


def check_replaceable(path: Path) -> None:
    """Raise NotReplaced where a file is there that is neither a memory file nor, by its suffix, a damaged one."""
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return
    except OSError:
        # Writing the file reports what is wrong.
        return
    try:
        with _opened(path) as file:
            ours = f"{PREFIX}format" in (file.metadata() or {})
    except NotAMemoryFile:
        # The file is cut off or damaged, and ingesting the document again must be able to replace it.
        ours = path.suffix in SUFFIXES
    if not ours:
        raise NotReplaced(f"'{path}' is there and is no memory file; name another one, or delete it first")
