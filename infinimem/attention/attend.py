"""The attention function, and the hooks that connect it to a stock transformers model.

- `attached(model, ...)` / `attach(model, ...)`: registers nothing but a new name in transformers' attention registry,
  puts two hooks on each attention module of this one model, and takes all of it back on `detach()`
- with no `InfiniCache`, or while its memory is empty, the model's own attention function runs on its own arguments:
  same bits as the unmodified model
- what a forward needs (the cache layer, the rotation tables) travels in a thread-local set by the hooks, so one model
  can serve many threads with different memories
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import InvalidSetting, NoRotaryEmbedding
from .cache import InfiniCache, InfiniLayer
from .local import attention_with_mass
from .rotary import Tables, compose, inverse, rotate
from .rules import LinearRule, MemoryRule

# Families whose layers turn all queries and keys in halves, or say where they do not (`use_rope`). Others do so on
# conditions of their own, interleave the pairs, or have sinks beside the softmax; un-rotating them would be wrong.
FAMILIES = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})

_active = threading.local()


class _Forward:
    """What one attention module's forward works with."""

    __slots__ = ("far", "layer", "tables")

    def __init__(self, layer: InfiniLayer, tables: Tables | None, far: Tables | None) -> None:
        self.layer = layer
        self.tables = tables  # rotation of this forward's tokens; None for a layer without rotation
        self.far = far  # rotation at the rule's virtual distance, (1, 1, R) each


