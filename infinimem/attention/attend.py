"""The attention function, and the hooks that connect it to a stock transformers model.

- `attached(model, ...)` / `attach(model, ...)`: registers nothing but a new name in transformers' attention registry,
  puts two hooks on each attention module of this one model, and takes all of it back on `detach()`
- with no `InfiniCache`, or while nothing of the past is in it, the model's own attention function runs on its own
  arguments: same bits as the unmodified model
- what a forward needs (the cache layer, the rotation tables) travels in a thread-local set by the hooks, so one model
  can serve many threads with different memories
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import InvalidSetting, NoRotaryEmbedding
from .cache import InfiniCache, InfiniLayer
from .carried import too_far
from .local import attention_with_mass
from .rotary import Tables, compose, inverse, rotate
from .rules import LinearRule, MemoryRule

# Families whose layers turn all queries and keys in halves, or say where they do not (`use_rope`). Others do so on
# conditions of their own, interleave the pairs, or have sinks beside the softmax; un-rotating them would be wrong.
FAMILIES = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})

_active = threading.local()


class _Forward:
    """What one attention module's forward works with."""

    __slots__ = ("before", "far", "layer", "tables")

    def __init__(
        self, layer: InfiniLayer, tables: Tables | None, far: Tables | None, before: Callable[[Tensor], Tensor]
    ) -> None:
        self.layer = layer
        self.tables = tables  # rotation of this forward's tokens; None for a layer without rotation
        self.far = far  # rotation at the rule's virtual distance, (1, 1, R) each
        self.before = before  # turns keys (B, G, W, D) as those of the W tokens before the segment's own


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
    if forward is None or not forward.layer.keeps:
        return base(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    layer, rule = forward.layer, forward.layer.rule
    undo = None if forward.tables is None else inverse(forward.tables)
    if layer.recording:
        new = key[:, :, -query.shape[2] :]
        layer.record(new.float() if undo is None else rotate(new, *undo))
    if layer.state is None and layer.carried is None:
        return base(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]

    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    softcap = kwargs.get("softcap")
    group = query.shape[1] // key.shape[1]  # query heads per KV head
    asking = layer.of_heads(query, group)  # (B, R * group, T, D)
    # Tokens that begin every text rest on themselves alone, as they always did.
    past = (kwargs["position_ids"] >= layer.prefix).unsqueeze(1) if layer.prefix else None  # (B, 1, T)
    dtype = compute_dtype(query)
    weights = None
    if rule.gated and layer.carried is None:
        local, weights = base(module, query, key, value, attention_mask, **kwargs)
        local, mass = local.transpose(1, 2), None
    else:
        local, mass = attention_with_mass(
            query.to(dtype),
            _per_query_head(key.to(dtype), query),
            _per_query_head(value.to(dtype), query),
            _bias(attention_mask, dtype),
            scaling,
            softcap,
            causal=attention_mask is None and query.shape[2] > 1,
        )
    if layer.carried is not None and mass is not None:
        hidden = None
        if (reach := kwargs.get("sliding_window")) is not None:
            hidden = too_far(kwargs["position_ids"] - layer.prefix, layer.carried["counts"].shape[-1], reach)
        near, near_mass = _read_carried(forward, query.to(dtype), hidden, scaling, softcap)
        if past is not None:
            near_mass = near_mass.masked_fill(~past, float("-inf"))
        local = torch.lerp(local, near, _share(near_mass, mass).to(local.dtype))
        mass = torch.logaddexp(mass, near_mass)
    if layer.state is None or layer.seen is None:
        return local.transpose(1, 2).to(query.dtype), weights
    if rule.gated:
        written = (layer.seen > layer.carry)[:, None, None, None]  # (B, 1, 1, 1)
        content = asking.float() if undo is None else rotate(asking, *undo)
        far = rule.read(layer.prepared(torch.float32), content, scaling, softcap).values  # (B, R * group, T, Dv)
        share = layer.of_heads(module.memory_gate()[None, :, None, None], group) * written
        share = share if past is None else share * past.unsqueeze(-1)
        return _join(layer, local, far, share, group).transpose(1, 2).to(query.dtype), weights
    if undo is not None and forward.far is not None:
        asking = rotate(asking, *compose(undo, forward.far))
    far, far_mass = rule.read(layer.prepared(dtype), asking.to(dtype), scaling, softcap)
    if far_mass is None or mass is None:
        raise TypeError(f"rule {rule.name!r} has neither a gate nor a mass")
    if past is not None:
        far_mass = far_mass.masked_fill(~past, float("-inf"))
    share = _share(far_mass, layer.of_heads(mass, group))
    return _join(layer, local, far, share, group).transpose(1, 2).to(query.dtype), None


def compute_dtype(query: Tensor) -> torch.dtype:
    """What attention with a past is computed in."""
    # The CPU's fused kernel is faster in float32 than in bfloat16, products of such small heads included.
    return torch.float32 if query.device.type == "cpu" else query.dtype


def _read_carried(
    forward: _Forward, query: Tensor, hidden: Tensor | None, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """What the carried tokens answer to queries (B, H, T, D).

    hidden: (B, 1, T, W), added to the logits. Returns values (B, H, T, Dv) and the log of their softmax's denominator,
    (B, H, T).
    """
    near = forward.layer.near(query.dtype, forward.before)
    batch, heads, tokens, width = query.shape
    groups, bias = near["keys"].shape[1], near.get("bias")
    if hidden is not None:
        hidden = hidden.repeat(1, 1, heads // groups, 1)  # (B, 1, H/G*T, W)
        bias = hidden if bias is None else bias + hidden
    grouped = query.reshape(batch, groups, -1, width)  # (B, G, H/G*T, D)
    values, mass = attention_with_mass(grouped, near["keys"], near["values"], bias, scaling, softcap)
    return values.reshape(batch, heads, tokens, -1), mass.reshape(batch, heads, tokens)


def _share(part: Tensor, rest: Tensor) -> Tensor:
    """The share of one part of a softmax, (..., T, 1), from the logs of both denominators (..., T)."""
    return torch.sigmoid((part - rest).masked_fill(part.isneginf(), float("-inf"))).unsqueeze(-1)


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
            _active.forward = _Forward(
                cache.layers[index],
                tables,
                self._far_tables(module, cache.rule.distance),
                partial(self._turned_before, module, cache.layers[index].prefix),
            )

    def _far_tables(self, module: Any, distance: int | None) -> Tables | None:
        """Tables of the rotation by the virtual distance, scaled as keys at position 0 would be too."""
        if distance is None or not rotates(module):
            return None
        key = (id(module), distance)
        if key not in self._far:
            cos, sin = self._tables(module, [0, distance])
            self._far[key] = (cos[:, 1:] * cos[:, :1], sin[:, 1:] * cos[:, :1])
        return self._far[key]

    def _turned_before(self, module: Any, start: int, keys: Tensor) -> Tensor:
        """Position-free keys (B, G, W, D) as those of the W tokens before position `start`."""
        return rotate(keys, *self._tables(module, range(start - keys.shape[2], start))) if rotates(module) else keys

    def _tables(self, module: Any, positions: Sequence[int]) -> Tables:
        """The model's own tables for these positions, (1, N, R) float32."""
        rotary = self.model.get_decoder().rotary_emb
        device = next(module.parameters()).device
        x = torch.zeros(1, 1, 1, device=device)
        places = torch.tensor([list(positions)], device=device)
        layer_type = getattr(module, "layer_type", None)
        per_type = hasattr(rotary, f"{layer_type}_inv_freq")
        found: Tables = rotary(x, places, layer_type) if per_type else rotary(x, places)
        return found

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
