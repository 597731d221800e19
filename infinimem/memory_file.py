"""The memory file: one safetensors file, written whole or not at all, refused if a byte of it changed.

Tensors
    layers.{i}.{name}   the state of layer i, (R, ...) for its R KV heads with a memory
    layers.{i}.carried_{name}   its last tokens as they are, (G, W, ...) for all G KV heads
    tail.tokens         tokens of the unfinished segment, int32
    passages.zlib       the passages, compressed, uint8 (only if there are passages)
    passages.addresses  the weight of each of their words, a byte each (only if the model weighs words)
Metadata: JSON strings under the prefix `infinimem.`
    format, layout      version, and the hash of the layout it stands for
    model, identity     name of the model; everything that the state depends on
    adapter             name or directory of the adapter; absent if there was none
    sources, reading    what was read (SHA-256, pages, characters, what was left out); what is needed to read on
    tensors_sha256      over names, types, shapes and bytes of all tensors, in name order
    metadata_sha256     over all other metadata

This module needs neither torch nor a model.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import strict_json
from .errors import (
    DamagedMemoryFile,
    FileInUse,
    MemoryFileNotFound,
    NotAMemoryFile,
    NotReplaced,
    TargetNotWritable,
    UnsupportedVersion,
)

PREFIX = "infinimem."
HEADER_STEP = 1 << 14  # bytes
# Of memory files and of what an interrupted reading leaves.
SUFFIXES = (".safetensors", ".partial")
FORMAT = 4
# Layouts of older versions that can still be read.
OLDER = {1: "f7d56d9fb5ca99cc", 2: "cbbac0acb6313fa5", 3: "09dadc90982035b4"}
# What a reader of the file relies on. Its hash is stored: a file whose layout differs cannot pass for this version.
LAYOUT: dict[str, Any] = {
    "tensors": {
        "layers.*.matrix": ["F32", "memory heads", "key width", "value width"],
        "layers.*.normalizer": ["F32", "memory heads", "key width"],
        "layers.*.keys": ["F32 F16 I8", "memory heads", "slots", "key width"],
        "layers.*.keys_scale": ["F32", "memory heads", "slots; times a step of int8 keys"],
        "layers.*.values": ["F32 F16 I8", "memory heads", "slots", "value width"],
        "layers.*.values_scale": ["F32", "memory heads", "slots; times a step of int8 values"],
        "layers.*.counts": ["F32", "memory heads", "slots"],
        "layers.*.carried_keys": ["F32 F16 I8", "heads", "tokens", "key width"],
        "layers.*.carried_keys_scale": ["F32", "heads", "tokens; times a step of int8 keys"],
        "layers.*.carried_values": ["F32 F16 I8", "heads", "tokens", "value width"],
        "layers.*.carried_values_scale": ["F32", "heads", "tokens; times a step of int8 values"],
        "layers.*.carried_counts": ["F32", "heads", "tokens; 1 each"],
        "tail.tokens": ["I32", "segment length; -1 after the last token"],
        "passages.zlib": ["U8", "bytes of zlib: JSON rows of source, page, title, start, end, text"],
        "passages.addresses": ["U8", "words of all passages, the unfinished page's included; 32 is a weight of 1"],
    },
    "metadata": ["format", "layout", "model", "identity", "sources", "reading", "tensors_sha256", "metadata_sha256"],
    "sources": ["name", "kind", "sha256", "pages", "characters", "skipped"],
    "reading": ["tokens", "seen", "pending_text", "cutter", "addresses"],
}
LAYOUT_HASH = hashlib.sha256(json.dumps(LAYOUT, sort_keys=True).encode()).hexdigest()[:16]
LAYER = re.compile("0|[1-9][0-9]{0,3}")
STATE_TENSOR = re.compile(
    r"layers\.(0|[1-9][0-9]{0,3})\.(matrix|normalizer|(?:carried_)?(?:keys|values|keys_scale|values_scale|counts))"
)
NEVER_NEGATIVE = ("counts", "normalizer", "scale")
# Far above what any model makes of any document, and far enough below what float32 can hold that products stay finite.
LARGEST_VALUE = 1e13
# A file of this size is no memory; a copy of it may not fit into memory.
MAX_FILE_BYTES = 1 << 36


@dataclass
class MemoryFile:
    """The content of a memory file: state tensors by layer and name, the tail, the passages, and the metadata."""

    model: str
    identity: dict[str, Any]
    sources: list[dict[str, Any]]
    reading: dict[str, Any]
    states: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    tail: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    passages: np.ndarray | None = None
    addresses: np.ndarray | None = None
    adapter: str = "none"
    format: int = FORMAT

    @property
    def memory_bytes(self) -> int:
        """Bytes of the compressive memory and of the carried tokens."""
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
        if self.passages is not None:
            tensors["passages.zlib"] = self.passages
        if self.addresses is not None:
            tensors["passages.addresses"] = self.addresses
        return tensors

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write to `path`: into a temporary file beside it, to the disk, then in one rename. Returns the bytes.

        Raises TargetNotWritable, NotReplaced; the old file, if any, is then as it was.
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
            _check_tensors(place, file, raw["identity"]["segment_length"])
            for name in file.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                tensors[name] = file.get_tensor(name)
        except (SafetensorError, OSError, MemoryError) as error:
            raise DamagedMemoryFile(
                f"'{place}' is damaged ({error}); restore a copy or read the document again"
            ) from error
    if _hash_tensors(tensors) != raw["tensors_sha256"]:
        raise DamagedMemoryFile(f"the tensors in '{place}' do not have their checksum; restore a copy or read again")
    memory = MemoryFile(raw["model"], raw["identity"], raw["sources"], raw["reading"])
    memory.adapter, memory.format = raw.get("adapter", memory.adapter), raw["format"]
    for name, tensor in tensors.items():
        if match := STATE_TENSOR.fullmatch(name):
            # NaN is not at most anything; in float16 the bound would be infinite.
            sound = tensor.dtype == np.int8 or bool((np.abs(tensor.astype(np.float32)) <= LARGEST_VALUE).all())
            if not sound or (match[2].endswith(NEVER_NEGATIVE) and (tensor < 0).any()):
                raise DamagedMemoryFile(f"'{name}' in '{place}' has values that no memory can have; read again")
            if match[2] == "carried_counts" and (tensor != 1).any():
                raise DamagedMemoryFile(f"'{name}' in '{place}' counts a token other than once; read again")
            memory.states.setdefault(int(match[1]), {})[match[2]] = tensor
    memory.states = dict(sorted(memory.states.items()))
    tail = tensors.get("tail.tokens", memory.tail)
    memory.tail = tail[: int(np.argmax(tail == -1))] if (tail == -1).any() else tail
    memory.passages = tensors.get("passages.zlib")
    memory.addresses = tensors.get("passages.addresses")
    if (memory.addresses is None) != (memory.reading["addresses"] is None):
        raise DamagedMemoryFile(f"'{place}' has one half of its passages' addresses; restore a copy or read again")
    return memory


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The safetensors file, mapped once: what is read from it is of one version, also while it is replaced."""
    from safetensors import SafetensorError, safe_open

    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise NotAMemoryFile(f"'{path}' is no regular file; name a memory file")
        if found.st_size > MAX_FILE_BYTES:
            raise NotAMemoryFile(
                f"'{path}' has {found.st_size:,} bytes, more than fit into memory or any memory file "
                f"needs ({MAX_FILE_BYTES:,}); restore a copy or read again"
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
            f"'{path}' is not a memory file, or one that was cut off ({error}); restore a copy or read again"
        ) from error
    with handle as file:
        yield file


