"""Carried tokens: what stays of a segment as it is, read at its true distance, and what goes on into the memory."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import FAMILIES, MakeModel, ragged, random_tokens, read
from hypothesis import given, settings
from hypothesis import strategies as st

from infinimem.attention import GatedRule, end_segment
from infinimem.attention.carried import SINKS, carry_over, too_far
from infinimem.attention.rules import RULES, make_rule
from infinimem.attention.rules.recent import RecentRule
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
    settings = {} if isinstance(make_rule(rule), GatedRule) else {"packing": "float32"}
    model = make_model(family, rule, carry=10, **settings)
    rows, batch, mask = ragged([48, 43, 37], 16)
    together = model.new_cache()
    read(model, batch, together, mask)
    question = random_tokens(3, 6, seed=7)
    answers = model.model(input_ids=question, past_key_values=together).logits
    for i, row in enumerate(rows):
        alone = model.new_cache()
        read(model, row, alone)
        expected = model.model(input_ids=question[i : i + 1], past_key_values=alone).logits
        assert torch.allclose(answers[i : i + 1], expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_a_row_that_has_read_nothing_carries_nothing(rule: str, make_model: MakeModel) -> None:
    model = make_model("Llama", rule, carry=6)
    cache, tokens = model.new_cache(), random_tokens(2, 16)
    read(model, tokens, cache, torch.tensor([[1] * 16, [0] * 16]))
    question = random_tokens(2, 6, seed=3)
    got = model.model(input_ids=question, past_key_values=cache).logits
    assert torch.allclose(got[1], model.model(input_ids=question).logits[1], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_a_segment_at_once_equals_token_by_token(rule: str, make_model: MakeModel) -> None:
    # Rounding to int8 would make a step of the last bit in which the two differ.
    settings = {} if isinstance(make_rule(rule), GatedRule) else {"packing": "float32"}
    model = make_model("Gemma3", rule, carry=10, **settings)
    model.prefix = []
    at_once, one_by_one = model.new_cache(), model.new_cache()
    for segment in random_tokens(1, 48).split(16, dim=1):
        logits = model.read_segment(segment, at_once, logits=True)
        one_by_one.recording()
        steps = [model.model(input_ids=t, past_key_values=one_by_one).logits for t in segment.split(1, dim=1)]
        end_segment(one_by_one)
        assert torch.allclose(torch.cat(steps, dim=1), logits, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_only_what_is_no_longer_carried_is_in_the_memory(make_model: MakeModel) -> None:
    model = make_model(carry=10, slots=64, packing="float32", memory_heads={1: [0], 3: [0, 1]})
    cache = model.new_cache()
    read(model, random_tokens(1, 40), cache)
    assert cache.seen is not None and cache.seen.tolist() == [40]
    for index, state in cache.states().items():
        assert state["carried_keys"].shape == (1, 2, 10, 16) and (state["carried_counts"] == 1).all()
        assert ("counts" in state) == (index in (1, 3))
    assert cache.states()[1]["counts"].sum() == 30


@torch.no_grad()
def test_layers_without_a_memory_carry_too(make_model: MakeModel) -> None:
    model = make_model(carry=64, memory_heads=[3], packing="float32")
    cache, past, now = model.new_cache(), random_tokens(1, 32), random_tokens(1, 8, seed=1)
    read(model, past, cache)
    got = model.model(input_ids=now, past_key_values=cache).logits
    model.close()
    assert torch.allclose(
        got, model.model(input_ids=torch.cat((past, now), dim=1)).logits[:, 32:], atol=2e-4, rtol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize(("first", "second"), [(32, 23), (32, 5), (7, 5), (3, 32)])
def test_merged_memories_hold_the_tokens_that_reading_on_would_leave(
    first: int, second: int, make_model: MakeModel
) -> None:
    """The lowest layer's keys depend on nothing that is carried, so there the merge is exact."""
    model = make_model(carry=10, slots=64, packing="float32", memory_heads=[0])
    tokens = random_tokens(1, first + second)
    parts = [model.new_cache(), model.new_cache(), model.new_cache()]
    model.read_segment(tokens[:, :first], parts[1])
    model.read_segment(tokens[:, first:], parts[2])
    at_once = model.new_cache()
    for part in (tokens[:, :first], tokens[:, first:]):
        model.read_segment(part, at_once)
    merged, expected = model.merge_caches(parts), at_once.states()[0]
    assert merged.seen is not None and merged.seen.tolist() == [first + second]
    found = merged.states()[0]
    assert set(found) == set(expected)
    for name in found:
        a, b = (state[name].flatten(2).sum(-1, keepdim=True) for state in (found, expected))
        ordered = name.startswith("carried_")
        torch.testing.assert_close(
            found[name] if ordered else a, expected[name] if ordered else b, atol=1e-3, rtol=1e-3
        )


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_a_token_that_begins_every_text_sees_no_past(rule: str, make_model: MakeModel) -> None:
    model = make_model("Gemma2", rule, carry=10)
    model.prefix = [1]
    cache = model.new_cache()
    read(model, random_tokens(1, 40), cache)
    seen = []
    model.model.get_decoder().layers[-1].register_forward_hook(lambda m, a, out: seen.append(out))
    model.read_segment(random_tokens(1, 12, seed=1), cache, hidden=True)
    model.read_segment(random_tokens(1, 12, seed=1), model.new_cache(), hidden=True)
    with_past, without = (out[0] if isinstance(out, tuple) else out for out in seen)
    torch.testing.assert_close(with_past[:, 0], without[:, 0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(with_past[:, 1], without[:, 1], atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_attention_can_be_computed_in_bfloat16(
    rule: str, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the model's own type is the fastest."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(
            sys.modules["infinimem.attention.attend"], "compute_dtype", lambda query, dtype=dtype: dtype
        )
        model = make_model("Llama", rule, carry=10)
        cache = model.new_cache()
        read(model, random_tokens(1, 40), cache)
        found.append(model.read_segment(random_tokens(1, 12, seed=1), cache, logits=True).log_softmax(-1))
    assert (found[0] - found[1]).abs().mean() < 0.25


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
        read(model, tokens[:, :32], cache)
        errors.append((model.read_segment(tokens[:, 32:], cache, logits=True) - expected).abs().mean())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_what_lies_beyond_a_layers_own_window_is_hidden() -> None:
    positions = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
    hidden = too_far(positions, 3, 4)
    assert hidden is not None
    assert (hidden[0, 0] == 0).tolist() == [[True] * 3, [False, True, True], [False, False, True], [False] * 3]
    assert (hidden[1, 0] == 0).tolist() == [[True] * 3] * 3 + [[False, True, True]]
    assert too_far(positions, 3, 7) is None


@pytest.mark.parametrize("carry", [-1, 2048 - 16 + 1])
def test_a_carry_that_the_context_has_no_room_for_is_refused(carry: int, make_model: MakeModel) -> None:
    with pytest.raises(InvalidSetting, match=f"carry is {carry}; .* 0 to 2032 tokens"):
        make_model(carry=carry)


@pytest.mark.parametrize("rule", ["slots", "linear"])
def test_gradients_flow_through_carried_tokens_of_rows_of_unequal_length(rule: str, make_model: MakeModel) -> None:
    settings = {"packing": "float32"} if rule == "slots" else {}
    model = make_model("Llama", rule, carry=10, memory_heads=[3], **settings)
    embedded, touched = model.model.get_input_embeddings(), []
    cache = model.new_cache()
    tokens, mask = random_tokens(3, 32), torch.ones(3, 32, dtype=torch.long)
    mask[1, 5:16], mask[2, :16] = 0, 0
    for part in (slice(0, 16), slice(16, 32)):
        handle = embedded.register_forward_hook(lambda m, a, out: touched.append(out) or out.requires_grad_())
        logits = model.read_segment(tokens[:, part], cache, mask[:, part], logits=True)
        handle.remove()
    assert logits is not None
    (gradient,) = torch.autograd.grad(logits.square().sum(), touched[0])
    assert torch.isfinite(gradient).all()
    reached = gradient.abs().sum(-1) > 0
    # Six last ones and the first four, of five tokens all; a row without any has nothing to reach.
    assert reached[0, [0, 1, 2, 3, 10, 11, 12, 13, 14, 15]].all() and reached[1, :5].all() and not reached[2].any()


def test_a_model_that_has_read_in_inference_mode_can_be_trained(make_model: MakeModel) -> None:
    model = make_model(segment_length=16, carry=8)
    segments = random_tokens(1, 64).split(16, dim=1)
    with torch.inference_mode():
        cache = model.new_cache()
        for segment in segments[:3]:
            model.read_segment(segment, cache)
    cache = model.new_cache()
    for segment in segments[:3]:
        model.read_segment(segment, cache)
    model.model.requires_grad_(True)
    logits = model.read_segment(segments[3], cache, logits=True)
    assert logits is not None
    logits.square().mean().backward()
    assert all(parameter.grad is not None for name, parameter in model.model.named_parameters() if "q_proj" in name)
