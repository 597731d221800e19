"""Equations 7 to 10 against an independent float64 reference in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny_network
from torch import Tensor

from infinimem.attention import end_segment
from infinimem.attention.attach import Attachment
from infinimem.attention.cache import InfiniCache
from infinimem.attention.rules.linear import DeltaRule, LinearRule

HEADS, KV_HEADS, WIDTH, SEGMENT, SEGMENTS = 4, 2, 16, 6, 4
EPSILON = 1e-6


def sigma(x: Tensor) -> Tensor:
    """ELU + 1."""
    return torch.where(x > 0, x + 1, torch.exp(x))


def rope(x: Tensor, position: int) -> Tensor:
    """One vector turned to its position; pairs are (i, i + half)."""
    half = WIDTH // 2
    parts_a, parts_b = [], []
    for i in range(half):
        angle = position * 10000.0 ** (-2 * i / WIDTH)
        parts_a.append(x[i] * math.cos(angle) - x[i + half] * math.sin(angle))
        parts_b.append(x[i + half] * math.cos(angle) + x[i] * math.sin(angle))
    return torch.stack(parts_a + parts_b)


def reference(hidden: Tensor, weights: dict[str, Tensor], beta: Tensor, delta: bool) -> tuple[Tensor, list, list]:
    """One layer over all segments, float64, head by head and token by token; (output (T, hidden), M, z)."""
    memories = [torch.zeros(WIDTH, WIDTH, dtype=torch.float64) for _ in range(KV_HEADS)]
    normalizers = [torch.zeros(WIDTH, dtype=torch.float64) for _ in range(KV_HEADS)]
    outputs = []
    for segment in range(SEGMENTS):
        rows = hidden[segment * SEGMENT : (segment + 1) * SEGMENT]
        q = [[weights["q"][h * WIDTH : (h + 1) * WIDTH] @ row for row in rows] for h in range(HEADS)]
        k = [[weights["k"][g * WIDTH : (g + 1) * WIDTH] @ row for row in rows] for g in range(KV_HEADS)]
        v = [[weights["v"][g * WIDTH : (g + 1) * WIDTH] @ row for row in rows] for g in range(KV_HEADS)]
        for t in range(SEGMENT):
            heads = []
            for h in range(HEADS):
                g = h // (HEADS // KV_HEADS)
                turned = rope(q[h][t], t)
                scores = torch.stack([turned @ rope(k[g][s], s) / math.sqrt(WIDTH) for s in range(t + 1)])
                local = sum(w * v[g][s] for s, w in enumerate(torch.softmax(scores, 0)))  # equation 6
                if segment:
                    feature = sigma(q[h][t])
                    memory = (feature @ memories[g]) / (feature @ normalizers[g] + EPSILON)  # equation 7
                    gate = torch.sigmoid(beta[h])
                    local = gate * memory + (1 - gate) * local  # equation 10
                heads.append(local)
            outputs.append(weights["o"] @ torch.cat(heads))  # equation 11
        for g in range(KV_HEADS):
            added = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
            for t in range(SEGMENT):
                feature = sigma(k[g][t])
                value = v[g][t]
                if delta and segment:
                    value = value - (feature @ memories[g]) / (feature @ normalizers[g] + EPSILON)  # equation 9
                added = added + torch.outer(feature, value)  # equation 8
            memories[g] = memories[g] + added
            normalizers[g] = normalizers[g] + sum(sigma(k[g][t]) for t in range(SEGMENT))
    return torch.stack(outputs), memories, normalizers


@pytest.fixture(scope="module", params=["linear", "delta"])
def both(request: pytest.FixtureRequest) -> dict[str, dict[str, Tensor]]:
    """Outputs, states and gradients of our float32 layer and of the reference."""
    delta = request.param == "delta"
    network = tiny_network("Llama", num_hidden_layers=1)
    rule = DeltaRule(gate=-0.5) if delta else LinearRule(gate=-0.5)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(SEGMENTS * SEGMENT, 64, generator=generator)
    direction = torch.randn(SEGMENTS * SEGMENT, 64, generator=generator)
    beta = torch.tensor([-0.5, 0.3, 1.0, -1.5])
    with Attachment(network, rule):
        layer = network.model.layers[0].self_attn
        layer.memory_gate.beta.data = beta.clone()
        ours_hidden = hidden.clone().requires_grad_()
        cache = InfiniCache(rule, 1)
        outputs = []
        for segment in ours_hidden.split(SEGMENT):
            cache.recording()
            position = torch.arange(SEGMENT)[None]
            tables = network.model.rotary_emb(segment[None], position)
            out, _ = layer(segment[None], position_embeddings=tables, attention_mask=None, past_key_values=cache)
            outputs.append(out[0])
            end_segment(cache)
        ours_output = torch.cat(outputs)
        (ours_output * direction).sum().backward()
        state = cache.states()[0]
        ours = {
            "output": ours_output,
            "matrix": state["matrix"][0],
            "normalizer": state["normalizer"][0],
            "gradient of the input": ours_hidden.grad,
            "gradient of the gate": layer.memory_gate.beta.grad,
        }
        names = {"q": layer.q_proj, "k": layer.k_proj, "v": layer.v_proj, "o": layer.o_proj}
        ours |= {f"gradient of {name}": module.weight.grad for name, module in names.items()}
        weights = {name: m.weight.detach().double().requires_grad_() for name, m in names.items()}
    wide_hidden, wide_beta = hidden.double().requires_grad_(), beta.double().requires_grad_()
    output, memories, normalizers = reference(wide_hidden, weights, wide_beta, delta)
    (output * direction.double()).sum().backward()
    theirs = {
        "output": output,
        "matrix": torch.stack(memories),
        "normalizer": torch.stack(normalizers),
        "gradient of the input": wide_hidden.grad,
        "gradient of the gate": wide_beta.grad,
    }
    theirs |= {f"gradient of {name}": weight.grad for name, weight in weights.items()}
    return {"ours": ours, "reference": theirs}


@pytest.mark.parametrize(
    "quantity",
    ["output", "matrix", "normalizer", "gradient of the input", "gradient of the gate"]
    + [f"gradient of {name}" for name in "qkvo"],
)
def test_float32_agrees_with_the_float64_reference(both: dict[str, dict[str, Tensor]], quantity: str) -> None:
    ours, expected = both["ours"][quantity].detach().double(), both["reference"][quantity].detach()
    scale = expected.abs().max()
    assert scale > 0
    assert (ours - expected).abs().max() <= 1e-5 * max(1.0, float(scale))


def test_every_gate_gets_a_gradient(both: dict[str, dict[str, Tensor]]) -> None:
    assert (both["ours"]["gradient of the gate"].abs() > 1e-3).all()


@pytest.mark.parametrize("rule", [LinearRule(gate=0.0), DeltaRule(gate=0.0)])
def test_first_segments_keys_get_a_gradient_through_a_later_read(rule: LinearRule) -> None:
    generator = torch.Generator().manual_seed(2)
    keys = torch.randn(1, 2, 5, 8, generator=generator, requires_grad=True)
    values = torch.randn(1, 2, 5, 8, generator=generator)
    state = rule.write(None, keys, values)
    state = rule.write(state, torch.randn(1, 2, 5, 8, generator=generator), values)
    queries = torch.randn(1, 4, 3, 8, generator=generator)
    rule.retrieve(state, queries).square().sum().backward()
    assert (keys.grad.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("rule", [LinearRule(), DeltaRule()])
def test_states_are_float32_whatever_comes_in(rule: LinearRule) -> None:
    keys = torch.randn(1, 2, 5, 8).bfloat16()
    state = rule.write(rule.write(None, keys, keys), keys, keys)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_delta_stores_nothing_for_what_the_memory_already_returns() -> None:
    rule, linear = DeltaRule(), LinearRule()
    keys = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(3))
    values = torch.ones(1, 1, 1, 8)
    once = rule.write(None, keys, values)
    assert torch.allclose(rule.write(once, keys, values)["matrix"], once["matrix"], atol=1e-5)
    assert not torch.allclose(linear.write(once, keys, values)["matrix"], once["matrix"], atol=1e-2)


def test_linear_merge_is_the_exact_sum() -> None:
    rule = LinearRule()
    generator = torch.Generator().manual_seed(4)
    parts = [torch.randn(1, 2, 7, 8, generator=generator) for _ in range(4)]
    together = rule.write(rule.write(None, parts[0], parts[1]), parts[2], parts[3])
    merged = rule.merge(rule.write(None, parts[0], parts[1]), rule.write(None, parts[2], parts[3]))
    assert all(torch.equal(together[name], merged[name]) for name in merged)


@pytest.mark.parametrize("rule", [LinearRule(), DeltaRule()])
def test_padded_keys_write_nothing(rule: LinearRule) -> None:
    generator = torch.Generator().manual_seed(5)
    keys, values = torch.randn(2, 1, 2, 9, 8, generator=generator)
    mask = torch.tensor([[False] * 4 + [True] * 5])
    alone = rule.write(None, keys[:, :, 4:], values[:, :, 4:])
    padded = rule.write(None, keys, values, mask)
    assert all(torch.allclose(alone[name], padded[name], atol=1e-6) for name in padded)
