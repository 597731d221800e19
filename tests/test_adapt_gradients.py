"""Training of an adapter: losses and gradients through the memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import MakeModel, random_tokens

from infinimem.adapt.lora import LoraLayers
from infinimem.adapt.recurrence import backward, blocks, groups, read_block
from infinimem.adapt.samples import Sample, Segment
from infinimem.attention import GatedRule
from infinimem.errors import InvalidConfig
from infinimem.model.infini_model import InfiniModel

# As in training: rounding states lets no gradient through, or small ones vanish.
UNPACKED: dict[str, dict[str, Any]] = {"slots": {"packing": "float32"}, "linear": {}, "delta": {}}


def sample_of(*lengths: int, seed: int = 0, loss: str = "last", prompt: bool = True) -> Sample:
    """Segments of random tokens; loss on the last four tokens of the last segment, or of all."""
    made = []
    for number, length in enumerate(lengths):
        last = number == len(lengths) - 1
        tokens = random_tokens(1, length, seed=seed * 100 + number)[0].tolist()
        on = last or loss == "all"
        made.append(Segment(tokens, [on and place >= length - 4 for place in range(length)], prompt=prompt and last))
    return Sample("test", made)


def trained(model: InfiniModel, rank: int = 4) -> dict[str, torch.nn.Parameter]:
    """LoRA with a B that is not zero, and the gates."""
    model.model.requires_grad_(False)
    lora = LoraLayers(model.model, ("q_proj", "k_proj", "v_proj", "down_proj"), rank=rank, alpha=8.0)
    found = {}
    random = torch.Generator().manual_seed(5)
    for path, (a, b) in lora.pairs.items():
        b.data.copy_(torch.randn(b.shape, generator=random) * 0.1)
        found |= {f"{path}.A": a, f"{path}.B": b}
    if isinstance(model.rule, GatedRule):
        for index in model.memory_heads:
            found[f"gate.{index}"] = model.attachment.modules[index].memory_gate.beta.requires_grad_()
    return found


def gradients(
    model: InfiniModel, parameters: dict[str, Any], samples: list[Sample], **settings: Any
) -> tuple[list[float], dict[str, torch.Tensor]]:
    for parameter in parameters.values():
        parameter.grad = None
    losses = backward(model, samples, **settings)
    return losses, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in parameters.items()}


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 2e-4) -> None:
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=tolerance, atol=tolerance * float(a[name].abs().max()), msg=name
        )


@pytest.mark.parametrize("rule", ["slots", "linear", "delta"])
@pytest.mark.parametrize("prefix", [[], [1]])
def test_the_loss_is_that_of_the_whole_logits_at_the_masked_places(
    make_model: MakeModel, rule: str, prefix: list[int]
) -> None:
    # Gemma 2 caps its logits after the head, and begins every text with a token of its own.
    model = make_model("Gemma2", rule)
    model.prefix = prefix
    sample = sample_of(14, 12, 9, loss="all", prompt=False)
    cache, total, count = model.new_cache(), 0.0, 0
    with torch.no_grad():
        for segment in sample.segments:
            logits = model.read_segment(torch.tensor([segment.tokens]), cache, logits=True)
            assert logits is not None
            for place, on in enumerate(segment.mask):
                if on:
                    total -= logits[0, place - 1].double().log_softmax(-1)[segment.tokens[place]].item()
                    count += 1
    with torch.no_grad():
        states, seen, ours = {}, None, 0.0
        for block in blocks(model, [sample]):
            loss, states, seen = read_block(model, block, states, seen)
            ours += float(loss.sum()) if loss is not None else 0.0
    assert count == 12 and abs(ours - total / count) < 1e-4


@pytest.mark.parametrize("rule", ["slots", "linear", "delta"])
def test_gradients_flow_from_an_answer_through_the_memory_into_an_earlier_segment(
    make_model: MakeModel, rule: str
) -> None:
    model = make_model(rule=rule, **UNPACKED[rule], memory_heads=[1, 2, 3])
    model.model.requires_grad_(False)
    lora = LoraLayers(model.model, ("k_proj", "v_proj"), rank=4, alpha=8.0)
    first, middle, last = blocks(model, [sample_of(20, 20, 8)])
    _, states, seen = read_block(model, first, {}, None)
    # From here on LoRA is off: its gradients can come from what the first segment wrote alone.
    lora.remove()
    _, states, seen = read_block(model, middle, states, seen)
    loss, _, _ = read_block(model, last, states, seen)
    assert loss is not None
    loss.sum().backward()
    reached = {path: float(b.grad.abs().max()) for path, (_, b) in lora.pairs.items() if b.grad is not None}
    assert all(reached[f"model.layers.{layer}.self_attn.v_proj"] > 1e-7 for layer in (1, 2, 3))
    assert all(reached[f"model.layers.{layer}.self_attn.k_proj"] > 1e-7 for layer in (1, 2, 3))


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_gradients_reach_every_gate_of_a_layer_with_memory(make_model: MakeModel, rule: str) -> None:
    model = make_model(rule=rule, **UNPACKED[rule], memory_heads=[1, 3])
    _, found = gradients(model, trained(model), [sample_of(16, 16, 8)])
    gates = {name: gradient for name, gradient in found.items() if name.startswith("gate")}
    assert set(gates) == {"gate.1", "gate.3"} and all(bool((g != 0).all()) for g in gates.values())
    _, alone = gradients(model, trained(model), [sample_of(8)])
    assert all(not alone[name].any() for name in gates)


def test_a_gradient_through_the_memory_is_the_slope_of_the_loss(make_model: MakeModel) -> None:
    model = make_model(rule="delta", gate=-1.0)
    parameters = trained(model)
    samples = [sample_of(16, 16, 12, loss="all")]
    _, found = gradients(model, parameters, samples)
    for name in ("gate.2", "model.layers.1.self_attn.k_proj.B"):
        parameter, step = parameters[name], 2e-2
        direction = found[name] / found[name].norm()
        ends = []
        for sign in (1, -1):
            parameter.data += sign * step * direction
            ends.append(backward(model, samples)[0])
            parameter.data -= sign * step * direction
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(float(found[name].norm()), rel=0.05), name


@pytest.mark.parametrize("rule", ["slots", "delta"])
@pytest.mark.parametrize("bptt", [0, 2])
def test_checkpointing_changes_neither_losses_nor_gradients(make_model: MakeModel, rule: str, bptt: int) -> None:
    model = make_model(rule=rule, **UNPACKED[rule])
    parameters = trained(model)
    samples = [sample_of(16, 14, 16, 12, loss="all")]
    plain = gradients(model, parameters, samples, checkpointing=False, bptt=bptt)
    saved = gradients(model, parameters, samples, checkpointing=True, bptt=bptt)
    assert plain[0] == saved[0] and all(gradient.any() for gradient in plain[1].values())
    for name, gradient in plain[1].items():
        assert torch.equal(gradient, saved[1][name]), name


def test_truncation_cuts_gradients_but_not_the_loss(make_model: MakeModel) -> None:
    model = make_model(packing="float32")
    parameters = trained(model)
    samples = [sample_of(16, 16, 16, 8)]
    whole = gradients(model, parameters, samples)
    cut = gradients(model, parameters, samples, bptt=2)
    assert cut[0] == pytest.approx(whole[0]) and cut[0][0] > 1
    assert any(not torch.allclose(whole[1][name], cut[1][name], rtol=1e-3) for name in parameters)
    # By hand: the first two segments without gradients, the last two with.
    made = blocks(model, samples)
    states, seen = {}, None
    with torch.no_grad():
        for block in made[:2]:
            _, states, seen = read_block(model, block, states, seen)
    for parameter in parameters.values():
        parameter.grad = None
    loss = None
    for block in made[2:]:
        loss, states, seen = read_block(model, block, states, seen)
    assert loss is not None
    loss.sum().backward()
    close({n: p.grad for n, p in parameters.items() if p.grad is not None}, cut[1])


@pytest.mark.parametrize("rule", ["slots", "linear"])
@pytest.mark.parametrize("prompt", [True, False])
def test_rows_side_by_side_are_worth_as_much_as_one_by_one(make_model: MakeModel, rule: str, prompt: bool) -> None:
    model = make_model(rule=rule, **UNPACKED[rule])
    parameters = trained(model)
    loss = "last" if prompt else "all"
    samples = [
        sample_of(16, 11, 9, seed=1, loss=loss, prompt=prompt),
        sample_of(12, 16, 14, seed=2, loss=loss, prompt=prompt),
    ]
    together = gradients(model, parameters, samples, scales=[0.25, 0.75])
    alone = [gradients(model, parameters, [sample]) for sample in samples]
    assert together[0] == pytest.approx([losses[0] for losses, _ in alone], rel=1e-5)
    close(together[1], {name: 0.25 * alone[0][1][name] + 0.75 * alone[1][1][name] for name in parameters})


def test_groups_hold_samples_of_one_shape() -> None:
    samples = [sample_of(5, 9), sample_of(9), sample_of(4, 4), sample_of(6, 6, prompt=False), sample_of(3, 7)]
    assert groups(samples, 2) == [[2, 4], [0], [1], [3]]
    assert sorted(i for group in groups(samples, 8) for i in group) == list(range(5))


def test_lora_can_be_taken_off_and_its_sum_is_what_merging_gives(make_model: MakeModel) -> None:
    model = make_model(packing="float32")
    tokens = random_tokens(1, 12)
    with torch.no_grad():
        before = model.model(input_ids=tokens).logits
        lora = LoraLayers(model.model, ("q_proj", "up_proj"), rank=4, alpha=8.0)
        assert torch.equal(model.model(input_ids=tokens).logits, before)
        for _, b in lora.pairs.values():
            b.normal_(0, 0.1)
        beside = model.model(input_ids=tokens).logits
        lora.remove()
        assert torch.equal(model.model(input_ids=tokens).logits, before)
        for path, (a, b) in lora.pairs.items():
            module = model.model.get_submodule(path)
            module.weight += 2.0 * b @ a
        assert not torch.allclose(beside, before, atol=1e-2)
        torch.testing.assert_close(model.model(input_ids=tokens).logits, beside, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidConfig, match=r"magic_proj, but the model has down_proj"):
        LoraLayers(model.model, ("q_proj", "magic_proj"), rank=4, alpha=8.0)
