"""Infini-attention on a stock transformers model: hooks that are put on and taken off again.

- `Attachment` registers one new name in transformers' attention registry and puts two hooks on each attention module
  of one model; `detach()` removes the hooks and restores the model's own attention
- the hooks hand each forward what it needs (see attend.py): the cache layer and the rotation tables
"""

from __future__ import annotations

import sys
from collections.abc import Sequence, Set
from copy import deepcopy
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import InvalidSetting, NoRotaryEmbedding
from . import fused
from .attend import Forward, MemoryGate, SeenEnough, active, attend
from .cache import InfiniCache
from .rotary import Tables, Turns, rotate
from .rules.base import GatedRule, MemoryRule

# Families whose layers rotate all queries and keys, with pairs made of the two halves of a head, or say where they do
# not rotate (`use_rope`). Other families rotate under other conditions, interleave the pairs, or add sinks to the
# softmax; undoing the rotation would be wrong there.
FAMILIES = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})


def attention_modules(model: PreTrainedModel) -> list[Any]:
    """The self-attention modules of a decoder, in layer order.

    Raises NoRotaryEmbedding where the model is not of a family in FAMILIES.
    """
    kind = model.config.get_text_config().model_type
    if kind not in FAMILIES:
        raise NoRotaryEmbedding(
            f"infinimem cannot undo the rotary position embeddings of {type(model).__name__} ({kind}); "
            f"choose a model of one of these families: {', '.join(sorted(FAMILIES))}"
        )
    return [layer.self_attn for layer in model.get_decoder().layers]


