"""Norms, gates and rotations in one pass: as the model has them but for rounding, and only where that is allowed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, MakeModel, random_tokens, tiny_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_native import KERNELS, nothing, switched

from infinimem.attention import fused, native
from infinimem.attention.attach import Attachment
from infinimem.attention.native import layers
from infinimem.attention.rules.slots import SlotsRule

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
DTYPES = [FLOAT32, BFLOAT16]
LEVELS = sorted({level for level, _ in KERNELS})
needs_library = pytest.mark.skipif(not KERNELS, reason="the C library is not built, or this processor cannot run it")


@pytest.fixture(params=LEVELS or nothing)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every level that this processor can run."""
    switched(monkeypatch, request.param)
    yield request.param
    native.library.cache_clear()


def numbers(seed: int, *shape: int, size: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def counted(function: Any, used: Counter[str]) -> Any:
    """The function, which counts its calls."""

    def call(*args: Any, **named: Any) -> Any:
        used[function.__name__] += 1
        return function(*args, **named)

    return call


def near(got: torch.Tensor, expected: torch.Tensor) -> None:
    """`expected` is float64 and not rounded. bfloat16 is rounded twice, to 9 bits each. In float32, e to the power of x
    is less exact the larger x is."""
    close = {FLOAT32: 1e-5, BFLOAT16: 2**-7}[got.dtype]
    torch.testing.assert_close(got.double(), expected, rtol=close, atol=close * 1e-3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999),
    rows=st.integers(0, 40),
    width=st.integers(1, 140),
    size=st.sampled_from([1e-3, 1.0, 300.0]),
    shift=st.sampled_from([0.0, 1.0]),
    dtype=st.sampled_from(DTYPES),
)
def test_a_norm_is_that_of_float64_but_for_rounding(
    level: str, seed: int, rows: int, width: int, size: float, shift: float, dtype: torch.dtype
) -> None:
    x, weight = numbers(seed, rows, width, size=size).to(dtype), numbers(seed + 1, width).to(dtype)
    assert layers.covers(x, weight)
    wide = x.double()
    expected = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (weight.double() + shift)
    near(layers.norm(x, weight, 1e-6, shift=shift, once=bool(shift)), expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999),
    rows=st.integers(0, 40),
    width=st.integers(1, 140),
    size=st.sampled_from([0.1, 3.0, 40.0]),
    dtype=st.sampled_from(DTYPES),
)
def test_a_gate_is_that_of_float64_but_for_rounding(
    level: str, seed: int, rows: int, width: int, size: float, dtype: torch.dtype
) -> None:
    x, y = numbers(seed, rows, width, size=size).to(dtype), numbers(seed + 1, rows, width).to(dtype)
    near(layers.gate(x, y), torch.nn.functional.silu(x.double()) * y.double())


def test_what_is_not_a_number_stays_in_its_row(level: str) -> None:
    x, y = numbers(0, 20, 70), numbers(1, 20, 70)
    x[3, 5] = float("nan")
    assert layers.norm(x, y[0], 1e-6).isnan().any(dim=1).nonzero().tolist() == [[3]]
    gated = layers.gate(x, y)
    assert gated.isnan().nonzero().tolist() == [[3, 5]]


def test_the_gate_of_huge_numbers_is_finite(level: str) -> None:
    x = torch.tensor([[-1e30, -1e4, -100.0, 100.0, 1e4, 1e30]])
    assert torch.allclose(layers.gate(x, torch.ones_like(x)), x.clamp_min(0), atol=1e-6)


def test_rows_and_threads_change_nothing(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = numbers(0, 50, 70).to(BFLOAT16), numbers(1, 50, 70).to(BFLOAT16)
    found = layers.norm(x, y[0], 1e-6), layers.gate(x, y)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert torch.equal(found[0], layers.norm(x, y[0], 1e-6)) and torch.equal(found[1], layers.gate(x, y))
    assert torch.equal(found[0][7:8], layers.norm(x[7:8], y[0], 1e-6))
    assert torch.equal(found[1][7:8], layers.gate(x[7:8], y[7:8]))


@needs_library
def test_gaps_other_dtypes_and_gradients_are_left_to_torch() -> None:
    x = numbers(0, 20, 70)
    assert layers.covers(x, x)
    assert not layers.covers(x[:, :40])
    assert not layers.covers(x, x.bfloat16())
    assert not layers.covers(x.half())
    assert not layers.covers(x, x.clone().requires_grad_())


@needs_library
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_family_has_the_same_logits_but_for_rounding(
    family: str, dtype: torch.dtype, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens, used = make_model(family, dtype=dtype), random_tokens(2, 24), Counter[str]()
    for name in ("norm", "gate"):
        monkeypatch.setattr(layers, name, counted(getattr(layers, name), used))
    with torch.no_grad():
        own = model.model(input_ids=tokens).logits
        assert not used
        found = model.model(input_ids=tokens, past_key_values=model.new_cache().inexact()).logits
    kinds = Counter(type(module).__name__.removeprefix(family) for module in model.model.modules())
    # The norms of queries and keys have gaps in Gemma 3, and are left to torch: two in each of its four layers.
    assert used["norm"] == kinds["RMSNorm"] - (8 if family == "Gemma3" else 0) > 0
    # The activation of Gemma is another one, and Phi-3 has one matrix for both factors.
    assert used["gate"] == (0 if family in ("Gemma2", "Gemma3", "Phi3") else kinds["MLP"])
    close = {FLOAT32: 1e-4, BFLOAT16: 0.1}[dtype]
    assert (own - found).abs().max() <= close * own.abs().max()


@needs_library
def test_a_forward_without_a_past_has_the_models_own_bits(make_model: MakeModel) -> None:
    model, tokens = make_model(), random_tokens(1, 16)
    with torch.no_grad():
        own = type(model.model)(model.model.config)
        own.load_state_dict(model.model.state_dict())
        expected = own.eval()(input_ids=tokens).logits
        assert torch.equal(model.model(input_ids=tokens, past_key_values=model.new_cache()).logits, expected)
        inexact = model.model(input_ids=tokens, past_key_values=model.new_cache().inexact()).logits
    assert not torch.equal(inexact, expected)
    torch.testing.assert_close(inexact, expected, atol=1e-4, rtol=1e-4)


@needs_library
def test_a_model_without_infinimem_keeps_its_own_rotation() -> None:
    home = transformers.models.llama.modeling_llama
    network, tokens = tiny_network("Llama"), random_tokens(1, 24)
    with Attachment(tiny_network("Llama"), SlotsRule()), torch.no_grad():
        found = network(input_ids=tokens).logits
        own = getattr(home, fused.ROTATE).keywords["own"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(home, fused.ROTATE, own)
            assert torch.equal(found, network(input_ids=tokens).logits)
