"""The attention function, and the hooks that connect it to a stock transformers model.

- `attached(model, ...)` / `attach(model, ...)`: registers nothing but a new name in transformers' attention registry,
  puts two hooks on each attention module of this one model, and takes all of it back on `detach()`
- with no `InfiniCache`, or while nothing of the past is in it, the model's own attention function runs on its own
  arguments: same bits as the unmodified model (unless the cache is `inexact`, which answers use)
- what a forward needs (the cache layer, the rotation tables) travels in a thread-local set by the hooks, so one model
  can serve many threads with different memories
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence, Set
from copy import deepcopy
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import InvalidSetting, NoRotaryEmbedding
from .cache import InfiniCache, InfiniLayer
from .carried import too_far
from .local import Part, joined_attention
from .rotary import Tables, Turns, rotate
from .rules import LinearRule, MemoryRule

# Families whose layers turn all queries and keys in halves, or say where they do not (`use_rope`). Others do so on
# conditions of their own, interleave the pairs, or have sinks beside the softmax; un-rotating them would be wrong.
FAMILIES = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})

_active = threading.local()


class SeenEnough(Exception):
    """Ends a forward at the layer that the cache watches."""


class _Forward:
    """What one attention module's forward works with."""

    __slots__ = ("before", "far", "layer", "turns")

    def __init__(
        self, layer: InfiniLayer, turns: Turns | None, far: Tables | None, before: Callable[[Tensor], Tensor]
    ) -> None:
        self.layer = layer
        self.turns = turns  # rotation of this forward's tokens; None for a layer without rotation
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
    if forward is None:
        return base(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    layer = forward.layer
    if layer.recording:
        new = key[:, :, -query.shape[2] :]
        layer.record(new.float() if forward.turns is None else rotate(new, *forward.turns.undo()))
    # With nothing of the past, the model's own bits; in training, and for an inexact cache, whatever is faster.
    exact = layer.exact and not query.requires_grad
    if layer.state is None and layer.carried is None and (exact or not fused_is_slow(query)):
        return base(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]

    read = _Read(forward, query, kwargs)
    weights = None
    if layer.rule.gated and layer.carried is None:
        values, weights = base(module, query, key, value, attention_mask, **kwargs)
        values = values.transpose(1, 2)
    else:
        # Where all heads have slots, one softmax over everything; otherwise those that have some repeat it with them.
        own = [*read.carried(), read.segment(key, value, attention_mask)]
        causal = attention_mask is None and query.shape[2] > 1
        slots = [] if layer.rule.gated or layer.state is None else [read.slots()]
        everywhere = slots and slots[0].keys.shape[1] == key.shape[1]
        values = joined_attention([*slots, *own] if everywhere else own, read.scaling, read.softcap, causal)
        if slots and not everywhere:
            parts = [*slots, *(read.of_heads(part) for part in own)]
            some = joined_attention(parts, read.scaling, read.softcap, causal)
            values = layer.put_heads(values, some, read.group)
    if layer.rule.gated and layer.state is not None and layer.seen is not None:
        far, share = read.memory(module.memory_gate(), layer.seen)
        mixed = torch.lerp(layer.of_heads(values, read.group).float(), far, share)
        values = layer.put_heads(values, mixed.to(values.dtype), read.group)
    return values.transpose(1, 2).to(query.dtype), weights


class _Read:
    """The parts of one attention with a past: the memory, the carried tokens, the segment."""

    def __init__(self, forward: _Forward, query: Tensor, kwargs: dict[str, Any]) -> None:
        self.forward, self.layer = forward, forward.layer
        self.query = query.to(compute_dtype(query))
        self.scaling: float = kwargs.get("scaling") or query.shape[-1] ** -0.5
        self.softcap: float | None = kwargs.get("softcap")
        self.group = query.shape[1] // self.layer.keys.shape[1]  # query heads per KV head
        self.reach: int | None = kwargs.get("sliding_window")
        prefix = self.layer.prefix
        # Only these models count positions here; tokens that begin every text rest on themselves alone, as ever.
        self.positions = kwargs["position_ids"] - prefix if prefix or self.reach is not None else None  # (B, T)
        self.past: Tensor | None = None  # (B, T), False for queries that see no past
        if prefix and self.positions is not None:
            self.past = self.positions >= 0

    def segment(self, key: Tensor, value: Tensor, mask: Tensor | None) -> Part:
        """The segment itself."""
        dtype = self.query.dtype
        return Part(self.query, key.to(dtype), value.to(dtype), [] if mask is None else [_bias(mask, dtype)])

    def carried(self) -> list[Part]:
        """The carried tokens, if there are any."""
        if self.layer.carried is None:
            return []
        near = self.layer.near(self.query.dtype, self.forward.before)
        biases = [near["bias"]] if "bias" in near else []
        if self.reach is not None and self.positions is not None:
            hidden = too_far(self.positions, near["keys"].shape[2], self.reach)
            biases += [] if hidden is None else [hidden]
        return [Part(self.query, near["keys"], near["values"], [*biases, *self._past_only()])]

    def slots(self) -> Part:
        """What a rule without gates remembers, asked from the virtual distance."""
        layer = self.layer
        asking = layer.of_heads(self.query, self.group)  # (B, R * group, T, D)
        turns, far = self.forward.turns, self.forward.far
        if turns is not None and far is not None:
            asking = rotate(asking, *turns.moved(far), dtype=self.query.dtype)
        part = layer.rule.part(layer.prepared(self.query.dtype), asking)
        return part._replace(biases=[*part.biases, *self._past_only()])

    def memory(self, gate: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """A gated memory's values (B, R * group, T, Dv), float32, and their share (..., 1) beside all else.

        gate: (H,) shares. seen: (B,) tokens of the past.
        """
        layer = self.layer
        asking = layer.of_heads(self.query, self.group)  # (B, R * group, T, D)
        turns = self.forward.turns
        content = asking.float() if turns is None else rotate(asking, *turns.undo())
        values = layer.rule.read(layer.prepared(torch.float32), content, self.scaling, self.softcap).values
        written = (seen > layer.carry)[:, None, None, None]  # (B, 1, 1, 1)
        share = layer.of_heads(gate[None, :, None, None], self.group) * written
        return values, share if self.past is None else share * self.past[:, None, :, None]

    def of_heads(self, part: Part) -> Part:
        """The remembering heads' share of a part."""
        layer = self.layer
        biases = [bias if bias.shape[1] == 1 else layer.of_heads(bias) for bias in part.biases]
        queries, keys, values = (
            layer.of_heads(part.queries, self.group),
            layer.of_heads(part.keys),
            layer.of_heads(part.values),
        )
        return Part(queries, keys, values, biases)

    def _past_only(self) -> list[Tensor]:
        """What hides the past from queries that see none, (B, 1, T, 1)."""
        if self.past is None:
            return []
        return [_bias(self.past[:, None, :, None], self.query.dtype)]


def compute_dtype(query: Tensor) -> torch.dtype:
    """What attention with a past is computed in."""
    # CPUs multiply bfloat16 or float32 in hardware, float16 hardly ever.
    return torch.float32 if query.device.type == "cpu" and query.dtype == torch.float16 else query.dtype


def fused_is_slow(query: Tensor) -> bool:
    """Whether torch's own attention takes far longer, forward and backward, than plain products of matrices."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
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
        # By kind of layer, which may have frequencies of its own: at the virtual distance, and before a segment.
        self._far: dict[tuple[object, int], Tables] = {}
        self._before: dict[object, tuple[range, Tables]] = {}
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
            if index == cache.watched:
                cache.noted = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
                if cache.enough:
                    raise SeenEnough
            tables = kwargs.get("position_embeddings") if rotates(module) else None
            _active.forward = _Forward(
                cache.layers[index],
                None if tables is None else _turns(tables),
                self._far_tables(module, cache.rule.distance),
                partial(self._turned_before, module, cache.layers[index].prefix),
            )

    def _far_tables(self, module: Any, distance: int | None) -> Tables | None:
        """Tables of the rotation by the virtual distance, scaled as keys at position 0 would be too."""
        if distance is None or not rotates(module):
            return None
        key = (_kind(module), distance)
        if key not in self._far:
            cos, sin = self._tables(module, [0, distance])
            with torch.inference_mode(False):
                self._far[key] = (cos[:, 1:] * cos[:, :1], sin[:, 1:] * cos[:, :1])
        return self._far[key]

    def _turned_before(self, module: Any, start: int, keys: Tensor) -> Tensor:
        """Position-free keys (B, G, W, D) as those of the W tokens before position `start`."""
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
        # They are kept, and a tensor of inference mode could not be used in training later.
        with torch.inference_mode(False):
            x = torch.zeros(1, 1, 1, device=device)
            places = torch.tensor([list(positions)], device=device)
            found: Tables = rotary(x, places, layer_type) if per_type else rotary(x, places)
        return found

    def twin(self, own: Set[str]) -> Attachment:
        """The same over a second network, which has parameters called `own` to itself and shares all else."""
        tensors = chain(self.model.named_parameters(), self.model.named_buffers())
        shared = {id(tensor): tensor for name, tensor in tensors if name not in own}
        other = deepcopy(self, {**shared, id(self.rule): self.rule})
        other._far, other._before = {}, {}
        return other

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


def _kind(module: nn.Module) -> object:
    """Equal for layers whose tables are."""
    return getattr(module, "layer_type", None), next(module.parameters()).device


def _turns(tables: Tables) -> Turns:
    """The same for all layers of a forward, which are given one object."""
    known: Turns | None = getattr(_active, "turns", None)
    if known is None or known.tables is not tables:
        known = _active.turns = Turns(tables)
    return known


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    _active.forward = None