class Attachment:
    """Switches the infinimem attention on in a model; `detach()`, or the end of a `with` block, restores the model.

    Raises NoRotaryEmbedding where the model is not of a family in FAMILIES, and InvalidSetting where the model has this
    attention already, or another attention that cannot have a memory.
    """

    def __init__(self, model: PreTrainedModel, rule: MemoryRule) -> None:
        self.model = model
        self.rule = rule
        self.modules = attention_modules(model)
        self._base = model.config._attn_implementation
        if self._base.startswith("infinimem_"):
            raise InvalidSetting("this model has an infinimem attention already; close the InfiniModel around it first")
        if self._base not in ("eager", "sdpa"):
            raise InvalidSetting(
                f"attention '{self._base}' cannot have a memory; load the model with attn_implementation='sdpa'"
            )
        self._handles: list[Any] = []
        self._fused: list[Any] = []
        # Rotation tables at the virtual distance, and for the positions before a segment. Each kind of layer has its
        # tables, because kinds may differ in their frequencies.
        self._far: dict[tuple[object, int], Tables] = {}
        self._before: dict[object, tuple[range, Tables]] = {}
        self._switch_on()

    def _switch_on(self) -> None:
        rule, model = self.rule, self.model
        home = type(self.modules[0]).__module__
        # Each family has its own eager function, but all models share one registry, so the name contains the family.
        name = f"infinimem_{self._base}_{home.rpartition('.')[2]}"
        own = sys.modules[home].eager_attention_forward
        base = ALL_ATTENTION_FUNCTIONS.get_interface(self._base, own)
        AttentionInterface.register(name, partial(attend, base=base))
        AttentionMaskInterface.register(name, AttentionMaskInterface()[self._base])
        model.set_attn_implementation(name)
        decoder = model.get_decoder()
        self._fused = fused.put_on(decoder)
        fused.put_on_family(sys.modules[home])
        self._handles.append(decoder.register_forward_pre_hook(_begin, with_kwargs=True))
        self._handles.append(decoder.register_forward_hook(_end, always_call=True))
        for module in self.modules:
            if isinstance(rule, GatedRule):
                weight = next(module.parameters())
                heads = model.config.get_text_config().num_attention_heads
                module.add_module("memory_gate", MemoryGate(heads, rule.gate).to(weight.device))
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(_leave, always_call=True))

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        active.forward = None
        cache = kwargs.get("past_key_values")
        if isinstance(cache, InfiniCache):
            index = module.layer_idx
            if index == cache.watched:
                cache.noted = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
                if cache.enough:
                    raise SeenEnough
            tables = kwargs.get("position_embeddings") if rotates(module) else None
            active.forward = Forward(
                cache.layers[index],
                None if tables is None else _turns(tables),
                self._far_tables(module, cache.rule.distance),
                partial(self._turned_before, module, cache.layers[index].prefix),
            )

    def _far_tables(self, module: Any, distance: int | None) -> Tables | None:
        """Tables of the rotation by the virtual distance; None without a distance or a rotation.

        They hold the scale of the tables twice, for the query and for the key: keys in the memory are not scaled.
        """
        if distance is None or not rotates(module):
            return None
        key = (_kind(module), distance)
        if key not in self._far:
            cos, sin = self._tables(module, [0, distance])
            with torch.inference_mode(False):
                self._far[key] = (cos[:, 1:] * cos[:, :1], sin[:, 1:] * cos[:, :1])
        return self._far[key]

    def _turned_before(self, module: Any, start: int, keys: Tensor) -> Tensor:
        """Position-free keys (B, G, W, D), rotated to the W positions before position `start`."""
        if not rotates(module):
            return keys
        kind, places = _kind(module), range(start - keys.shape[2], start)
        known = self._before.get(kind)
        if known is None or known[0] != places:
            known = self._before[kind] = (places, self._tables(module, places))
        return rotate(keys, *known[1])

    def _tables(self, module: Any, positions: Sequence[int]) -> Tables:
        """The model's own tables for these positions, (1, N, R) float32."""
        rotary = self.model.get_decoder().rotary_emb
        device = next(module.parameters()).device
        layer_type = getattr(module, "layer_type", None)
        per_type = hasattr(rotary, f"{layer_type}_inv_freq")
        # The tables are kept, and training cannot use tensors that were made in inference mode.
        with torch.inference_mode(False):
            x = torch.zeros(1, 1, 1, device=device)
            places = torch.tensor([list(positions)], device=device)
            found: Tables = rotary(x, places, layer_type) if per_type else rotary(x, places)
        return found

    def twin(self, own: Set[str]) -> Attachment:
        """The same attachment on a second network, which copies the parameters in `own` and shares all others.

        own: names of the parameters and buffers that the second network gets as its own copies.
        """
        tensors = chain(self.model.named_parameters(), self.model.named_buffers())
        shared = {id(tensor): tensor for name, tensor in tensors if name not in own}
        other = deepcopy(self, {**shared, id(self.rule): self.rule})
        other._far, other._before = {}, {}
        return other

    def detach(self) -> None:
        """Remove hooks and gates, and restore the model's own attention function."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        fused.take_off(self._fused)
        for module in self.modules:
            if "memory_gate" in module._modules:
                del module.memory_gate
        self.model.set_attn_implementation(self._base)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()


def rotates(module: nn.Module) -> bool:
    """Whether this attention module rotates its queries and keys (some layers of SmolLM3 do not)."""
    return bool(getattr(module, "use_rope", True))


def _kind(module: nn.Module) -> object:
    """A key that is equal for layers with equal rotation tables."""
    return getattr(module, "layer_type", None), next(module.parameters()).device


def _turns(tables: Tables) -> Turns:
    """The `Turns` of the tables, made once per forward: all of its layers are given the same `tables` object."""
    known: Turns | None = getattr(active, "turns", None)
    if known is None or known.tables is not tables:
        known = active.turns = Turns(tables)
    return known


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    active.forward = None


def _begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    cache = kwargs.get("past_key_values")
    active.fused = isinstance(cache, InfiniCache) and cache.rounds


def _end(module: nn.Module, args: Any, output: Any) -> None:
    active.fused = False
