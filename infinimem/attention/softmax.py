"""Softmax attention over several sets of keys at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from . import native
from .rules.state import Part

# Queries that share one buffer of logits on a CPU: the buffer is small enough for the caches of the CPU, and for keys
# after the last of these queries nothing is computed.
CHUNK = 128


def joined_attention(
    parts: Sequence[Part], scaling: float, softcap: float | None = None, causal: bool = False
) -> Tensor:
    """One softmax over the keys of all parts; each part has its own form of the same queries.

    scaling: factor of the logits.
    softcap: logits become tanh(logits / softcap) * softcap; None leaves them as they are.
    causal: query t sees keys 0 to t of the last part where that has T keys; where it has more, query t sees keys 0 to t
        of its last T keys, and all keys before these.
    Returns values (B, H, T, Dv). A query that sees no key at all gets finite values without meaning.
    """
    first = parts[0]
    if native.attends(parts, softcap, causal):
        return native.attention(parts, scaling, causal, _hidden(first.queries.dtype))
    if len(parts) == 1 and first.queries.shape[2] == 1 and softcap is None and not torch.is_grad_enabled():
        return _of_one_query(first, scaling)
    square = not causal or parts[-1].keys.shape[2] == first.queries.shape[2]
    if softcap is None and square and all(map(_flash_fits, parts)):
        return _joined_by_mass(parts, scaling, causal)
    batch, heads, tokens, _ = first.queries.shape
    joined = first.values if len(parts) == 1 else torch.cat([part.values for part in parts], dim=2)
    values = joined.flatten(0, 1)  # (B*G, N, Dv)
    step = CHUNK if values.device.type == "cpu" else tokens
    found = []
    for start in range(0, tokens, step):
        end = min(start + step, tokens)
        # Keys of the last part that come after these queries are left out.
        count = values.shape[1] - (tokens - end if causal else 0)
        logits = _logits(parts, start, end, count, scaling, softcap)  # (B, G, H/G, t, N)
        if causal and end - start > 1:
            size = end - start
            ahead = torch.full((size, size), _hidden(logits.dtype), dtype=logits.dtype, device=logits.device).triu(1)
            logits[..., count - size :].add_(ahead)
        weights = torch.softmax(logits, dim=-1).flatten(2, 3).flatten(0, 1)  # (B*G, H/G*t, N)
        found.append((weights @ values[:, :count]).view(batch, heads, end - start, -1))
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _of_one_query(part: Part, scaling: float) -> Tensor:
    """`joined_attention` of one part and one query, by torch's own attention: the fastest way to decode.

    The query heads of a KV head are the queries of one attention.
    """
    batch, heads, _, width = part.queries.shape
    groups = part.keys.shape[1]
    bias: Tensor | None = None
    for one in part.biases:
        bias = one if bias is None else bias + one
    if bias is not None:
        bias = bias.to(part.queries.dtype).clamp_min(_hidden(part.queries.dtype))
        bias = bias.expand(batch, groups, heads // groups, part.keys.shape[2])
    queries = part.queries.reshape(batch, groups, heads // groups, width)
    found = scaled_dot_product_attention(queries, part.keys, part.values, attn_mask=bias, scale=scaling)
    return found.reshape(batch, heads, 1, -1)


def _logits(parts: Sequence[Part], start: int, end: int, count: int, scaling: float, softcap: float | None) -> Tensor:
    """Logits (B, G, H/G, t, N) of the queries from `start` to `end` and the first `count` keys of all parts."""
    batch, heads = parts[0].queries.shape[:2]
    groups = parts[0].keys.shape[1]
    shape = batch, groups, heads // groups, end - start
    graph = torch.is_grad_enabled()
    buffer = parts[0].queries.new_empty(0 if graph else batch * groups, heads // groups * (end - start), count)
    found, place = [], 0
    for part in parts:
        queries = part.queries[:, :, start:end].reshape(batch * groups, -1, part.queries.shape[3])  # (B*G, H/G*t, D)
        keys = part.keys[:, :, : count - place].flatten(0, 1).mT  # (B*G, D, S)
        size = keys.shape[2]
        if graph:
            logits = queries @ keys * scaling
        else:
            # The product goes straight into its place in the buffer, so nothing is copied.
            logits = buffer[..., place : place + size]
            torch.baddbmm(logits, queries, keys, beta=0, alpha=scaling, out=logits)
        logits = logits.view(*shape, size)
        if softcap is not None:
            logits.copy_(torch.tanh(logits / softcap) * softcap)
        for bias in part.biases:
            shown = (bias if bias.shape[2] == 1 else bias[:, :, start:end])[..., :size]
            logits.add_(shown.to(logits.dtype).clamp_min(_hidden(logits.dtype)).unsqueeze(2))
        found.append(logits)
        place += size
    return torch.cat(found, dim=-1) if graph else buffer.view(*shape, count)


def _hidden(dtype: torch.dtype) -> float:
    """A bias that hides a key as -inf does, but stays finite where several of them are added."""
    return torch.finfo(dtype).min / 4


def _joined_by_mass(parts: Sequence[Part], scaling: float, causal: bool) -> Tensor:
    """`joined_attention` by torch's flash attention for the CPU, one part at a time: the fastest way in float32.

    The values of the parts are mixed by their masses, the logs of their softmax denominators.
    """
    values: Tensor | None = None
    mass: Tensor | None = None
    batch, heads, tokens, _ = parts[0].queries.shape
    for index, part in enumerate(parts):
        group = heads // part.keys.shape[1]
        if causal and index == len(parts) - 1:
            keys, own = (x.repeat_interleave(group, dim=1) for x in (part.keys, part.values))
            more, more_mass = flash_attention(part.queries, keys, own, None, scaling, causal=True)
        else:
            bias: Tensor | None = None
            for one in part.biases:
                bias = one if bias is None else bias + one
            if bias is not None and bias.shape[2] > 1:
                bias = bias.repeat(1, 1, group, 1)  # (B, G, H/G*T, S)
            grouped = part.queries.reshape(batch, part.keys.shape[1], -1, part.queries.shape[3])  # (B, G, H/G*T, D)
            more, more_mass = flash_attention(grouped, part.keys, part.values, bias, scaling)
            more, more_mass = more.reshape(batch, heads, tokens, -1), more_mass.reshape(batch, heads, tokens)
        if values is None or mass is None:
            values, mass = more, more_mass
            continue
        share = torch.sigmoid((more_mass - mass).masked_fill(more_mass.isneginf(), float("-inf")))
        values, mass = torch.lerp(values, more, share.unsqueeze(-1)), torch.logaddexp(mass, more_mass)
    if values is None:
        raise TypeError("there is no part to attend to")
    return values


def flash_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scaling: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """softmax(q·k · scaling + bias) v, and the log of the softmax's denominator, by torch's kernel for the CPU.

    queries: (B, H, T, D); `_flash_fits` tells which queries, keys and values the kernel takes.
    keys: (B, H, S, D).
    values: (B, H, S, Dv).
    bias: broadcastable to (B, H, T, S), added to the logits; -inf hides a key.
    causal: query t sees keys 0 to t (T equals S).
    Returns values (B, H, T, Dv) in the dtype of the queries and the mass (B, H, T) in float32. A query that sees no key
    gets zeros and a mass of -inf.
    """
    spread = None if bias is None else bias.to(queries.dtype).expand(*queries.shape[:-1], keys.shape[2])
    out, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries, keys, values, 0.0, causal, attn_mask=spread, scale=scaling
    )
    if bias is None:
        return out, mass
    # The kernel returns a mass of 0 for a query that sees no key.
    blind = bias.isneginf().all(dim=-1)
    return out.masked_fill(blind.unsqueeze(-1), 0), mass.masked_fill(blind, float("-inf"))


def _flash_fits(part: Part) -> bool:
    """Whether torch's flash attention for the CPU, which returns the mass, computes this part."""
    return (
        part.queries.dtype == torch.float32
        and part.queries.device.type == "cpu"
        and part.values.shape[-1] == part.keys.shape[-1]
        and part.keys.shape[2] > 0
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in (*part[:3], *part.biases)))
    )
