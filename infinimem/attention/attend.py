"""The attention function: the model's own attention, joined with the past in an `InfiniCache`.

- attach.py connects the function to a stock transformers model
- without an `InfiniCache`, or while the cache holds no past, the model's own attention function runs on its own
  arguments: the result has the same bits as that of the unmodified model (unless the cache is `inexact`, as it is for
  answers)
- the hooks of attach.py put what a forward needs (the cache layer, the rotation tables) into a thread-local, so one
  model can serve many threads with different memories
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .cache import InfiniLayer
from .carried import too_far
from .rotary import Tables, Turns, rotate
from .rules.base import GatedRule, SoftmaxRule
from .rules.state import Part
from .softmax import joined_attention

active = threading.local()


class SeenEnough(Exception):
    """Ends a forward where the cache has all that it needs of it."""


class Forward:
    """What one attention module's forward works with."""

    __slots__ = ("before", "far", "layer", "turns")

    def __init__(
        self, layer: InfiniLayer, turns: Turns | None, far: Tables | None, before: Callable[[Tensor], Tensor]
    ) -> None:
        self.layer = layer
        self.turns = turns  # rotation of this forward's tokens; None for a layer without rotation
        self.far = far  # rotation at the rule's virtual distance, (1, 1, R) each; None without one
        self.before = before  # rotates keys (B, G, W, D) to the W positions before the segment


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

    query: (B, H, T, D), rotated.
    key: (B, G, S, D), rotated: the segment so far, with the new tokens at its end.
    value: (B, G, S, Dv), of the same tokens.
    base: the model's own attention function.
    Returns values (B, T, H, Dv), as transformers expects, and the attention weights where `base` gives them.
    """
    forward: Forward | None = getattr(active, "forward", None)
    if forward is None:
        return base(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    layer = forward.layer
    if layer.recording:
        new = key[:, :, -query.shape[2] :]
        layer.record(new.float() if forward.turns is None else rotate(new, *forward.turns.undo()))
        if layer.ends:
            raise SeenEnough
    # Without a past, an exact cache gives the model's own bits; training and inexact caches take the faster way.
    exact = layer.exact and not query.requires_grad
    if layer.state is None and layer.carried is None and (exact or not fused_is_slow(query)):
        return base(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]

    read = _Read(forward, query, kwargs)
    weights = None
    rule = layer.rule
    if isinstance(rule, GatedRule) and layer.carried is None:
        values, weights = base(module, query, key, value, attention_mask, **kwargs)
        values = values.transpose(1, 2)
    else:
        # Where all heads have slots, one softmax covers everything. Where only some heads have slots, all heads have a
        # softmax without slots, and the heads with slots repeat theirs with them.
        own = [*read.carried(), read.segment(key, value, attention_mask)]
        causal = attention_mask is None and query.shape[2] > 1
        slots = [read.slots(rule)] if isinstance(rule, SoftmaxRule) and layer.state is not None else []
        everywhere = slots and slots[0].keys.shape[1] == key.shape[1]
        values = joined_attention([*slots, *own] if everywhere else own, read.scaling, read.softcap, causal)
        if slots and not everywhere:
            parts = [*slots, *(read.of_heads(part) for part in own)]
            some = joined_attention(parts, read.scaling, read.softcap, causal)
            values = layer.put_heads(values, some, read.group)
    if isinstance(rule, GatedRule) and layer.state is not None and layer.seen is not None:
        far, share = read.memory(rule, module.memory_gate(), layer.seen)
        mixed = torch.lerp(layer.of_heads(values, read.group).float(), far, share)
        values = layer.put_heads(values, mixed.to(values.dtype), read.group)
    return values.transpose(1, 2).to(query.dtype), weights


class _Read:
    """The parts of one attention with a past: the memory, the carried tokens, the segment."""

    def __init__(self, forward: Forward, query: Tensor, kwargs: dict[str, Any]) -> None:
        self.forward, self.layer = forward, forward.layer
        self.query = query.to(compute_dtype(query))
        self.scaling: float = kwargs.get("scaling") or query.shape[-1] ** -0.5
        self.softcap: float | None = kwargs.get("softcap")
        self.group = query.shape[1] // self.layer.keys.shape[1]  # query heads per KV head
        self.reach: int | None = kwargs.get("sliding_window")
        prefix = self.layer.prefix
        # Only a prefix or a sliding window needs positions. Tokens of the prefix see no past, so `past` hides it.
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

    def slots(self, rule: SoftmaxRule) -> Part:
        """The memory of a softmax rule, with queries rotated to its virtual distance."""
        layer = self.layer
        asking = layer.of_heads(self.query, self.group)  # (B, R * group, T, D)
        turns, far = self.forward.turns, self.forward.far
        if turns is not None and far is not None:
            asking = rotate(asking, *turns.moved(far), dtype=self.query.dtype)
        part = rule.part(layer.prepared(self.query.dtype), asking)
        return part._replace(biases=[*part.biases, *self._past_only()])

    def memory(self, rule: GatedRule, gate: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The values of a gated memory, and their share in the result.

        gate: (H,), the share of the memory for each query head.
        seen: (B,), tokens read in earlier segments.
        Returns values (B, R * group, T, Dv) in float32, and shares that broadcast over them. A share is 0 where nothing
        has been written yet, and for queries that see no past.
        """
        layer = self.layer
        asking = layer.of_heads(self.query, self.group)  # (B, R * group, T, D)
        turns = self.forward.turns
        content = asking.float() if turns is None else rotate(asking, *turns.undo())
        values = rule.retrieve(layer.prepared(torch.float32), content)
        written = (seen > layer.carry)[:, None, None, None]  # (B, 1, 1, 1)
        share = layer.of_heads(gate[None, :, None, None], self.group) * written
        return values, share if self.past is None else share * self.past[:, None, :, None]

    def of_heads(self, part: Part) -> Part:
        """A part with only the heads that have a memory."""
        layer = self.layer
        biases = [bias if bias.shape[1] == 1 else layer.of_heads(bias) for bias in part.biases]
        queries, keys, values = (
            layer.of_heads(part.queries, self.group),
            layer.of_heads(part.keys),
            layer.of_heads(part.values),
        )
        return Part(queries, keys, values, biases)

    def _past_only(self) -> list[Tensor]:
        """The bias (B, 1, T, 1) that hides the past from queries that see none; no bias where all queries see it."""
        if self.past is None:
            return []
        return [_bias(self.past[:, None, :, None], self.query.dtype)]


def compute_dtype(query: Tensor) -> torch.dtype:
    """The dtype in which attention with a past is computed."""
    # CPUs multiply bfloat16 or float32 in hardware, but hardly any CPU multiplies float16.
    return torch.float32 if query.device.type == "cpu" and query.dtype == torch.float16 else query.dtype


def fused_is_slow(query: Tensor) -> bool:
    """Whether torch's own attention takes far longer, forward and backward, than plain products of matrices."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))
