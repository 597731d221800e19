"""One softmax over several sets of keys, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infinimem.attention import softmax as local
from infinimem.attention.rules.state import Part
from infinimem.attention.softmax import joined_attention

BATCH, GROUPS, GROUP, WIDTH = 2, 2, 3, 8


def random_parts(seed: int, tokens: int, sizes: list[int], dtype: torch.dtype, causal: bool) -> list[Part]:
    """Parts with keys hidden here and there; the first key is seen by all."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def hiding(*shape: int) -> Tensor:
        return torch.where(torch.rand(*shape, generator=generator) < 0.3, float("-inf"), normal(*shape))

    parts = []
    for size in [*sizes, *([tokens] if causal else [])]:
        biases = [hiding(BATCH, GROUPS, 1, size), hiding(BATCH, 1, tokens, size), hiding(BATCH, 1, tokens, 1)]
        for bias in biases if not parts else []:
            bias[..., 0] = 0
        queries, keys = normal(BATCH, GROUPS * GROUP, tokens, WIDTH), normal(BATCH, GROUPS, size, WIDTH)
        parts.append(Part(queries, keys, normal(BATCH, GROUPS, size, WIDTH), biases))
    return [*parts[:-1], parts[-1]._replace(biases=[])] if causal else parts


def expected(parts: list[Part], scaling: float, softcap: float | None, causal: bool) -> Tensor:
    """The same in float64, with everything written out."""
    logits = []
    for index, part in enumerate(parts):
        found = part.queries.double() @ part.keys.double().repeat_interleave(GROUP, 1).mT * scaling
        if softcap is not None:
            found = torch.tanh(found / softcap) * softcap
        for bias in part.biases:
            full = bias.double().expand(BATCH, GROUPS, *found.shape[2:]) if bias.shape[1] > 1 else bias.double()
            found = found + (full.repeat_interleave(GROUP, 1) if full.shape[1] > 1 else full)
        if causal and index == len(parts) - 1:
            found = found.masked_fill(torch.ones_like(found).triu(1).bool(), float("-inf"))
        logits.append(found)
    values = torch.cat([part.values.double() for part in parts], 2).repeat_interleave(GROUP, 1)
    return torch.cat(logits, -1).softmax(-1) @ values


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("grad", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    tokens=st.integers(1, 11),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    softcap=st.sampled_from([None, 3.0]),
    causal=st.booleans(),
)
def test_all_parts_share_one_softmax(
    dtype: torch.dtype,
    tolerance: float,
    grad: bool,
    seed: int,
    tokens: int,
    sizes: list[int],
    softcap: float | None,
    causal: bool,
) -> None:
    parts = random_parts(seed, tokens, sizes, dtype, causal)
    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(grad):
        patch.setattr(local, "CHUNK", 4)
        if grad:
            parts = [part._replace(keys=part.keys.requires_grad_()) for part in parts]
        got = joined_attention(parts, 0.3, softcap, causal)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected(parts, 0.3, softcap, causal), atol=tolerance, rtol=tolerance)


def test_its_gradients_are_those_of_the_softmax_written_out() -> None:
    parts = random_parts(1, 7, [5, 3], torch.float32, causal=True)
    leaves = [x.double().requires_grad_() for part in parts for x in part[:3]]
    exact = [Part(*leaves[i : i + 3], parts[i // 3].biases) for i in range(0, len(leaves), 3)]  # type: ignore[arg-type]
    wanted = torch.autograd.grad(expected(exact, 0.3, 4.0, True).square().sum(), leaves)
    leaves = [x.clone().requires_grad_() for part in parts for x in part[:3]]
    parts = [Part(*leaves[i : i + 3], parts[i // 3].biases) for i in range(0, len(leaves), 3)]  # type: ignore[arg-type]
    found = torch.autograd.grad(joined_attention(parts, 0.3, 4.0, True).square().sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_query_that_sees_no_key_gets_finite_numbers(dtype: torch.dtype) -> None:
    queries, keys, values = torch.randn(3, 1, 2, 4, WIDTH).to(dtype)
    blind = torch.full((1, 1, 4, 4), float("-inf"))
    blind[:, :, 1:] = 0
    parts = [Part(queries, keys, values, [blind, blind])] * 2
    assert torch.isfinite(joined_attention(parts, 1.0)).all()
