"""The layout of the memory file: its versions, the types of its fields and tensors, and migrations of older files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DamagedMemoryFile

PREFIX = "infinimem."


FORMAT = 6
# Versions and layout hashes of older files that can still be read.
OLDER = {
    1: "f7d56d9fb5ca99cc",
    2: "cbbac0acb6313fa5",
    3: "09dadc90982035b4",
    4: "65a23ec9b8ef5a79",
    5: "dc69d3d781d6d465",
}
# What code that reads the file relies on. Every file stores the hash: another layout cannot pass for this version.
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
        "segments.tokens": ["I32", "tokens of the whole segments, in place of all tensors of layers"],
        "tail.tokens": ["I32", "segment length; -1 after the last token"],
        "passages.zlib": ["U8", "bytes of zlib: JSON rows of source, page, title, start, end, text, label"],
        "passages.addresses": ["U8", "words of all passages, the unfinished page's included; 32 is a weight of 1"],
    },
    "metadata": ["format", "layout", "model", "identity", "sources", "reading", "tensors_sha256", "metadata_sha256"],
    "sources": [
        *("name", "kind", "sha256", "pages", "characters", "skipped"),
        *("about", "left_out", "doubtful", "recognized"),
    ],
    "reading": ["tokens", "seen", "pending_text", "cutter", "addresses"],
}
LAYOUT_HASH = hashlib.sha256(json.dumps(LAYOUT, sort_keys=True).encode()).hexdigest()[:16]
LAYER = re.compile("0|[1-9][0-9]{0,3}")
STATE_TENSOR = re.compile(
    r"layers\.(0|[1-9][0-9]{0,3})\.(matrix|normalizer|(?:carried_)?(?:keys|values|keys_scale|values_scale|counts))"
)


def _carry_nothing(parsed: dict[str, Any]) -> None:
    parsed["identity"]["carry"] = 0


def _weigh_no_words(parsed: dict[str, Any]) -> None:
    parsed["reading"]["addresses"] = None


def _leave_nothing_out(parsed: dict[str, Any]) -> None:
    for source in parsed["sources"]:
        source["skipped"] = []


def _keep_states(parsed: dict[str, Any]) -> None:
    """Nothing to change: a file of format 4 has the states of all its segments, as a file of format 5 may have."""


def _know_nothing_about_sources(parsed: dict[str, Any]) -> None:
    parsed["reading"]["cutter"]["label"] = None
    for source in parsed["sources"]:
        source |= {"about": {}, "left_out": {}, "doubtful": [], "recognized": []}


# MIGRATIONS[n - 1] turns metadata of version n into metadata of version n + 1. Past versions never change: append only.
MIGRATIONS: tuple[Callable[[dict[str, Any]], None], ...] = (
    _carry_nothing,
    _weigh_no_words,
    _leave_nothing_out,
    _keep_states,
    _know_nothing_about_sources,
)


# Fields that must be there, and their types; numbers are never negative, nor larger than JSON can hold (2**53 - 1).
IDENTITY_TYPES = {
    "rule": str,
    "rule_settings": dict,
    "segment_length": int,
    "memory_heads": dict,
    "carry": int,
}
SOURCE_TYPES: dict[str, Any] = {"name": str, "kind": str, "sha256": (str, type(None)), "pages": int}
SOURCE_TYPES |= {"characters": int, "skipped": list, "about": dict, "left_out": dict, "doubtful": list}
SOURCE_TYPES |= {"recognized": list}
SKIPPED_TYPES = {"page": (int, type(None)), "reason": str}
DOUBTFUL_TYPES = {"page": int, "reason": str}
RECOGNIZED_TYPES = {"page": int, "percent": int}
READING_TYPES = {"tokens": int, "seen": int, "pending_text": str, "cutter": dict, "addresses": (dict, type(None))}
TERM_WEIGHTS_TYPES: dict[str, Any] = {"head": str, "done": int}
TERM_WEIGHTS_TYPES |= dict.fromkeys(("sizes", "starts", "ends", "weights", "tail"), list)
CUTTER_TYPES = {"source": str, "page": int, "title": (str, type(None)), "offset": int, "pending": str}
CUTTER_TYPES |= {"label": (str, type(None))}


def check_types(path: Path, parsed: dict[str, Any]) -> None:
    """Raise DamagedMemoryFile where a field of the metadata has the wrong type."""

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
            fits(source, SOURCE_TYPES)
            and all(fits(part, SKIPPED_TYPES) for part in source["skipped"])
            and all(fits(page, DOUBTFUL_TYPES) for page in source["doubtful"])
            and all(fits(page, RECOGNIZED_TYPES) for page in source["recognized"])
            and fits(source["about"], dict.fromkeys(source["about"], str))
            and fits(source["left_out"], dict.fromkeys(source["left_out"], int))
            for source in parsed["sources"]
        ),
        "reading": fits(parsed["reading"], READING_TYPES)
        and fits(parsed["reading"]["cutter"], CUTTER_TYPES)
        and _are_term_weights(parsed["reading"]["addresses"], fits),
    }
    wrong = [name for name, right in sound.items() if not right]
    if wrong:
        raise DamagedMemoryFile(f"'{path}' has fields of the wrong type in {', '.join(wrong)}; restore a copy")


def _are_term_weights(value: Any, fits: Callable[[Any, dict[str, Any]], bool]) -> bool:
    if value is None:
        return True
    if not fits(value, TERM_WEIGHTS_TYPES):
        return False
    numbers = [number for name, kind in TERM_WEIGHTS_TYPES.items() if kind is list for number in value[name]]
    sound = all(type(number) is int and 0 <= number < 1 << 53 for number in numbers)
    return sound and all(weight < 256 for weight in value["weights"])


def check_tensors(path: Path, file: Any, segment_length: int) -> None:
    """Check names, types and shapes of all tensors, before anything is allocated. Raises DamagedMemoryFile.

    The shapes within a layer must fit each other. Whether they fit the model is checked where the model is known.
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
                "ingest the document again"
            )
    if "tail.tokens" not in sizes:
        raise DamagedMemoryFile(f"'{path}' lacks the unfinished segment; restore a copy or ingest the document again")
