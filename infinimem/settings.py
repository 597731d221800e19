"""What a model's memory is made of: rule, segment length, remembering heads, carried tokens, and their defaults."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from .adapter import Adapter
from .errors import InvalidSetting

DEFAULT_RULE = "slots"
DEFAULT_SEGMENT_LENGTH = 512
# Share of the layers, the lowest ones, that go without memory under `slots`: merged slots there harm prose.
SHARE_WITHOUT_SLOTS = 1 / 5
# Tokens that every segment leaves to the next one as they are, where the rule is not the paper's.
DEFAULT_CARRY = 256

# Layers, or layer to KV heads.
MemoryHeads = Collection[int] | Mapping[int, Collection[int]]


class MemorySettings(NamedTuple):
    """What a model's memory is made of; None where the model itself knows the default."""

    rule: str
    settings: dict[str, Any]
    segment_length: int
    heads: MemoryHeads | None
    carry: int | None


def with_defaults(
    adapter: Adapter | None,
    rule: str | None,
    rule_settings: dict[str, Any] | None,
    segment_length: int | None,
    memory_heads: MemoryHeads | None,
    carry: int | None,
) -> MemorySettings:
    """As asked, else as the adapter was trained, else ours."""
    trained = adapter.memory if adapter else {}
    rule = rule or str(trained.get("rule", DEFAULT_RULE))
    if segment_length is None:
        segment_length = int(trained.get("segment_length", DEFAULT_SEGMENT_LENGTH))
    settings = dict(rule_settings or {})
    if rule == trained.get("rule"):
        settings = {**trained.get("rule_settings", {}), **settings}
        if memory_heads is None and "memory_heads" in trained:
            memory_heads = {int(layer): heads for layer, heads in trained["memory_heads"].items()}
        if carry is None and "carry" in trained:
            carry = int(trained["carry"])
    return MemorySettings(rule, settings, segment_length, memory_heads, carry)


def checked_heads(chosen: MemoryHeads, layers: int, heads: int) -> dict[int, list[int]]:
    """Layer to KV heads, both in order. Raises InvalidSetting."""
    named = chosen if isinstance(chosen, Mapping) else {layer: range(heads) for layer in chosen}
    result = {layer: sorted(set(named[layer])) for layer in sorted(named)}
    if not result or not set(result) <= set(range(layers)):
        raise InvalidSetting(f"memory_heads must name layers from 0 to {layers - 1}")
    for layer, members in result.items():
        if not members or not set(members) <= set(range(heads)):
            raise InvalidSetting(f"memory_heads must name KV heads from 0 to {heads - 1} of layer {layer}")
    return result
