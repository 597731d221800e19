"""The slots rule: what merging keeps, and that a read is one softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infinimem.attention.rules.slots import SlotsRule, cheapest_partner, ward_merge
from infinimem.attention.softmax import flash_attention, joined_attention

PRECISIONS = [torch.float32, torch.bfloat16]


def segment(seed: int, tokens: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, 2, tokens, 8, generator=generator), torch.randn(rows, 2, tokens, 8, generator=generator))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    slots=st.integers(2, 32),
    seed=st.integers(0, 99),
    precision=st.sampled_from(PRECISIONS),
)
def test_merging_keeps_counts_and_means_within_capacity(
    lengths: list[int], slots: int, seed: int, precision: torch.dtype
) -> None:
    rule, state = SlotsRule(slots=slots, packing="float32"), None
    written = [segment(seed + i, length) for i, length in enumerate(lengths)]
    for keys, values in written:
        state = rule.write(state, keys, values, precision=precision)
    total = sum(lengths)
    counts = state["counts"]
    assert counts.shape[-1] == min(total, slots)
    assert (counts >= 1).all() and torch.allclose(counts.sum(-1), torch.tensor(float(total)))
    for name, index in (("keys", 0), ("values", 1)):
        mean = (state[name] * counts.unsqueeze(-1)).sum(2) / total
        assert torch.allclose(mean, torch.cat([w[index] for w in written], 2).mean(2), atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_tokens_are_merged_before_different_ones(precision: torch.dtype) -> None:
    keys, values = segment(0, 12)
    keys = torch.cat((keys, keys[:, :, :1].expand(-1, -1, 36, -1)), 2)
    values = torch.cat((values, values[:, :, :1].expand(-1, -1, 36, -1)), 2)
    state = SlotsRule(slots=30, packing="float32").write(None, keys, values, precision=precision)
    kept = {tuple(row.tolist()) for row in state["keys"][0, 0]}
    assert all(tuple(row.tolist()) in kept for row in keys[0, 0, 1:12])


@settings(max_examples=50, deadline=None)
@given(a=st.integers(1, 40), b=st.integers(1, 40), far=st.sampled_from([0.0, 1.0, 5.0]), seed=st.integers(0, 99))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_partner_is_the_cheapest_as_far_as_the_precision_tells(
    precision: torch.dtype, a: int, b: int, far: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    giving, taking = (torch.randn(3, n, 12, generator=generator) + far for n in (a, b))
    counts = [torch.randint(1, 1000, (3, n), generator=generator).float() for n in (a, b)]
    giving, taking = giving.to(precision), taking.to(precision)
    cost, partner = cheapest_partner(giving, taking, *counts)
    # Ward's cost of every pair, in float64 and from its definition.
    ease = 1 / counts[0].double().unsqueeze(2) + 1 / counts[1].double().unsqueeze(1)
    exact = (giving.double().unsqueeze(2) - taking.double().unsqueeze(1)).square().sum(-1) / ease  # (3, A, B)
    chosen = exact.gather(2, partner.unsqueeze(2)).squeeze(2)
    assert torch.allclose(cost.double(), chosen, rtol=1e-4 if precision == torch.float32 else 0.01, atol=1e-2)
    # Rounding moves a vector of this length by a little, and a cost by the little it is moved.
    slack = 1e-4 if precision == torch.float32 else 0.05 + 0.02 * far
    assert (chosen <= exact.min(dim=2).values * (1 + slack) + 1e-2).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_among_near_duplicates_the_partner_is_one_of_them_with_its_own_cost(precision: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 16, generator=generator)
    giving, taking = (centres.repeat(5, 1) * (1 + 1e-4 * torch.randn(40, 16, generator=generator)) for _ in range(2))
    ones = torch.ones(1, 40)
    giving, taking = giving.to(precision), taking.to(precision)
    cost, partner = cheapest_partner(giving[None], taking[None], ones, ones)
    assert torch.equal(partner[0] % 8, torch.arange(40) % 8)
    exact = (giving.double() - taking[partner[0]].double()).square().sum(-1) / 2
    assert torch.allclose(cost[0].double(), exact, rtol=1e-2, atol=1e-5)


def test_the_same_writes_give_the_same_bytes() -> None:
    def run() -> Tensor:
        rule, state = SlotsRule(slots=20), None
        for seed in range(5):
            state = rule.write(state, *segment(seed, 30))
        return state["keys"]

    assert torch.equal(run(), run())


def test_an_untouched_slot_keeps_its_bits() -> None:
    keys, values = segment(1, 40)
    before = {tuple(row.tolist()) for row in keys[0, 0]}
    after, counts = ward_merge(torch.cat((keys[0], values[0]), -1), torch.ones(2, 40), 8, 30, 0.5)
    single = counts[0] == 1
    assert single.sum() >= 15
    assert all(tuple(row.tolist()) in before for row in after[0][single][:, :8])


@settings(max_examples=25, deadline=None)
@given(pads=st.lists(st.integers(0, 12), min_size=2, max_size=4), seed=st.integers(0, 99))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_padded_row_is_written_as_if_alone(precision: torch.dtype, pads: list[int], seed: int) -> None:
    rule = SlotsRule(slots=10)
    keys, values = segment(seed, 12, rows=len(pads))
    mask = torch.tensor([[i >= pad for i in range(12)] for pad in pads])
    state = rule.write(rule.write(None, keys, values), keys, values, mask, precision)
    for row, pad in enumerate(pads):
        one, start = slice(row, row + 1), rule.write(None, keys[row : row + 1], values[row : row + 1])
        given = keys[one, :, pad:], values[one, :, pad:]
        alone = rule.write(start, *given, precision=precision) if pad < 12 else start
        size = alone["counts"].shape[-1]
        for name in alone:
            assert torch.equal(state[name][one, :, :size], alone[name])
            assert (state[name][one, :, size:] == 0).all()


def test_a_row_with_empty_slots_can_be_written_again_and_loses_nothing() -> None:
    rule = SlotsRule(slots=32)
    keys, values = segment(4, 4, rows=2)
    mask = torch.tensor([[True] * 4, [False, False, True, True]])
    state = rule.write(rule.write(rule.write(None, keys, values, mask), keys, values), keys, values, mask)
    assert state["counts"].sum(-1)[:, 0].tolist() == [12.0, 8.0]
    merged = rule.merge(state, state)
    assert merged["counts"].sum(-1)[:, 0].tolist() == [24.0, 16.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_read_is_exact_attention_while_nothing_is_merged(dtype: torch.dtype) -> None:
    rule = SlotsRule(slots=64, packing="float32")
    keys, values = segment(2, 20)
    queries = torch.randn(1, 4, 5, 8, generator=torch.Generator().manual_seed(9))
    state = rule.prepare(rule.write(None, keys, values), dtype)
    got = joined_attention([rule.part(state, queries.to(dtype))], 0.3)
    logits = queries.double() @ keys.double().repeat_interleave(2, 1).mT * 0.3
    expected = logits.softmax(-1) @ values.double().repeat_interleave(2, 1)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    assert torch.allclose(got.double(), expected, atol=tolerance)


@settings(max_examples=25, deadline=None)
@given(mass=st.floats(0.1, 1.0), sizes=st.lists(st.integers(1, 400), min_size=2, max_size=6))
def test_a_slot_weighs_as_its_count_to_the_power_of_mass(mass: float, sizes: list[int]) -> None:
    """In float64: softmax weights of the slots times count ** mass; with mass 1 the softmax over every token."""
    rule = SlotsRule(slots=6, mass=mass)
    keys, values = segment(3, len(sizes))
    queries = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor(sizes, dtype=torch.float32).expand(1, 2, -1)
    state = rule.prepare({"keys": keys, "values": values, "counts": counts}, torch.float32)
    got = joined_attention([rule.part(state, queries)], 0.5)
    weights = (queries.double() @ keys.double().mT * 0.5).exp() * counts.double()[:, :, None] ** mass
    expected = weights @ values.double() / weights.sum(-1, keepdim=True)
    assert torch.allclose(got.double(), expected, atol=1e-5)


def test_with_mass_one_a_slot_is_as_many_equal_tokens() -> None:
    keys, values = segment(3, 2)
    many_keys = torch.cat([keys[:, :, :1]] * 7 + [keys[:, :, 1:]] * 2, 2)
    many_values = torch.cat([values[:, :, :1]] * 7 + [values[:, :, 1:]] * 2, 2)
    queries = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(1))
    rule = SlotsRule(slots=2, mass=1.0)
    counts = torch.tensor([7.0, 2.0]).expand(1, 2, 2)
    state = rule.prepare({"keys": keys, "values": values, "counts": counts}, torch.float32)
    got = joined_attention([rule.part(state, queries)], 0.5)
    expected = (queries @ many_keys.mT * 0.5).softmax(-1) @ many_values
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_flash_attention_and_its_mass_agree_with_float64(causal: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    q, k, v = torch.randn(3, 2, 3, 9, 16, generator=generator)
    bias = None if causal else torch.randn(2, 3, 9, 9, generator=generator)
    logits = q.double() @ k.double().mT * 0.25
    logits = logits + torch.full((9, 9), float("-inf")).triu(1) if bias is None else logits + bias
    values, mass = flash_attention(q, k, v, bias, 0.25, causal)
    assert torch.allclose(values.double(), logits.softmax(-1) @ v.double(), atol=1e-5)
    assert torch.allclose(mass.double(), logits.logsumexp(-1), atol=1e-5)


def test_a_query_that_sees_nothing_gets_zeros_and_no_mass() -> None:
    q, k, v = torch.randn(3, 1, 1, 4, 8)
    bias = torch.zeros(1, 1, 4, 4)
    bias[:, :, 1] = float("-inf")
    values, mass = flash_attention(q, k, v, bias, 1.0)
    assert (values[0, 0, 1] == 0).all() and mass[0, 0, 1] == float("-inf")
    assert torch.isfinite(values).all()
