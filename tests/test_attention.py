"""The attention function inside real transformers models of all supported families."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest import FAMILIES, MakeModel, ragged, random_tokens, read, tiny_network

from infinimem.answering.rows import generate
from infinimem.attention import end_segment
from infinimem.attention.attach import Attachment
from infinimem.attention.cache import InfiniCache
from infinimem.attention.rules import make_rule
from infinimem.attention.rules.slots import SlotsRule
from infinimem.errors import InvalidSetting, NoRotaryEmbedding

RULES = ["slots", "linear", "delta"]


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["slots", "linear"])
def test_an_empty_memory_leaves_the_models_bits_alone(family: str, rule: str, dtype: torch.dtype) -> None:
    network, tokens = tiny_network(family).to(dtype), random_tokens(2, 40)
    mask = torch.ones_like(tokens)
    mask[1, :9] = 0
    expected = network(input_ids=tokens, attention_mask=mask).logits
    chosen = make_rule(rule)
    with Attachment(network, chosen):
        cache = InfiniCache(chosen, 4).recording()
        got = network(input_ids=tokens, attention_mask=mask, past_key_values=cache).logits
        plain = network(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    assert torch.equal(got, expected)
    assert torch.equal(plain, expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_inexact_cache_differs_from_the_model_by_rounding_alone(family: str, dtype: torch.dtype) -> None:
    network, tokens = tiny_network(family).to(dtype), random_tokens(2, 40)
    mask = torch.ones_like(tokens)
    mask[1, :9] = 0
    exact = tiny_network(family)(input_ids=tokens, attention_mask=mask).logits
    error = (network(input_ids=tokens, attention_mask=mask).logits - exact)[mask.bool()].square().mean().sqrt()
    rule = make_rule("slots")
    with Attachment(network, rule):
        cache = InfiniCache(rule, 4).inexact()
        network(input_ids=tokens[:, :30], attention_mask=mask[:, :30], past_key_values=cache)
        first = network(input_ids=tokens[:, 30:31], attention_mask=mask[:, :31], past_key_values=cache).logits
        rest = network(input_ids=tokens[:, 31:], attention_mask=mask, past_key_values=cache).logits
    got = torch.cat((first, rest), dim=1) - exact[:, 30:]
    assert got.square().mean().sqrt() <= 2 * error + 1e-4


@torch.no_grad()
@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_a_shut_gate_leaves_the_models_bits_alone(family: str, rule: str) -> None:
    network, tokens = tiny_network(family), random_tokens(1, 20)
    expected = network(input_ids=tokens).logits
    chosen = make_rule(rule, gate=float("-inf"))
    with Attachment(network, chosen):
        cache = InfiniCache(chosen, 4).recording()
        network(input_ids=random_tokens(1, 12, seed=1), past_key_values=cache)
        end_segment(cache)
        got = network(input_ids=tokens, past_key_values=cache).logits
    assert cache.seen is not None and torch.equal(got, expected)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_a_full_memory_changes_the_logits(family: str, rule: str, make_model: MakeModel) -> None:
    model = make_model(family, rule)
    tokens, cache = random_tokens(1, 10), model.new_cache()
    expected = model.model(input_ids=tokens).logits
    read(model, random_tokens(1, 32, seed=1), cache)
    got = model.model(input_ids=tokens, past_key_values=cache).logits
    assert not torch.allclose(got, expected, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_a_segment_at_once_equals_token_by_token(family: str, rule: str, make_model: MakeModel) -> None:
    model = make_model(family, rule, slots=256) if rule == "slots" else make_model(family, rule)
    tokens = random_tokens(1, 32)
    at_once, one_by_one = model.new_cache(), model.new_cache()
    for segment in tokens.split(16, dim=1):
        logits = model.read_segment(segment, at_once, logits=True)
        one_by_one.recording()
        steps = [model.model(input_ids=t, past_key_values=one_by_one).logits for t in segment.split(1, dim=1)]
        end_segment(one_by_one)
        # A step of int8 that was rounded the other way is in the next segment's logits too.
        assert torch.allclose(
            torch.cat(steps, dim=1), logits, atol=2e-3 if model.rule.packing == "int8" else 2e-4, rtol=1e-4
        )
    for index, state in at_once.states().items():
        for name, tensor in state.items():
            other = one_by_one.states()[index][name]
            # What lies between two steps of int8 may be rounded to either.
            atol = 1 if tensor.dtype == torch.int8 else 1e-3
            torch.testing.assert_close(
                tensor, other, atol=atol, rtol=1e-4, msg=lambda m, at=(index, name): f"{at}: {m}"
            )


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_a_padded_batch_equals_single_runs(family: str, rule: str, make_model: MakeModel) -> None:
    model = make_model(family, rule)
    lengths = [32, 29, 20]
    rows, batch, mask = ragged(lengths, 16)
    together = model.new_cache()
    read(model, batch, together, mask)
    assert together.seen is not None and together.seen.tolist() == lengths
    question = random_tokens(3, 6, seed=7)
    answers = model.model(input_ids=question, past_key_values=together.clone()).logits
    for i, row in enumerate(rows):
        alone = model.new_cache()
        read(model, row, alone)
        for index, state in alone.states().items():
            for name, tensor in state.items():
                other = together.states()[index][name][i : i + 1]
                # Rounding may move a number to the next step of 8 bits.
                close = 1.0 if tensor.dtype == torch.int8 else 1e-3
                other = other[:, :, : tensor.shape[2]].float()
                assert torch.allclose(tensor.float(), other, atol=close, rtol=1e-4), (index, name)
        expected = model.model(input_ids=question[i : i + 1], past_key_values=alone).logits
        assert torch.allclose(answers[i : i + 1], expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_a_row_whose_memory_is_still_empty_reads_nothing(make_model: MakeModel) -> None:
    for rule in RULES:
        model = make_model("Llama", rule)
        cache, tokens = model.new_cache(), random_tokens(2, 16)
        read(model, tokens, cache, torch.tensor([[1] * 16, [0] * 16]))
        question = random_tokens(2, 6, seed=3)
        got = model.model(input_ids=question, past_key_values=cache).logits
        expected = model.model(input_ids=question).logits
        assert torch.allclose(got[1], expected[1], atol=1e-5)
        assert not torch.allclose(got[0], expected[0], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_stays_near_float32(rule: str, make_model: MakeModel) -> None:
    wide, narrow = make_model("Llama", rule), make_model("Llama", rule, dtype=torch.bfloat16)
    tokens, question = random_tokens(1, 32), random_tokens(1, 8, seed=1)
    logits = []
    for model in (wide, narrow):
        cache = model.new_cache()
        read(model, tokens, cache)
        kept = {t.dtype for state in cache.states().values() for t in state.values()}
        assert kept == ({torch.int8, torch.float32} if rule == "slots" else {torch.float32})
        logits.append(model.model(input_ids=question, past_key_values=cache).logits.float().log_softmax(-1))
    assert (logits[0] - logits[1]).abs().mean() < 0.25


@torch.no_grad()
def test_slots_without_merging_and_distance_see_the_past_exactly(make_model: MakeModel) -> None:
    """All of the past in slots is full attention in which the past lies `distance` tokens back."""
    model = make_model("Llama", "slots", slots=64, distance=5, packing="float32", memory_heads=range(4))
    network, past, now = model.model, random_tokens(1, 16), random_tokens(1, 4, seed=1)
    cache = model.new_cache()
    read(model, past, cache)
    attention = network.model.layers[0].self_attn
    hidden = network.model.layers[0].input_layernorm(network.model.embed_tokens(torch.cat((past, now), 1)))
    q, k, v = (
        projection(hidden).view(1, 20, -1, 16).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    cos, sin = network.model.rotary_emb(hidden, torch.arange(4)[None])

    def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    far_tables = network.model.rotary_emb(hidden, torch.tensor([[5]]))
    far = turn(q[:, :, 16:], *far_tables) @ k[:, :, :16].mT
    local = turn(q[:, :, 16:], cos, sin) @ turn(k[:, :, 16:], cos, sin).mT
    local = local.masked_fill(torch.ones(4, 4, dtype=torch.bool).triu(1), float("-inf"))
    weights = (torch.cat((far, local), -1) * attention.scaling).softmax(-1)
    expected = attention.o_proj((weights @ v).transpose(1, 2).reshape(1, 4, -1))
    seen = []
    handle = attention.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    network(input_ids=now, past_key_values=cache)
    handle.remove()
    assert torch.allclose(seen[0], expected, atol=1e-4)


@torch.no_grad()
def test_detaching_gives_the_model_back_untouched(family: str) -> None:
    network = tiny_network(family)
    names, implementation = list(network.state_dict()), network.config._attn_implementation
    with Attachment(network, make_rule("delta")):
        assert "memory_gate" in " ".join(network.state_dict())
    assert list(network.state_dict()) == names
    assert network.config._attn_implementation == implementation
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_attaching_one_model_does_not_touch_another() -> None:
    one, other, tokens = tiny_network("Llama"), tiny_network("Llama"), random_tokens(1, 8)
    with Attachment(one, SlotsRule()):
        assert other.config._attn_implementation == "sdpa"
        assert torch.equal(other(input_ids=tokens).logits, one(input_ids=tokens).logits)


def test_attaching_twice_is_refused() -> None:
    network = tiny_network("Llama")
    with Attachment(network, SlotsRule()), pytest.raises(InvalidSetting, match="already"):
        Attachment(network, SlotsRule())


def test_interleaved_rotary_pairs_are_refused() -> None:
    from transformers import CohereConfig, CohereForCausalLM

    config = CohereConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with pytest.raises(NoRotaryEmbedding, match="cohere"):
        Attachment(CohereForCausalLM(config), SlotsRule())


@torch.no_grad()
def test_two_families_at_once_keep_their_own_attention() -> None:
    gemma, llama = tiny_network("Gemma2"), tiny_network("Llama")
    gemma.set_attn_implementation("eager")
    llama.set_attn_implementation("eager")
    tokens = random_tokens(1, 12)
    expected = [network(input_ids=tokens).logits for network in (gemma, llama)]
    with Attachment(gemma, SlotsRule()), Attachment(llama, SlotsRule()):
        got = [network(input_ids=tokens).logits for network in (gemma, llama)]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


@torch.no_grad()
def test_padding_a_segment_to_a_fixed_length_changes_nothing(family: str, make_model: MakeModel) -> None:
    model = make_model(family)
    plain, padded = model.new_cache(), model.new_cache()
    for seed in range(3):
        tokens = random_tokens(1, 11, seed=seed)
        logits = model.read_segment(tokens, plain, logits=True)
        assert torch.allclose(model.read_segment(tokens, padded, logits=True, pad_to=16), logits, atol=1e-4, rtol=1e-4)
    assert padded.seen is not None and padded.seen.tolist() == [33]
    for index, state in plain.states().items():
        assert all(torch.allclose(t, padded.states()[index][n], atol=1e-3, rtol=1e-4) for n, t in state.items())


def test_positions_that_are_learned_are_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(NoRotaryEmbedding, match="GPT2LMHeadModel"):
        Attachment(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=64)), SlotsRule())


@torch.no_grad()
def test_generate_of_transformers_works_with_a_memory(family: str, make_model: MakeModel) -> None:
    model = make_model(family)
    cache = model.new_cache()
    read(model, random_tokens(1, 40), cache)
    prompt = random_tokens(1, 7, seed=2)
    states = {i: {n: t.clone() for n, t in s.items()} for i, s in cache.states().items()}
    theirs = model.model.generate(
        input_ids=prompt, past_key_values=cache.clone(), max_new_tokens=12, do_sample=False, eos_token_id=None
    )[0, 7:]
    ours = [s[0] for s in generate(model, [prompt[0].tolist()], cache, max_new_tokens=12, stop_at_eos=False)]
    assert theirs.tolist() == ours
    assert all(torch.equal(t, cache.states()[i][n]) for i, s in states.items() for n, t in s.items())


@torch.no_grad()
def test_beam_search_carries_the_memory_along(make_model: MakeModel) -> None:
    model = make_model()
    cache = model.new_cache()
    read(model, random_tokens(1, 40), cache)
    wide = cache.clone()
    wide.batch_repeat_interleave(3)
    assert wide.seen is not None and wide.seen.tolist() == [40, 40, 40]
    wide.reorder_cache(torch.tensor([2, 0, 0]))
    prompt = random_tokens(1, 5, seed=3)
    expected = model.model(input_ids=prompt, past_key_values=cache).logits
    got = model.model(input_ids=prompt.expand(3, -1), past_key_values=wide).logits
    assert torch.allclose(got, expected.expand(3, -1, -1), atol=1e-4)


@torch.no_grad()
def test_threads_with_different_memories_do_not_mix(make_model: MakeModel) -> None:
    model = make_model()
    question = random_tokens(1, 9, seed=5)
    caches = []
    for seed in range(6):
        cache = model.new_cache()
        read(model, random_tokens(1, 48, seed=seed), cache)
        caches.append(cache)
    expected = [model.model(input_ids=question, past_key_values=c.clone()).logits for c in caches]
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                got = model.model(input_ids=question, past_key_values=caches[index].clone()).logits
                if not torch.allclose(got, expected[index], atol=1e-5):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("rule", ["slots", "linear"])
def test_reading_leaves_out_what_a_memory_does_not_need(rule: str, make_model: MakeModel) -> None:
    model = make_model(rule=rule, carry=8)
    calls: list[int] = []
    layers = model.model.get_decoder().layers
    for index, layer in enumerate(layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: calls.append(index))
    caches = [model.new_cache(), model.new_cache()]
    with torch.no_grad():
        for segment in random_tokens(1, 48).split(16, dim=1):
            model.read_segment(segment, caches[0])
            assert calls == list(range(len(layers) - 1))
            calls.clear()
            assert model.read_segment(segment, caches[1], hidden=True) is not None
            assert calls == list(range(len(layers)))
            calls.clear()
    found, expected = (cache.states() for cache in caches)
    assert found.keys() == expected.keys()
    for index, state in expected.items():
        assert all(torch.equal(found[index][name], tensor) for name, tensor in state.items())


def test_writing_an_unrecorded_segment_is_refused(make_model: MakeModel) -> None:
    model = make_model()
    cache = model.new_cache()
    with torch.no_grad():
        model.model(input_ids=random_tokens(1, 4), past_key_values=cache)
    with pytest.raises(InvalidSetting, match="recording"):
        end_segment(cache)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_reach_the_first_segment_through_the_memory(rule: str, make_model: MakeModel) -> None:
    model = make_model("Llama", rule)
    embedded = model.model.get_input_embeddings()
    cache, touched = model.new_cache(), []
    for index, segment in enumerate(random_tokens(1, 48).split(16, dim=1)):
        handle = embedded.register_forward_hook(lambda m, a, out: touched.append(out) or out.requires_grad_())
        logits = model.read_segment(segment, cache, logits=index == 2)
        handle.remove()
    assert logits is not None
    (gradient,) = torch.autograd.grad(logits.square().sum(), touched[0])
    assert (gradient.abs().sum(-1) > 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("magic", {}),
        ("slots", {"gate": 1.0}),
        ("slots", {"slots": 0}),
        ("slots", {"distance": -1}),
        ("slots", {"balance": float("nan")}),
        ("slots", {"mass": 0.0}),
        ("slots", {"mass": 1.5}),
        ("slots", {"mass": float("nan")}),
        ("linear", {"slots": 3}),
        ("linear", {"gate": "wide"}),
    ],
)
def test_bad_rules_and_settings_are_refused(name: str, settings: dict) -> None:
    with pytest.raises(InvalidSetting):
        make_rule(name, **settings)


def test_settings_that_a_rule_has_are_not_called_unknown() -> None:
    with pytest.raises(InvalidSetting, match=r"takes the settings gate, not slots, depth$"):
        make_rule("linear", gate=1.0, slots=3, depth=2)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_heads_without_a_memory_attend_as_if_it_were_not_there(rule: str, make_model: MakeModel) -> None:
    chosen = {1: [1], 2: [0], 3: [0, 1]}
    some, all_heads = make_model("Llama", rule, memory_heads=chosen), make_model("Llama", rule, memory_heads=range(4))
    past, now = random_tokens(2, 32), random_tokens(2, 9, seed=1)
    cache = some.new_cache()
    read(some, past, cache)
    states = cache.states()
    assert {layer: state[next(iter(state))].shape[1] for layer, state in states.items()} == {1: 1, 2: 1, 3: 2}
    padded = {}
    for layer in range(4):
        heads = chosen.get(layer, [])
        padded[layer] = {
            name: tensor.new_zeros(2, 2, *tensor.shape[2:]).index_copy(1, torch.tensor(heads, dtype=torch.long), part)
            for name, tensor in states[3].items()
            for part in [states[layer][name] if heads else tensor[:, :0]]
        }
        if rule != "slots":
            shut = [head * 2 + member for head in {0, 1} - set(heads) for member in range(2)]
            all_heads.attachment.modules[layer].memory_gate.beta[shut] = float("-inf")
    whole = all_heads.new_cache()
    whole.set_states(padded, cache.seen)
    expected = all_heads.model(input_ids=now, past_key_values=whole).logits
    got = some.model(input_ids=now, past_key_values=cache).logits
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, some.model(input_ids=now).logits, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_a_heads_memory_does_not_depend_on_which_others_have_one(rule: str, make_model: MakeModel) -> None:
    """In the lowest layer that remembers, where nothing that differs has been read yet."""
    one, both = make_model(rule=rule, memory_heads={2: [1]}), make_model(rule=rule, memory_heads={2: [0, 1], 3: [0]})
    tokens, caches = random_tokens(1, 16), []
    for model in (one, both):
        caches.append(model.new_cache())
        read(model, tokens, caches[-1])
    alone, beside = (cache.states()[2] for cache in caches)
    assert all(torch.equal(alone[name], beside[name][:, 1:]) for name in alone)