def _parsed(path: Path, found: dict[str, str]) -> dict[str, Any]:
    """The metadata, parsed and checked."""
    texts = {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}
    if "format" not in texts:
        raise NotAMemoryFile(f"'{path}' is a safetensors file, but infinimem did not write it")
    known = {_json(version): _json(layout) for version, layout in {**OLDER, FORMAT: LAYOUT_HASH}.items()}
    if known.get(texts["format"]) != texts.get("layout", ""):
        raise UnsupportedVersion(
            f"'{path}' has format {texts['format']} (layout {texts.get('layout')}); this infinimem reads format "
            f"{FORMAT} (layout {LAYOUT_HASH}); update infinimem or read the document again"
        )
    missing = [key for key in LAYOUT["metadata"] if key not in texts]
    if missing:
        raise DamagedMemoryFile(f"'{path}' lacks {', '.join(missing)} in its header; restore a copy or read again")
    sealed = texts.pop("metadata_sha256")
    if _json(_hash_metadata(texts)) != sealed:
        raise DamagedMemoryFile(f"the header of '{path}' does not have its checksum; restore a copy or read again")
    try:
        parsed = {key: strict_json.parse(text) for key, text in texts.items()}
    except ValueError as error:
        raise DamagedMemoryFile(f"the header of '{path}' is not JSON ({error}); restore a copy") from error
    try:
        for migrate in MIGRATIONS[parsed["format"] - 1 :]:
            migrate(parsed)
    except (TypeError, AttributeError) as error:
        raise DamagedMemoryFile(f"the header of '{path}' has fields of the wrong type; restore a copy") from error
    _check_types(path, parsed)
    return parsed