class MemoryGate(nn.Module):
    """Equation 10's gate: one beta per query head; sigmoid(beta) is the share of the memory."""

    def __init__(self, heads: int, initial: float) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((heads,), initial))

    def forward(self) -> Tensor:
        """Share of the memory, (H,) float32."""
        return torch.sigmoid(self.beta.float())


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    base: Callable[..., Any],
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Local causal attention joined with the memory of the active `InfiniCache`.

    query: (B, H, T, D) rotated; key, value: (B, G, S, D) rotated, the window with the new tokens at its end.
    base: the model's own attention function. Returns (B, T, H, Dv), as transformers expects.
    """
    forward: _Forward | None = getattr(_active, "forward", None)
    if forward is None or not forward.layer.remembers:
        return base(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    layer, rule = forward.layer, forward.layer.rule
    undo = None if forward.tables is None else inverse(forward.tables)
    if layer.recording:
        new = layer.of_heads(key[:, :, -query.shape[2] :])
        layer.record(new.float() if undo is None else rotate(new, *undo))
    if layer.state is None or layer.seen is None:
        return base(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]

    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    softcap = kwargs.get("softcap")
    written = (layer.seen > 0)[:, None, None, None]  # (B, 1, 1, 1)
    group = query.shape[1] // key.shape[1]  # query heads per KV head
    asking = layer.of_heads(query, group)  # (B, R * group, T, D)
    if rule.gated:
        content = asking.float() if undo is None else rotate(asking, *undo)
        state = layer.prepared(torch.float32)
        memory = rule.read(state, content, scaling, softcap).values  # (B, R * group, T, Dv)
        local, weights = base(module, query, key, value, attention_mask, **kwargs)
        share = layer.of_heads(module.memory_gate()[None, :, None, None], group) * written
        return _join(layer, local.transpose(1, 2), memory, share, group).transpose(1, 2), weights

    # The CPU's fused kernel is faster in float32 than in bfloat16, products of such small heads included.
    dtype = torch.float32 if query.device.type == "cpu" else query.dtype
    if undo is not None and forward.far is not None:
        asking = rotate(asking, *compose(undo, forward.far))
    far, far_mass = rule.read(layer.prepared(dtype), asking.to(dtype), scaling, softcap)
    if far_mass is None:
        raise TypeError(f"rule {rule.name!r} has neither a gate nor a mass")
    local, local_mass = attention_with_mass(
        query.to(dtype),
        _per_query_head(key.to(dtype), query),
        _per_query_head(value.to(dtype), query),
        _bias(attention_mask, dtype),
        scaling,
        softcap,
        causal=attention_mask is None and query.shape[2] > 1,
    )
    # The memory's part of one softmax over both, (B, R * group, T, 1).
    share = torch.sigmoid(far_mass - layer.of_heads(local_mass, group)).unsqueeze(-1)
    share = torch.where(written, share, 0.0)
    return _join(layer, local, far, share, group).transpose(1, 2).to(query.dtype), None


def _join(layer: InfiniLayer, local: Tensor, memory: Tensor, share: Tensor, group: int) -> Tensor:
    """`local` (B, H, T, Dv) with `share` of `memory` (B, R * group, T, Dv) mixed into the remembering heads."""
    part = layer.of_heads(local, group)
    mixed = torch.lerp(part.to(memory.dtype), memory, share.to(memory.dtype)).to(local.dtype)
    return layer.put_heads(local, mixed, group)


def _per_query_head(x: Tensor, query: Tensor) -> Tensor:
    return x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask if mask is None else mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))


def attention_modules(model: PreTrainedModel) -> list[Any]:
    """The self-attention modules of a decoder, in layer order.

    Raises NoRotaryEmbedding where the model has none that this package can work with.
    """
    kind = model.config.get_text_config().model_type
    if kind not in FAMILIES:
        raise NoRotaryEmbedding(
            f"{type(model).__name__} ({kind}) is not one of the families whose rotary position embeddings infinimem "
            f"undoes; choose a model of: {', '.join(sorted(FAMILIES))}"
        )
    return [layer.self_attn for layer in model.get_decoder().layers]


class Attachment:
    """A model with the infinimem attention switched on; `detach()` (or leaving the `with`) gives it back untouched."""

    def __init__(self, model: PreTrainedModel, rule: MemoryRule) -> None:
        self.model = model
        self.rule = rule
        self.modules = attention_modules(model)
        self._base = model.config._attn_implementation
        if self._base.startswith("infinimem_"):
            raise InvalidSetting("this model has an infinimem attention already; close the InfiniModel around it first")
        if self._base not in ("eager", "sdpa"):
            raise InvalidSetting(
                f"attention '{self._base}' has no memory; load the model with attn_implementation='sdpa'"
            )
        self._handles: list[Any] = []
        self._far: dict[tuple[int, int], Tables] = {}
        self._switch_on()

    def _switch_on(self) -> None:
        rule, model = self.rule, self.model
        home = type(self.modules[0]).__module__
        # Each family has an eager function of its own, and the registry is one for all models.
        name = f"infinimem_{self._base}_{home.rpartition('.')[2]}"
        own = sys.modules[home].eager_attention_forward
        base = ALL_ATTENTION_FUNCTIONS.get_interface(self._base, own)
        AttentionInterface.register(name, partial(attend, base=base))
        AttentionMaskInterface.register(name, AttentionMaskInterface()[self._base])
        model.set_attn_implementation(name)
        for module in self.modules:
            if rule.gated:
                weight = next(module.parameters())
                heads = model.config.get_text_config().num_attention_heads
                initial = rule.gate if isinstance(rule, LinearRule) else 0.0
                module.add_module("memory_gate", MemoryGate(heads, initial).to(weight.device))
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(_leave, always_call=True))

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _active.forward = None
        cache = kwargs.get("past_key_values")
        if isinstance(cache, InfiniCache):
            index = module.layer_idx
            tables = kwargs.get("position_embeddings") if rotates(module) else None
            _active.forward = _Forward(cache.layers[index], tables, self._far_tables(module, cache.rule.distance))

    def _far_tables(self, module: Any, distance: int | None) -> Tables | None:
        """Tables of the rotation by the virtual distance, scaled as keys at position 0 would be too."""
        if distance is None or not rotates(module):
            return None
        key = (id(module), distance)
        if key not in self._far:
            rotary = self.model.get_decoder().rotary_emb
            device = next(module.parameters()).device
            x = torch.zeros(1, 1, 1, device=device)
            position = torch.tensor([[0, distance]], device=device)
            layer_type = getattr(module, "layer_type", None)
            per_type = hasattr(rotary, f"{layer_type}_inv_freq")
            cos, sin = rotary(x, position, layer_type) if per_type else rotary(x, position)
            self._far[key] = (cos[:, 1:] * cos[:, :1], sin[:, 1:] * cos[:, :1])
        return self._far[key]

    def detach(self) -> None:
        """Remove hooks and gates, and give the model its own attention function back."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for module in self.modules:
            if "memory_gate" in module._modules:
                del module.memory_gate
        self.model.set_attn_implementation(self._base)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()


def rotates(module: nn.Module) -> bool:
    """Whether this attention module turns its queries and keys (SmolLM3 leaves some layers without)."""
    return bool(getattr(module, "use_rope", True))


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    _active.forward = None
