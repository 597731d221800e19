"""The settings of a model's memory, passed on as one object. Importing this module loads no torch."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..errors import InvalidSetting, check_names
from .catalogue import find_model
from .directories import NO_ADAPTER

if TYPE_CHECKING:
    import torch

    from ..attention import MemoryRule
    from .adapter import Adapter

DEFAULT_RULE = "slots"
DEFAULT_SEGMENT_LENGTH = 512
# The share of the layers, from the lowest layer up, that have no memory under `slots`: merged slots in these layers
# harm prose.
SHARE_WITHOUT_SLOTS = 1 / 5
# Tokens that every segment carries over to the next segment unchanged, where the rule is not one of the paper's.
DEFAULT_CARRY = 256

# bfloat16 stands for what `pretrained.best_dtype` takes, which is float32 on some processors. int8 takes half the room.
WEIGHTS = ("bfloat16", "int8")
# Only these can be trained.
TRAINABLE = WEIGHTS[0]

# Layers, or layer to KV heads.
MemoryHeads = Collection[int] | Mapping[int, Collection[int]]


@dataclass(frozen=True)
class MemorySettings:
    """What a model's memory is made of, and the adapter and the device of the model; None stands for the default.

    rule: name of a memory rule.
    rule_settings: keyword arguments of the rule's constructor.
    segment_length: most tokens of a segment.
    memory_heads: layers with a memory, or layer to KV heads with a memory.
    carry: number of tokens that each segment carries over to the next segment unchanged.
    device: of the model, such as "cpu" or "cuda:1".
    adapter: a directory, the name of an adapter in the package, an Adapter, or "none".
    weights: how the model's weights are kept in memory, one of WEIGHTS; memories depend on it.
    """

    rule: str | None = None
    rule_settings: dict[str, Any] | None = None
    segment_length: int | None = None
    memory_heads: MemoryHeads | None = None
    carry: int | None = None
    device: str | torch.device | None = None
    adapter: str | os.PathLike[str] | Adapter | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.weights is not None:
            check_names("weights", [self.weights], WEIGHTS)

    def given(self) -> list[str]:
        """Names of the settings that are not left to their defaults."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def make_rule(self) -> MemoryRule:
        """The memory rule. Raises InvalidSetting for a name or a setting that does not exist."""
        from ..attention import make_rule

        return make_rule(self.rule or DEFAULT_RULE, **self.rule_settings or {})

    def resolved(self, adapter: Adapter | None, model: str | os.PathLike[str] | None = None) -> MemorySettings:
        """These settings, with missing settings as the adapter was trained, else as the defaults are.

        adapter: the loaded adapter, which takes the place of its name; None without an adapter.
        model: name of the base model, which decides how weights are kept by default; None for the default model.

        The adapter's rule settings, heads and carried tokens count only under the adapter's own rule. A setting stays
        None where only the model knows its default.
        """
        trained = adapter.memory if adapter else {}
        rule = self.rule or str(trained.get("rule", DEFAULT_RULE))
        length, heads, carry = self.segment_length, self.memory_heads, self.carry
        if length is None:
            length = int(trained.get("segment_length", DEFAULT_SEGMENT_LENGTH))
        settings = dict(self.rule_settings or {})
        if rule == trained.get("rule"):
            settings = {**trained.get("rule_settings", {}), **settings}
            if heads is None and "memory_heads" in trained:
                heads = {int(layer): members for layer, members in trained["memory_heads"].items()}
            if carry is None and "carry" in trained:
                carry = int(trained["carry"])
        # "none" rather than None, which stands for the default model's own adapter.
        used = NO_ADAPTER if adapter is None else adapter
        weights = self.weights or self._default_weights(model)
        return MemorySettings(rule, settings, length, heads, carry, self.device, used, weights)

    def _default_weights(self, model: str | os.PathLike[str] | None) -> str:
        """As the catalogue says; on a GPU, which has no products of 8 bits here, in bfloat16."""
        import torch

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        known = find_model(model)
        return WEIGHTS[0] if known is None or torch.device(device).type != "cpu" else known.weights


def checked_heads(chosen: MemoryHeads, layers: int, heads: int) -> dict[int, list[int]]:
    """Layer to its KV heads, both in ascending order. Raises InvalidSetting for layers or heads that do not exist."""
    named = chosen if isinstance(chosen, Mapping) else {layer: range(heads) for layer in chosen}
    result = {layer: sorted(set(named[layer])) for layer in sorted(named)}
    if not result or not set(result) <= set(range(layers)):
        raise InvalidSetting(f"memory_heads must name layers from 0 to {layers - 1}")
    for layer, members in result.items():
        if not members or not set(members) <= set(range(heads)):
            raise InvalidSetting(f"memory_heads must name KV heads from 0 to {heads - 1} of layer {layer}")
    return result
