"""The recent rule: the last tokens as they are, read as slots are."""

from __future__ import annotations

import pytest
import torch
from conftest import MakeModel, random_tokens, read
from torch import Tensor

from infinimem.attention.rules import make_rule
from infinimem.attention.rules.recent import RecentRule
from infinimem.attention.rules.slots import SlotsRule
from infinimem.attention.softmax import joined_attention
from infinimem.errors import InvalidSetting


def segment(seed: int, tokens: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, tokens, 8, generator=generator), torch.randn(rows, 2, tokens, 8, generator=generator)


def test_the_last_tokens_stay_as_they_are() -> None:
    rule, state = RecentRule(tokens=20, packing="float32"), None
    written = [segment(seed, 9) for seed in range(4)]
    for keys, values in written:
        state = rule.write(state, keys, values)
    assert torch.equal(state["keys"], torch.cat([keys for keys, _ in written], 2)[:, :, -20:])
    assert torch.equal(state["values"], torch.cat([values for _, values in written], 2)[:, :, -20:])
    assert (state["counts"] == 1).all() and state["counts"].shape == (1, 2, 20)


def test_a_merge_is_what_reading_both_would_keep() -> None:
    rule = RecentRule(tokens=20, packing="float32")
    parts = [segment(seed, 15) for seed in range(2)]
    merged = rule.merge(rule.write(None, *parts[0]), rule.write(None, *parts[1]))
    together = rule.write(rule.write(None, *parts[0]), *parts[1])
    assert all(torch.equal(merged[name], together[name]) for name in together)


@pytest.mark.parametrize("tokens", [10, 100])
def test_a_read_is_softmax_attention_over_what_is_kept(tokens: int) -> None:
    rule = RecentRule(tokens=tokens, packing="float32")
    keys, values = segment(2, 30)
    queries = torch.randn(1, 4, 5, 8, generator=torch.Generator().manual_seed(9))
    state = rule.prepare(rule.write(None, keys, values), torch.float32)
    got = joined_attention([rule.part(state, queries)], 0.3)
    kept = keys.double()[:, :, -tokens:].repeat_interleave(2, 1)
    logits = queries.double() @ kept.mT * 0.3
    expected = logits.softmax(-1) @ values.double()[:, :, -tokens:].repeat_interleave(2, 1)
    assert torch.allclose(got.double(), expected, atol=1e-5)


def test_padding_takes_no_place() -> None:
    rule = RecentRule(tokens=10)
    keys, values = segment(5, 8, rows=2)
    mask = torch.tensor([[True] * 8, [False] * 5 + [True] * 3])
    state = rule.write(rule.write(None, keys, values), keys, values, mask)
    alone = rule.write(rule.write(None, keys[1:], values[1:]), keys[1:, :, 5:], values[1:, :, 5:])
    assert state["counts"].sum(-1)[:, 0].tolist() == [10.0, 10.0]
    assert all(torch.equal(state[name][1:], alone[name]) for name in alone)


def test_slots_and_recent_are_the_same_exact_past_while_nothing_is_left_out(make_model: MakeModel) -> None:
    model = make_model(slots=500)
    recent = model.with_rule(RecentRule(tokens=10**9, distance=16))
    tokens, last = random_tokens(1, 100), random_tokens(1, 16, seed=1)
    logits = []
    for one in (model, recent):
        cache = one.new_cache()
        read(one, tokens, cache)
        with torch.no_grad():
            logits.append(one.read_segment(last, cache, logits=True))
    assert torch.allclose(logits[0], logits[1], atol=1e-5)


@pytest.mark.parametrize("rule", [SlotsRule(slots=8, distance=40), RecentRule(tokens=8, distance=40)])
def test_a_model_with_another_rule_is_one_that_was_made_with_it(
    make_model: MakeModel, rule: SlotsRule | RecentRule
) -> None:
    made = make_model(rule=rule.name, **rule.settings())
    swapped = make_model(slots=24, distance=16)
    untouched = swapped.rule
    states = []
    for model in (made, swapped.with_rule(rule)):
        cache = model.new_cache()
        read(model, random_tokens(1, 90), cache)
        states.append(cache.states())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][i][name], states[1][i][name]) for i in states[0] for name in states[0][i])
    assert swapped.rule is untouched and swapped.identity() != swapped.with_rule(rule).identity()


def test_gates_cannot_be_had_afterwards(make_model: MakeModel) -> None:
    with pytest.raises(InvalidSetting, match="gates"):
        make_model().with_rule(make_rule("linear"))
    gated = make_model(rule="linear")
    cache = gated.with_rule(RecentRule(tokens=50)).new_cache()
    read(gated.with_rule(RecentRule(tokens=50)), random_tokens(1, 60), cache)
    assert cache.states()[0]["counts"].shape[-1] == 50


@pytest.mark.parametrize("settings", [{"tokens": 1}, {"tokens": -3}, {"distance": -1}, {"slots": 9}])
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidSetting):
        make_rule("recent", **settings)
