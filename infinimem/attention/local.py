"""Softmax attention that also returns its log-sum-exp, so that two attentions can be joined into one softmax."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_with_mass(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """softmax(q·k · scaling + bias) v, and the log of the softmax's denominator.

    queries: (B, H, T, D); keys: (B, H, S, D); values: (B, H, S, Dv); bias: broadcastable to (B, H, T, S), added to
    the logits (after `softcap`), -inf hides a key; causal: query t sees keys 0 to t (T equals S). Returns values
    (B, H, T, Dv) in the dtype of the queries and the mass (B, H, T) in float32. A query that sees no key gets zeros
    and a mass of -inf.
    """
    if _fused(queries, keys, values, bias, softcap):
        spread = None if bias is None else bias.to(queries.dtype).expand(*queries.shape[:-1], keys.shape[2])
        out, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, 0.0, causal, attn_mask=spread, scale=scaling
        )
        if bias is None:
            return out, mass
        # The kernel returns a mass of 0 for a query that sees no key.
        blind = bias.isneginf().all(dim=-1)
        return out.masked_fill(blind.unsqueeze(-1), 0), mass.masked_fill(blind, float("-inf"))
    logits = (queries @ keys.mT).float() * scaling  # (B, H, T, S)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if bias is not None:
        logits = logits + bias
    if causal:
        ahead = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(ahead, float("-inf"))
    # The gradient of a softmax over nothing is not a number: a query that sees no key leaves the graph.
    blind = logits.isneginf().all(dim=-1, keepdim=True)
    floor = logits.masked_fill(blind, 0).logsumexp(dim=-1, keepdim=True)
    weights = (logits - floor).exp().to(values.dtype)
    return weights @ values, floor.masked_fill(blind, float("-inf")).squeeze(-1)


def _fused(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, softcap: float | None) -> bool:
    """Whether torch's flash attention for the CPU, which returns the mass, does this case."""
    return (
        queries.device.type == "cpu"
        and softcap is None
        and values.shape[-1] == keys.shape[-1]
        and keys.shape[2] > 0
        and not (
            torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (queries, keys, values, bias))
        )
    )
