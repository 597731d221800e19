"""The C library beside the torch code it stands for: same merges but for rounding, same bytes of what stays."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel, random_tokens
from conftest import read as read_masked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinimem.attention import end_segment, native
from infinimem.attention.cache import InfiniCache
from infinimem.attention.rotary import rotate
from infinimem.attention.rules.packing import in_a_row, pack, singles, unpack
from infinimem.attention.rules.slots import SlotsRule, shuffled
from infinimem.attention.rules.state import Part
from infinimem.attention.softmax import joined_attention
from infinimem.errors import InvalidSetting

SOURCES = sorted(["sources.py", *(path.name for path in Path(native.__file__).parent.glob("*.[ch]"))])
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


def switched(monkeypatch: pytest.MonkeyPatch, value: str) -> dict[torch.dtype, native.Kernels]:
    """The library as it is with this value of INFINIMEM_NATIVE, until the end of the test."""
    monkeypatch.setenv("INFINIMEM_NATIVE", value)
    native.library.cache_clear()
    return native.library() or {}


def all_kernels() -> list[tuple[str, torch.dtype]]:
    """All kernels that this processor can run, as level and dtype."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for level in native.LEVELS:
            kernels = switched(patch, level)
            found += [(level, dtype) for dtype, one in kernels.items() if one.name.endswith(f"_{level}")]
    native.library.cache_clear()
    return found


KERNELS = all_kernels()
missing = pytest.mark.skip(reason="the C library is not built, or this processor cannot run it")
nothing = [pytest.param((None, None), marks=missing)]


@pytest.fixture(autouse=True)
def fresh_library() -> Any:
    """No test sees the library that another test has switched to."""
    yield
    native.library.cache_clear()