def _carry_nothing(parsed: dict[str, Any]) -> None:
    parsed["identity"]["carry"] = 0


def _weigh_no_words(parsed: dict[str, Any]) -> None:
    parsed["reading"]["addresses"] = None


def _leave_nothing_out(parsed: dict[str, Any]) -> None:
    for source in parsed["sources"]:
        source["skipped"] = []


# MIGRATIONS[n - 1] makes metadata of version n those of version n + 1. What a version was never changes: append only.
MIGRATIONS: tuple[Callable[[dict[str, Any]], None], ...] = (_carry_nothing, _weigh_no_words, _leave_nothing_out)


# Fields that a reader relies on, and their types; numbers are never negative, nor larger than JSON can hold.
IDENTITY_TYPES = {
    "rule": str,
    "rule_settings": dict,
    "segment_length": int,
    "memory_heads": dict,
    "carry": int,
}
SOURCE_TYPES: dict[str, Any] = {"name": str, "kind": str, "sha256": (str, type(None)), "pages": int}
SOURCE_TYPES |= {"characters": int, "skipped": list}
SKIPPED_TYPES = {"page": (int, type(None)), "reason": str}
READING_TYPES = {"tokens": int, "seen": int, "pending_text": str, "cutter": dict, "addresses": (dict, type(None))}
ADDRESSES_TYPES: dict[str, Any] = {"head": str, "done": int}
ADDRESSES_TYPES |= dict.fromkeys(("sizes", "starts", "ends", "weights", "tail"), list)
CUTTER_TYPES = {"source": str, "page": int, "title": (str, type(None)), "offset": int, "pending": str}


def _check_types(path: Path, parsed: dict[str, Any]) -> None:
    def fits(value: Any, types: dict[str, Any], exactly: bool = True) -> bool:
        return (
            isinstance(value, dict)
            and (set(value) == set(types) if exactly else set(types) <= set(value))
            # To Python, a boolean is an integer.
            and all(isinstance(value[name], kind) and not isinstance(value[name], bool) for name, kind in types.items())
            and all(0 <= value[name] < 1 << 53 for name, kind in types.items() if kind is int)
        )

    sound = {
        "model": isinstance(parsed["model"], str),
        "adapter": isinstance(parsed.get("adapter", "none"), str),
        "identity": fits(parsed["identity"], IDENTITY_TYPES, exactly=False)
        and all(
            LAYER.fullmatch(layer) and isinstance(heads, list) and all(type(head) is int for head in heads)
            for layer, heads in parsed["identity"]["memory_heads"].items()
        ),
        "sources": isinstance(parsed["sources"], list)
        and all(
            fits(source, SOURCE_TYPES) and all(fits(part, SKIPPED_TYPES) for part in source["skipped"])
            for source in parsed["sources"]
        ),
        "reading": fits(parsed["reading"], READING_TYPES)
        and fits(parsed["reading"]["cutter"], CUTTER_TYPES)
        and _are_addresses(parsed["reading"]["addresses"], fits),
    }
    wrong = [name for name, right in sound.items() if not right]
    if wrong:
        raise DamagedMemoryFile(f"'{path}' has fields of the wrong type in {', '.join(wrong)}; restore a copy")


def _are_addresses(value: Any, fits: Callable[[Any, dict[str, Any]], bool]) -> bool:
    if value is None:
        return True
    if not fits(value, ADDRESSES_TYPES):
        return False
    numbers = [number for name, kind in ADDRESSES_TYPES.items() if kind is list for number in value[name]]
    sound = all(type(number) is int and 0 <= number < 1 << 53 for number in numbers)
    return sound and all(weight < 256 for weight in value["weights"])


def _check_tensors(path: Path, file: Any, segment_length: int) -> None:
    """Names, types and shapes, before anything is allocated: those that a layer's tensors can have beside each other.

    Whether they are the model's is for the model to say.
    """
    sizes: dict[str, dict[str, int]] = {}
    for name in file.keys():  # noqa: SIM118 (a safetensors handle is no dict)
        match, part = STATE_TENSOR.fullmatch(name), file.get_slice(name)
        dtype, shape = part.get_dtype(), part.get_shape()
        allowed = LAYOUT["tensors"].get("layers.*." + match[2] if match else name)
        if allowed is None or dtype not in allowed[0].split():
            raise DamagedMemoryFile(
                f"'{path}' holds a tensor '{name}' of type {dtype}, which no format up to {FORMAT} has"
            )
        dimensions = [dimension.split(";")[0] for dimension in allowed[1:]]
        known = sizes.setdefault(f"layer {match[1]}" if match else name, {"segment length": segment_length})
        if match and match[2].startswith("carried_"):
            known = sizes.setdefault(f"the carried tokens of layer {match[1]}", {})
        if len(shape) != len(dimensions) or any(
            known.setdefault(dimension, size) != size for dimension, size in zip(dimensions, shape, strict=True)
        ):
            raise DamagedMemoryFile(
                f"'{name}' in '{path}' has the shape {tuple(shape)[:9]}, which does not fit the other tensors; "
                "read again"
            )
    if "tail.tokens" not in sizes:
        raise DamagedMemoryFile(f"'{path}' lacks the unfinished segment; restore a copy or read again")


