"""Carried tokens: what stays of a segment as it is, read at its true distance, and what goes on into the memory."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, MakeModel, random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from infinimem.attention import RULES, RecentRule, make_rule
from infinimem.attention.carried import SINKS, carry_over, too_far
from infinimem.attention.packing import unpack
from infinimem.errors import InvalidSetting


def numbered(start: int, count: int) -> torch.Tensor:
    """Keys (1, 2, count, 1) that say which token of the row they belong to."""
    return torch.arange(start, start + count, dtype=torch.float32)[None, None, :, None].expand(1, 2, -1, 1)


@settings(deadline=None, max_examples=200)
@given(
    size=st.integers(2, 24),
    segments=st.lists(st.lists(st.booleans(), min_size=1, max_size=16), min_size=1, max_size=6),
    seed=st.integers(0, 9),
)
def test_every_token_is_carried_or_has_left_in_order_and_the_first_and_last_are_carried(
    size: int, segments: list[list[bool]], seed: int
) -> None:
    """Two rows, one of them without padding, through segments of any lengths."""
    carried, gone, read = None, [[], []], [0, 0]
    for padding in segments:
        masks = [[True] * len(padding), padding]
        keys = torch.full((2, 2, len(padding), 1), -1.0)
        for row, mask in enumerate(masks):
            keys[row, :, torch.tensor(mask)] = numbered(read[row], sum(mask))[0]
            read[row] += sum(mask)
        mask = None if all(padding) else torch.tensor(masks)
        carried, leaving = carry_over(carried, keys, keys * 2, mask, size, "float32")
        if leaving is not None:
            assert torch.equal(leaving.values, leaving.keys * 2)
            for row in range(2):
                kept = (
                    leaving.keys[row, 0, :, 0] if leaving.mask is None else leaving.keys[row, 0, leaving.mask[row], 0]
                )
                gone[row] += kept.int().tolist()
    sinks = min(SINKS, size // 2)
    for row in range(2):
        stay = carried["keys"][row, 0, carried["counts"][row, 0] > 0, 0].int().tolist()
        total = read[row]
        expected = list(range(total)) if total <= size else [*range(sinks), *range(total - size + sinks, total)]
        assert stay == expected
        assert gone[row] == [token for token in range(total) if token not in expected]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_is_carried_whole_is_read_as_the_plain_model_reads_it(family: str, make_model: MakeModel) -> None:
    model = make_model(family, carry=64, packing="float32")
    model.prefix = []
    tokens = random_tokens(1, 48)
    cache = model.new_cache()
    got = [model.read_segment(segment, cache, logits=True) for segment in tokens.split(16, dim=1)]
    model.close()
    expected = model.model(input_ids=tokens).logits
    assert torch.allclose(torch.cat(got, dim=1), expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_single_runs(family: str, rule: str, make_model: MakeModel) -> None:
    settings = {} if make_rule(rule).gated else {"packing": "float32"}
    model = make_model(family, rule, carry=10, **settings)
    lengths = [48, 43, 37]
    rows = [random_tokens(1, length, seed=length) for length in lengths]
    batch, mask = torch.zeros(3, 48, dtype=torch.long), torch.zeros(3, 48, dtype=torch.long)
    for i, row in enumerate(rows):
        batch[i, :32], mask[i, :32] = row[0, :32], 1
        batch[i, 48 - (row.shape[1] - 32) :], mask[i, 48 - (row.shape[1] - 32) :] = row[0, 32:], 1
    together = model.new_cache()
    model.read(batch, together, mask)
    question = random_tokens(3, 6, seed=7)
    answers = model.model(input_ids=question, past_key_values=together).logits
    for i, row in enumerate(rows):
        alone = model.new_cache()
        model.read(row, alone)
        expected = model.model(input_ids=question[i : i + 1], past_key_values=alone).logits
        assert torch.allclose(answers[i : i + 1], expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_a_row_that_has_read_nothing_carries_nothing(rule: str, make_model: MakeModel) -> None:
    model = make_model("Llama", rule, carry=6)
    cache, tokens = model.new_cache(), random_tokens(2, 16)
    model.read(tokens, cache, torch.tensor([[1] * 16, [0] * 16]))
    question = random_tokens(2, 6, seed=3)
    got = model.model(input_ids=question, past_key_values=cache).logits
    assert torch.allclose(got[1], model.model(input_ids=question).logits[1], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_a_segment_at_once_equals_token_by_token(rule: str, make_model: MakeModel) -> None:
    model = make_model("Gemma3", rule, carry=10)
    model.prefix = []
    at_once, one_by_one = model.new_cache(), model.new_cache()
    for segment in random_tokens(1, 48).split(16, dim=1):
        logits = model.read_segment(segment, at_once, logits=True)
        one_by_one.recording()
        steps = [model.model(input_ids=t, past_key_values=one_by_one).logits for t in segment.split(1, dim=1)]
        one_by_one.end_segment()
        assert torch.allclose(torch.cat(steps, dim=1), logits, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_only_what_is_no_longer_carried_is_in_the_memory(make_model: MakeModel) -> None:
    model = make_model(carry=10, slots=64, packing="float32", memory_heads={1: [0], 3: [0, 1]})
    cache = model.new_cache()
    model.read(random_tokens(1, 40), cache)
    assert cache.seen is not None and cache.seen.tolist() == [40]
    for index, state in cache.states().items():
        assert state["carried_keys"].shape == (1, 2, 10, 16) and (state["carried_counts"] == 1).all()
        assert ("counts" in state) == (index in (1, 3))
    assert cache.states()[1]["counts"].sum() == 30


@torch.no_grad()
def test_layers_without_a_memory_carry_too(make_model: MakeModel) -> None:
    model = make_model(carry=64, memory_heads=[3], packing="float32")
    cache, past, now = model.new_cache(), random_tokens(1, 32), random_tokens(1, 8, seed=1)
    model.read(past, cache)
    got = model.model(input_ids=now, past_key_values=cache).logits
    model.close()
    assert torch.allclose(
        got, model.model(input_ids=torch.cat((past, now), dim=1)).logits[:, 32:], atol=2e-4, rtol=1e-4
    )


@torch.no_grad()
def test_merging_puts_what_the_first_carries_into_the_memory(make_model: MakeModel) -> None:
    model = make_model(rule="linear", carry=10)
    first, second = model.new_cache(), model.new_cache()
    model.read(random_tokens(1, 32), first)
    model.read(random_tokens(1, 23, seed=1), second)
    merged = model.merge_caches([model.new_cache(), first, second])
    assert merged.seen is not None and merged.seen.tolist() == [55]
    for index, state in merged.states().items():
        a, b = first.states()[index], second.states()[index]
        assert all(torch.equal(state[name], b[name]) for name in b if name.startswith("carried_"))
        pushed = unpack({name.removeprefix("carried_"): t for name, t in a.items() if name.startswith("carried_")})
        written = model.rule.write(
            {name: a[name] for name in ("matrix", "normalizer")}, pushed["keys"], pushed["values"]
        )
        assert all(torch.allclose(state[name], written[name] + b[name], atol=1e-4) for name in written)


@torch.no_grad()
def test_more_is_carried_the_better_the_past_is_read(make_model: MakeModel) -> None:
    """Against the past as it is: with the memory at no distance at all, only carried tokens stand where they stood."""
    tokens, errors = random_tokens(1, 48), []
    plain = make_model()
    plain.close()
    expected = plain.model(input_ids=tokens).logits[:, 32:]
    for carry in (0, 12, 32):
        model = make_model(carry=carry).with_rule(RecentRule(tokens=64, distance=0, packing="float32"))
        cache = model.new_cache()
        model.read(tokens[:, :32], cache)
        errors.append((model.read_segment(tokens[:, 32:], cache, logits=True) - expected).abs().mean())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_what_lies_beyond_a_layers_own_window_is_hidden() -> None:
    positions = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
    hidden = too_far(positions, 3, 4)
    assert hidden is not None
    assert (hidden[0, 0] == 0).tolist() == [[True] * 3, [False, True, True], [False, False, True], [False] * 3]
    assert (hidden[1, 0] == 0).tolist() == [[True] * 3] * 3 + [[False, True, True]]
    assert too_far(positions, 3, 7) is None


def test_fewer_than_no_carried_tokens_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(InvalidSetting, match="carry is -1"):
        make_model(carry=-1)