@pytest.fixture(params=KERNELS or nothing, ids=lambda kernels: f"{kernels[0]}-{str(kernels[1])[6:]}")
def dtype(request: Any, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Each dtype, with each kind of kernels for it."""
    level, dtype = request.param
    switched(monkeypatch, level)
    return dtype  # type: ignore[no-any-return]


# Head widths, places, capacity.
SIZES = [(16, 3, 2), (20, 7, 2), (8, 97, 60), (64, 1024, 512), (33, 130, 128), (128, 300, 150), (64, 40, 64)]


def single_tokens(
    seed: int, places: int, width: int, heads: int = 2, rows: int = 1, dtype: torch.dtype = BFLOAT16
) -> dict[str, torch.Tensor]:
    """Places as reading makes them: float32 keys around a mean of their own, values in the dtype of the model."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, heads, places, width, generator=generator)
    return singles(3 * keys + 2, values.to(dtype), None)


def counted(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The same with counts between 1 and 60."""
    counts = torch.randint(1, 61, state["counts"].shape, generator=torch.Generator().manual_seed(seed))
    return {**state, "counts": counts.float()}


def pooled(
    runs: list[dict[str, torch.Tensor]], capacity: int, dtype: torch.dtype, balance: float = 1.0
) -> dict[str, torch.Tensor]:
    """What the library makes of the runs, searching in this dtype."""
    order = shuffled(sum(run["counts"].shape[2] for run in runs))
    return native.pool([native.Job(runs, capacity, order)], balance, dtype)[0]


def by_torch(
    runs: list[dict[str, torch.Tensor]], capacity: int, dtype: torch.dtype, balance: float = 1.0
) -> dict[str, torch.Tensor]:
    """What torch makes of the runs, searching in this dtype."""
    rule = SlotsRule(slots=capacity, balance=balance)
    return rule._pool(in_a_row(*runs), dtype)


def scaled(x: np.ndarray, width: int, balance: float) -> np.ndarray:
    """Places (N, D + Dv) as their costs are measured, in float64 from the definition."""
    spread = x.var(axis=0)
    scale = np.where(
        np.arange(x.shape[1]) < width, spread[:width].sum() ** -0.5, balance * spread[width:].sum() ** -0.5
    )
    return (x - x.mean(axis=0)) * scale


def ward_costs(y: np.ndarray, counts: np.ndarray, evens: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """Ward's cost of every even place with every odd one."""
    distances = ((y[evens][:, None] - y[odds][None]) ** 2).sum(-1)
    return distances / (1 / counts[evens][:, None] + 1 / counts[odds][None])


def lost(before: list[dict[str, torch.Tensor]], after: dict[str, torch.Tensor]) -> float:
    """Spread within the slots that merging made, over all heads: what Ward's criterion keeps small."""
    whole = in_a_row(*before)
    total = 0.0
    for name in ("keys", "values"):
        x, y = getattr(whole, name).double(), unpack(after)[name].double()
        weight = x.var(dim=2, correction=0).sum(-1)
        of_tokens = (whole.counts.double().unsqueeze(-1) * x.square()).sum((2, 3))
        of_slots = (after["counts"].double().unsqueeze(-1) * y.square()).sum((2, 3))
        total += float(((of_tokens - of_slots) / weight).sum())
    return total


@pytest.mark.parametrize(("width", "places", "capacity"), SIZES)
@pytest.mark.parametrize("balance", [1.0, 0.3])
def test_merging_keeps_counts_and_means(
    width: int, places: int, capacity: int, balance: float, dtype: torch.dtype
) -> None:
    state = counted(single_tokens(1, places, width, dtype=dtype), 2)
    after = pooled([state], capacity, dtype, balance)
    assert after["counts"].shape[2] == min(places, capacity)
    assert torch.equal(after["counts"].sum(-1), state["counts"].sum(-1))
    for name in ("keys", "values"):
        before, now = (
            (x.double() * counts.unsqueeze(-1)).sum(2) / counts.sum(-1, keepdim=True)
            for x, counts in ((state[name], state["counts"]), (unpack(after)[name], after["counts"]))
        )
        torch.testing.assert_close(now, before, atol=0.03, rtol=0)


@pytest.mark.parametrize("width", [16, 20, 33, 64, 128])
@pytest.mark.parametrize("balance", [1.0, 0.3])
def test_a_round_merges_the_cheapest_pairs_into_their_means_by_count(
    width: int, balance: float, dtype: torch.dtype
) -> None:
    places, capacity, taken = 40, 30, 10
    state = single_tokens(width, places, width, heads=3, dtype=dtype)
    order = shuffled(places).numpy()
    evens, odds = order[0::2], order[1::2]
    counts = np.ones(places)
    # Which of the even places an odd one has taken in is written in its count.
    counts[evens] = 2.0 ** np.arange(1, 21)
    state["counts"] = torch.tensor(counts, dtype=torch.float32).expand(1, 3, -1)
    after = pooled([state], capacity, dtype, balance)
    whole, slots = in_a_row(state), in_a_row(after)
    for head in range(3):
        x = whole.x[0, head].double().numpy()
        costs = ward_costs(scaled(x, width, balance), counts, evens, odds)
        left, takers = after["counts"][0, head, : 20 - taken], after["counts"][0, head, 20 - taken :].long()
        stay = [int(count).bit_length() - 2 for count in left.long()]
        assert stay == sorted(stay)
        given_to = {even: odd for odd in range(20) for even in range(20) if int(takers[odd]) >> (even + 1) & 1}
        assert sorted([*stay, *given_to]) == list(range(20))
        for even, odd in given_to.items():
            assert costs[even, odd] <= costs[even].min() * 1.02
        assert costs[stay].min(axis=1).min() >= max(costs[pair] for pair in given_to.items()) * 0.98
        for odd in range(20):
            members = [odds[odd], *(evens[even] for even, into in given_to.items() if into == odd)]
            mean = (x[members] * counts[members, None]).sum(0) / counts[members].sum()
            step = np.abs(mean).max() / 127
            assert np.abs(slots.x[0, head, 20 - taken + odd].numpy() - mean).max() <= step


@pytest.mark.parametrize(("width", "places"), [(64, 512), (20, 300), (8, 65)])
def test_the_cheapest_of_all_offers_is_found(width: int, places: int, dtype: torch.dtype) -> None:
    order = shuffled(places).numpy()
    evens, odds = order[0::2], order[1::2]
    for seed in range(10):
        state = counted(single_tokens(seed, places, width, heads=1, dtype=dtype), seed)
        state["counts"][..., evens] = torch.arange(1.0, len(evens) + 1)
        after = pooled([state], places - 1, dtype)
        left, takers = after["counts"][0, 0].split([len(evens) - 1, len(odds)])
        even = int(torch.arange(1.0, len(evens) + 1).sum() - left.sum()) - 1
        odd = int((takers != state["counts"][0, 0, odds]).nonzero())
        x, counts = in_a_row(state).x[0, 0].double().numpy(), state["counts"][0, 0].double().numpy()
        costs = ward_costs(scaled(x, width, 1.0), counts, evens, odds)
        assert costs[even, odd] <= costs.min() * 1.02


@pytest.mark.parametrize(("width", "places", "capacity"), [(64, 1024, 512), (20, 90, 50), (128, 300, 40)])
def test_no_more_is_lost_than_by_torch(width: int, places: int, capacity: int, dtype: torch.dtype) -> None:
    runs = [
        counted(single_tokens(1, places // 2, width, 6, dtype=dtype), 1),
        single_tokens(2, places - places // 2, width, 6, dtype=dtype),
    ]
    # Of vectors without any order one merge is as good as another, and luck is worth a hundredth.
    assert lost(runs, pooled(runs, capacity, dtype)) <= 1.02 * lost(runs, by_torch(runs, capacity, dtype))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999),
    width=st.sampled_from([1, 16, 20, 64, 80]),
    size=st.sampled_from([0.0, 1e-40, 1e-9, 1e-3, 1.0, 300.0, 1e7, 1e30]),
)
def test_what_is_only_packed_has_the_bytes_of_pack(seed: int, width: int, size: float, dtype: torch.dtype) -> None:
    state = single_tokens(seed, 9, width, dtype=dtype)
    state = {**state, "keys": state["keys"] * size, "values": state["values"] * size}
    expected = pack(in_a_row(state).state(), "int8")
    once = pooled([state], 9, dtype)
    again = pooled([once], 9, dtype)
    for name in expected:
        assert torch.equal(once[name], expected[name]) and torch.equal(again[name], expected[name])


def test_runs_stand_one_after_the_other_whatever_they_are_cut_from(dtype: torch.dtype) -> None:
    packed, fresh = (
        pack(in_a_row(single_tokens(1, 30, 24, dtype=dtype)).state(), "int8"),
        single_tokens(2, 20, 24, dtype=dtype),
    )
    fresh["values"] = fresh["values"].mT.contiguous().mT
    runs = [
        {name: tensor[:, :, own] for name, tensor in state.items()}
        for state, own in ((packed, slice(0, 4)), (packed, slice(9, 30)), (fresh, slice(3, 20)))
    ]
    expected = pack(in_a_row(*runs).state(), "int8")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pooled(runs, 99, dtype).items())


def test_a_slot_that_nothing_merges_with_never_drifts(dtype: torch.dtype) -> None:
    # Far from everything, also from each other: none of them is ever the cheapest.
    apart = single_tokens(0, 10, 16, heads=1, dtype=dtype)
    apart = counted({**apart, "keys": apart["keys"] * 1000, "values": apart["values"] * 1000}, 3)
    state = first = pooled([apart], 40, dtype)
    for seed in range(1, 12):
        state = pooled([state, single_tokens(seed, 40, 16, heads=1, dtype=dtype)], 40, dtype)
    kept = {bytes(row) for row in state["keys"][0, 0].numpy()}
    assert all(bytes(row) in kept for row in first["keys"][0, 0].numpy())


def test_threads_and_neighbours_change_nothing(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    runs = [
        counted(single_tokens(1, 80, 32, heads=3, rows=2, dtype=dtype), 1),
        single_tokens(2, 70, 32, heads=3, rows=2, dtype=dtype),
    ]
    found = {}
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found[threads] = pooled(runs, 90, dtype)
    monkeypatch.setattr(native, "_team", lambda: None)
    serial = pooled(runs, 90, dtype)
    alone = pooled([{name: tensor[1:] for name, tensor in run.items()} for run in runs], 90, dtype)
    for name, tensor in found[1].items():
        assert torch.equal(tensor, found[2][name]) and torch.equal(tensor, serial[name])
        assert torch.equal(tensor[1:], alone[name])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_ends_in_a_state_of_the_right_size(poison: float, dtype: torch.dtype) -> None:
    for place in (0, 7, 99):
        state = single_tokens(3, 100, 20, dtype=dtype)
        state["keys"][0, 0, place, 5] = poison
        after = pooled([state], 40, dtype)
        assert after["counts"].shape == (1, 2, 40) and torch.equal(after["counts"].sum(-1), torch.full((1, 2), 100.0))
        healthy = pooled([{name: tensor[:, 1:] for name, tensor in state.items()}], 40, dtype)
        assert all(torch.equal(after[name][:, 1:], healthy[name]) for name in after)


def test_equal_places_are_merged_first_come_first(dtype: torch.dtype) -> None:
    state = single_tokens(5, 1, 16, dtype=dtype)
    state = {name: torch.cat([tensor] * 50, dim=2) for name, tensor in state.items()}
    after = pooled([state], 20, dtype)
    assert torch.equal(after["counts"].sum(-1), torch.full((1, 2), 50.0))
    assert (after["keys"] == after["keys"][:, :, :1]).all()


def read(model: Any, segments: int, rows: int = 1) -> InfiniCache:
    cache = model.new_cache()
    with torch.no_grad():
        for segment in random_tokens(rows, 16 * segments).split(16, dim=1):
            model.read_segment(segment, cache)
    return cache


def memory_and_carried(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Carried keys and values, and of a memory how many tokens it holds and their means, (B, G, D)."""
    carried = {name[8:]: x for name, x in state.items() if name.startswith("carried_")}
    memory = {name: x for name, x in state.items() if not name.startswith("carried_")}
    found = {f"carried {name}": x for name, x in (unpack(carried) if carried else {}).items()}
    if memory:
        memory = unpack(memory)
        counts = memory["counts"].unsqueeze(-1)
        found |= {name: (memory[name] * counts).sum(2) / counts.sum(2) for name in ("keys", "values")}
        found["tokens"] = counts.sum(2)
    return found


@pytest.mark.parametrize("heads", [None, [3], {1: [0, 1], 3: [0, 1]}])
@pytest.mark.parametrize("carry", [0, 3, 10, 40])
def test_a_segment_ends_as_by_torch_but_for_rounding(
    carry: int, heads: Any, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = make_model(dtype=dtype, carry=carry, memory_heads=heads)
    for segments in (1, 2, 3):
        ended = read(model, segments, rows=2)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            expected = read(model, segments, rows=2)
        assert ended.seen is not None and expected.seen is not None and torch.equal(ended.seen, expected.seen)
        states, wanted = ended.states(), expected.states()
        assert states.keys() == wanted.keys()
        for index, state in states.items():
            assert {name: (x.dtype, x.shape) for name, x in state.items()} == {
                name: (x.dtype, x.shape) for name, x in wanted[index].items()
            }
            found, known = (memory_and_carried(x) for x in (state, wanted[index]))
            for name, tensor in found.items():
                assert torch.allclose(tensor, known[name], atol=0.05 * float(known[name].abs().amax()) + 1e-6), name
        # Nothing that a memory changed has come into the lowest layer.
        if 0 in states:
            found, known = (memory_and_carried(x) for x in (states[0], wanted[0]))
            for name in (name for name in found if name.startswith("carried")):
                step = float(known[name].abs().amax()) / 127
                assert torch.allclose(found[name], known[name], atol=step), name


def test_read_outs_of_both_memories_agree(dtype: torch.dtype) -> None:
    rule, state, expected = SlotsRule(slots=128), None, None
    centres = single_tokens(0, 64, 64, dtype=dtype)
    for seed in range(4):
        new = single_tokens(seed, 256, 64, dtype=dtype)
        new = {**new, **{name: centres[name].repeat(1, 1, 4, 1) + new[name] / 8 for name in ("keys", "values")}}
        state = pooled([new] if state is None else [state, new], 128, dtype)
        expected = by_torch([new] if expected is None else [expected, new], 128, dtype)
    queries = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(9))
    prepared = (rule.prepare(x, torch.float32) for x in (state, expected))
    found, wanted = (joined_attention([rule.part(x, queries)], 0.125) for x in prepared)
    assert torch.cosine_similarity(found, wanted, dim=-1).mean() > 0.99


@pytest.mark.parametrize(
    "changes",
    [{"packing": "float16"}, {"memory_heads": {1: [0]}}, {"rule": "recent"}],
    ids=str,
)
def test_what_the_library_does_not_know_is_left_to_torch(
    changes: dict[str, Any], make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(native, "pool", lambda *arguments: pytest.fail("the library was asked"))
    cache = read(make_model(**{"dtype": dtype, "carry": 8, **changes}), 3)
    assert cache.states()


def test_padding_is_left_to_torch(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(native, "pool", lambda *arguments: pytest.fail("the library was asked"))
    model = make_model(dtype=dtype, carry=8)
    cache = model.new_cache()
    with torch.no_grad():
        read_masked(model, random_tokens(2, 16), cache, torch.tensor([[1] * 16, [0] * 4 + [1] * 12]))
    assert cache.seen is not None and cache.seen.tolist() == [16, 12]


def asked(
    seed: int,
    sizes: list[int],
    tokens: int,
    dtype: torch.dtype,
    width: int = 64,
    value_width: int = 64,
    rows: int = 1,
    share: int = 2,
) -> list[Part]:
    """Parts with so many keys of two heads, each asked by `share` heads; biases of all kinds but for the last part.

    Laid out as layers make them: tokens before heads.
    """
    groups = 2
    generator = torch.Generator().manual_seed(seed)

    def vectors(heads: int, count: int, numbers: int) -> torch.Tensor:
        return torch.randn(rows, count, heads, numbers, generator=generator).to(dtype).transpose(1, 2)

    parts = []
    for size in sizes:
        of_keys = torch.randn(rows, groups, 1, size, generator=generator)
        of_keys[..., : size // 3] = -float("inf")
        of_queries = torch.zeros(rows, 1, tokens, 1, dtype=dtype)
        of_queries[:, :, :2] = -float("inf")
        biases = [] if size == sizes[-1] else [of_keys, of_queries]
        parts.append(
            Part(
                vectors(share * groups, tokens, width),
                vectors(groups, size, width),
                vectors(groups, size, value_width),
                biases,
            )
        )
    return parts


def softmax_over(parts: list[Part], scaling: float, causal: bool) -> torch.Tensor:
    """One softmax over the keys of all parts, in float64 from the definition."""
    logits, share = [], parts[0].queries.shape[1] // parts[0].keys.shape[1]
    for part in parts:
        found = part.queries.double() @ part.keys.double().repeat_interleave(share, dim=1).mT * scaling
        for bias in part.biases:
            found = found + bias.double().repeat_interleave(found.shape[1] // bias.shape[1], dim=1)
        logits.append(found)
    if causal:
        size = logits[-1].shape[-1]
        logits[-1] = logits[-1] + torch.full((size, size), -float("inf"), dtype=torch.float64).triu(1)
    values = torch.cat([part.values.double().repeat_interleave(share, dim=1) for part in parts], dim=2)
    return torch.cat(logits, dim=-1).softmax(dim=-1) @ values


# How far values may be from those in float64: results and weights are rounded to bfloat16, or sums to float32.
EXACT = {BFLOAT16: 0.006, FLOAT32: 5e-6}


@pytest.mark.parametrize(
    ("sizes", "tokens", "width", "value_width", "share"),
    [
        ([512, 256, 130], 130, 64, 64, 3),
        ([33, 16], 16, 16, 16, 1),
        ([1, 5, 47], 47, 20, 36, 2),
        ([100], 100, 128, 128, 6),
        ([70, 33], 33, 64, 64, 7),
        ([7, 24], 24, 96, 80, 2),
        ([70, 25], 25, 2, 1, 2),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_one_softmax_over_all_parts(
    sizes: list[int], tokens: int, width: int, value_width: int, share: int, causal: bool, dtype: torch.dtype
) -> None:
    parts = asked(1, sizes, tokens, dtype, width, value_width, rows=2, share=share)
    assert native.attends(parts, None, causal)
    got = joined_attention(parts, width**-0.5, None, causal)
    expected = softmax_over(parts, width**-0.5, causal)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, atol=EXACT[dtype], rtol=EXACT[dtype])


def test_attention_is_that_of_torch_but_for_rounding(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = asked(7, [96, 40, 60], 60, dtype, share=3)
    got = joined_attention(parts, 0.125, None, True)
    monkeypatch.setattr(native, "library", lambda: None)
    # Torch rounds logits to bfloat16, the library does not.
    close = {BFLOAT16: 0.04, FLOAT32: EXACT[FLOAT32]}[dtype]
    torch.testing.assert_close(got, joined_attention(parts, 0.125, None, True), atol=close, rtol=close)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.integers(0, 70), max_size=2),
    tokens=st.integers(16, 70),
    half=st.integers(1, 40),
    value_width=st.integers(1, 70),
    share=st.integers(1, 7),
    causal=st.booleans(),
)
def test_attention_holds_for_all_sizes(
    seed: int,
    sizes: list[int],
    tokens: int,
    half: int,
    value_width: int,
    share: int,
    causal: bool,
    dtype: torch.dtype,
) -> None:
    parts = asked(seed, [*sizes, tokens], tokens, dtype, 2 * half, value_width, share=share)
    got = joined_attention(parts, half**-0.5, None, causal)
    expected = softmax_over(parts, half**-0.5, causal)
    torch.testing.assert_close(got.double(), expected, atol=2 * EXACT[dtype], rtol=2 * EXACT[dtype])


@pytest.mark.parametrize("size", [0.01, 30.0])
def test_attention_holds_for_flat_and_sharp_weights(size: float, dtype: torch.dtype) -> None:
    parts = [part._replace(queries=part.queries * size) for part in asked(2, [64, 40], 40, dtype)]
    got = joined_attention(parts, 0.125, None, True)
    # A logit of 300 has an error of a hundred thousandth in float32.
    close = {BFLOAT16: 0.01, FLOAT32: 1e-4}[dtype]
    torch.testing.assert_close(got.double(), softmax_over(parts, 0.125, True), atol=close, rtol=close)


def test_a_query_that_sees_no_key_gets_finite_values(dtype: torch.dtype) -> None:
    (part,) = asked(3, [40], 20, dtype)
    blind = torch.full((1, 1, 20, 1), -float("inf"))
    assert joined_attention([part._replace(biases=[blind])], 0.125).isfinite().all()


def test_what_is_not_a_number_stays_with_the_queries_that_see_it(dtype: torch.dtype) -> None:
    (part,) = asked(3, [40], 40, dtype)
    part.keys[0, 0, 30, 3] = float("nan")
    got = joined_attention([part], 0.125, None, True)
    assert got[0, :2, 30:].isnan().all() and got[0, :2, :30].isfinite().all() and got[0, 2:].isfinite().all()


def test_attention_does_not_depend_on_threads_and_rows(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    parts, found = asked(4, [70, 90], 90, dtype, rows=2), {}
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found[threads] = joined_attention(parts, 0.125, None, True)
    monkeypatch.setattr(native, "_team", lambda: None)
    assert torch.equal(found[1], found[2])
    assert torch.equal(found[1], joined_attention(parts, 0.125, None, True))
    alone = [Part(*(x[1:] for x in part[:3]), [bias[1:] for bias in part.biases]) for part in parts]
    assert torch.equal(found[1][1:], joined_attention(alone, 0.125, None, True))


def test_attention_that_the_library_does_not_know_is_left_to_torch(dtype: torch.dtype) -> None:
    (part,) = asked(5, [40], 40, dtype)
    assert native.attends([part], None, False)
    assert not native.attends([part], 5.0, False)
    assert not native.attends([part._replace(queries=part.queries[:, :, :20])], None, True)
    assert not native.attends([part._replace(biases=[torch.zeros(1, 1, 40, 40)])], None, False)
    assert not native.attends([part._replace(queries=part.queries[:, :, :4])], None, False)
    assert not native.attends([Part(*(x.half() for x in part[:3]))], None, False)
    assert not native.attends([part._replace(queries=part.queries.clone().requires_grad_())], None, False)
    assert not native.attends(asked(5, [40, 30, 20, 10], 10, dtype), None, False)


@pytest.mark.parametrize(("width", "turned"), [(64, 64), (20, 20), (16, 8), (80, 32), (128, 128), (6, 2)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2])
def test_vectors_are_turned_to_the_same_bits(
    width: int, turned: int, kind: torch.dtype, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(2, 70, 3, width, generator=generator).to(kind).transpose(1, 2)
    angles = torch.randn(rows, 70, turned, generator=generator)
    tables = angles.cos(), angles.sin() * 1.3
    assert native.rotates(x, *tables)
    for wanted in (torch.float32, torch.bfloat16):
        got = rotate(x, *tables, dtype=wanted)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            assert torch.equal(got, rotate(x, *tables, dtype=wanted))


@pytest.mark.parametrize("width", [64, 20, 3])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_states_are_unpacked_to_the_same_bits(
    width: int, kind: torch.dtype, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = pack(in_a_row(single_tokens(1, 40, width, rows=2)).state(), "int8")
    part = {name: tensor[:, :, 3:30] for name, tensor in state.items()}
    assert native.unpacks(part["keys"], part["keys_scale"])
    got = unpack(part, kind)
    monkeypatch.setattr(native, "library", lambda: None)
    expected = unpack(part, kind)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert got["keys"].dtype == got["values"].dtype == kind


@pytest.mark.parametrize("name", ["keys", "values", "counts", "keys_scale"])
def test_states_that_do_not_fit_together_are_refused(name: str, dtype: torch.dtype) -> None:
    state = pack(in_a_row(single_tokens(1, 10, 16, dtype=dtype)).state(), "int8")
    for wrong in (state[name][:, :1], state[name][:, :, :9], state[name].double()):
        with pytest.raises(ValueError, match=r"shape|should be|need"):
            pooled([state, {**state, name: wrong}], 5, dtype)


def test_parts_that_do_not_fit_together_are_refused(dtype: torch.dtype) -> None:
    (part,) = asked(1, [40], 40, dtype)
    for wrong in (part.keys[..., :32], part.keys[:, :1]):
        with pytest.raises(ValueError, match="should be"):
            joined_attention([part._replace(keys=wrong), part], 0.125, None, True)
    with pytest.raises(ValueError, match="do not fit"):
        rotate(part.keys.float(), torch.zeros(1, 39, 64), torch.zeros(1, 39, 64))
    with pytest.raises(ValueError, match="do not fit"):
        native.unpack(part.keys.to(torch.int8), torch.zeros(1, 2, 39), dtype)


@pytest.mark.parametrize("default", [torch.device("meta"), torch.bfloat16], ids=str)
def test_torchs_defaults_change_nothing(default: Any, make_model: MakeModel) -> None:
    model = make_model(dtype=torch.bfloat16, carry=8)
    segments = random_tokens(1, 64).split(16, dim=1)
    caches = [model.new_cache(), model.new_cache()]
    change, before = (
        (torch.set_default_dtype, torch.get_default_dtype())
        if isinstance(default, torch.dtype)
        else (torch.set_default_device, None)
    )
    for cache, value in zip(caches, (before, default), strict=True):
        with torch.no_grad():
            for segment in segments:
                model.model.get_decoder()(input_ids=segment, past_key_values=cache.recording(), use_cache=True)
                change(value)
                end_segment(cache)
                change(before)
    for index, state in caches[0].states().items():
        assert all(torch.equal(x, caches[1].states()[index][name]) for name, x in state.items())


@pytest.mark.parametrize("content", [None, b"no library at all"])
def test_without_the_library_torch_does_it_all(
    content: bytes | None, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / native.LIBRARY.name
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(native, "LIBRARY", path)
    native.library.cache_clear()
    try:
        assert native.library() is None
        cache = read(make_model(dtype=torch.bfloat16, carry=8), 3)
        assert cache.seen is not None and cache.seen.tolist() == [48]
    finally:
        native.library.cache_clear()


@pytest.mark.parametrize("value", ["none", "0"])
def test_the_environment_switches_the_library_off(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert switched(monkeypatch, value) == {}


def test_the_environment_names_the_best_level(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, level in enumerate(native.LEVELS):
        for kernels in switched(monkeypatch, level).values():
            assert kernels.name.rpartition("_")[2] in native.LEVELS[index:]


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSetting, match="avx2"):
        switched(monkeypatch, "fast")


@pytest.mark.parametrize("threads", [1, 2])
def test_products_of_torch_are_right_after_those_of_the_library(
    threads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tile registers have shapes, which other libraries rely on."""
    generator = torch.Generator().manual_seed(8)
    a, b = torch.randn(2, 97, 97, generator=generator).to(dtype)
    before, parts = a @ b, asked(9, [40], 40, dtype)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    first = joined_attention(parts, 0.125, None, True)
    for _ in range(3):
        assert torch.equal(a @ b, before)
        assert torch.equal(joined_attention(parts, 0.125, None, True), first)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The build hook over a source tree that holds the C code alone; hatchling itself is there at installation only."""
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    sources = Path(native.__file__).parent
    spec = importlib.util.spec_from_file_location("build_hook", sources / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / module.FOLDER).mkdir(parents=True)
    for name in SOURCES:
        shutil.copy(sources / name, tmp_path / module.FOLDER)
    return module.LibraryHook(root=str(tmp_path))


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_a_compiler_that_fails_leaves_a_pure_installation(
    compiler: str, hook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    old = Path(hook.root) / "infinimem/attention/native/libinfinimem-0123456789abcdef.so"
    old.write_bytes(b"of another version")
    data: dict[str, Any] = {"artifacts": [], "pure_python": True}
    hook.initialize("standard", data)
    assert data == {"artifacts": [], "pure_python": True}
    assert sorted(path.name for path in old.parent.iterdir()) == SOURCES


def compiles(flags: str) -> bool:
    """Whether there is a C compiler that knows these flags."""
    command = ["cc", *flags.split(), "-x", "c", "-c", "-o", os.devnull, "-"]
    try:
        return subprocess.run(command, input=b"int x;", capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_sources_that_cannot_be_written_beside_leave_a_pure_installation(
    hook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("read-only")

    (Path(hook.root) / "infinimem/attention/native/libinfinimem-0123456789abcdef.so").write_bytes(b"of another version")
    monkeypatch.setattr(Path, "unlink", refuse)
    data: dict[str, Any] = {"artifacts": [], "pure_python": True}
    hook.initialize("standard", data)
    assert data == {"artifacts": [], "pure_python": True}


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or not compiles("-mavx512bf16"),
    reason="there is no C compiler for x86-64 with AVX-512 BF16",
)
def test_a_compiler_that_works_makes_a_wheel_of_this_platform(hook: Any) -> None:
    data: dict[str, Any] = {"artifacts": [], "pure_python": True}
    hook.initialize("standard", data)
    assert data == {
        "artifacts": [f"infinimem/attention/native/{native.LIBRARY.name}"],
        "pure_python": False,
        "tag": "py3-none-linux_x86_64",
    }
    assert (Path(hook.root) / data["artifacts"][0]).read_bytes()[:4] == b"\x7fELF"