def _ordered_header(data: bytes) -> bytes:
    """The same safetensors file with its metadata sorted: the library writes them in random order.

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


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that others see the old content or the new, also after a crash. Raises TargetNotWritable.

    A link is followed: the file it leads to is replaced. The old file's mode bits stay; a new one's follow the umask.
    """
    temporary: Path | None = None
    try:
        target = _regular_target(path)
        temporary = _temporary_beside(target)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o777)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise TargetNotWritable(
            f"'{path}' cannot be written ({error.strerror or error}); choose another place"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    _sync_directory(target.parent)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], wait: float = 0) -> Iterator[None]:
    """Keep other writers of this file away; readers need no lock. A writer that dies leaves no lock behind.

    wait: seconds to wait for another writer. A thread that holds the lock may take it again. Raises FileInUse,
    TargetNotWritable.
    """
    from filelock import FileLock, Timeout

    try:
        target = _regular_target(Path(path))
        # The library would make the directory.
        target.parent.stat()
        lock = FileLock(target.with_name(f".{target.name[:100]}.lock"), is_singleton=True)
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise FileInUse(f"'{path}' is being written by another process; wait for it, or name another file") from error
    except OSError as error:
        raise TargetNotWritable(
            f"'{path}' cannot be written ({error.strerror or error}); choose another place"
        ) from error
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            # While it is held: whoever opened it before finds out that it is no longer there, and tries again.
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def version_of(path: Path) -> tuple[int, ...] | None:
    """What changes whenever someone writes the file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def check_writable(path: Path) -> None:
    """Raise TargetNotWritable now rather than after an hour of reading; leaves nothing behind."""
    try:
        _temporary_beside(_regular_target(path)).unlink()
    except OSError as error:
        raise TargetNotWritable(
            f"'{path}' cannot be written ({error.strerror or error}); choose another place"
        ) from error


def check_memory_target(path: Path) -> None:
    """Raise TargetNotWritable or NotReplaced now, where no memory file could be written there later."""
    check_writable(path)
    check_replaceable(path)


def check_replaceable(path: Path) -> None:
    """Raise NotReplaced where there is a file that is no memory file, and does not look as if it had been one."""
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return
    except OSError:
        # What is wrong with it is said by whoever writes.
        return
    try:
        with _opened(path) as file:
            ours = f"{PREFIX}format" in (file.metadata() or {})
    except NotAMemoryFile:
        # Cut off or damaged: reading the document again is what helps.
        ours = path.suffix in SUFFIXES
    if not ours:
        raise NotReplaced(f"'{path}' is there and is no memory file; name another one, or delete it first")


def make_directory(path: Path) -> None:
    """Make a directory and those above it, unless they are there. Raises TargetNotWritable."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TargetNotWritable(
            f"the directory '{path}' cannot be made ({error.strerror or error}); choose another place"
        ) from error


def _regular_target(path: Path) -> Path:
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise TargetNotWritable(f"'{path}' is no regular file; give the name of a file")
    return target


def _temporary_beside(target: Path) -> Path:
    """A new, empty file in the same directory, with the mode bits that the umask gives."""
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def remove_strays(path: Path) -> None:
    """Remove what writers of this file that were killed have left beside it. No other may be writing it now."""
    target = Path(os.path.realpath(path))
    for stray in target.parent.glob(f".{glob.escape(target.name[:100])}.{'[0-9a-f]' * 16}.tmp"):
        stray.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make the rename last; where the system does not let us, the file is in place all the same."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def differences(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Fields in which two identities differ, readable, nested ones by their path."""
    found = []
    for key in sorted({*mine, *other}):
        a, b = mine.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{key}.{line}" for line in differences(a, b)]
        elif a != b:
            found.append(f"{key}: {_short(a)} in the file, {_short(b)} here")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 40 else f"{text[:12]}…"
