"""Slots in fewer bytes: small errors once, none ever after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TEXT, MakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from infinimem import DocumentMemory
from infinimem.attention.rules import make_rule
from infinimem.attention.rules.packing import PACKINGS, pack, packed_layout, unpack
from infinimem.attention.rules.slots import SlotsRule
from infinimem.cli.report import describe
from infinimem.errors import InvalidSetting


def state(seed: int, size: float = 1.0, slots: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = size * torch.randn(2, 1, 2, slots, 16, generator=generator)
    return {"keys": keys, "values": values, "counts": torch.rand(1, 2, slots, generator=generator) * 9 + 1}


@settings(max_examples=60, deadline=None)
@given(packing=st.sampled_from(PACKINGS), seed=st.integers(0, 999), size=st.sampled_from([1e-9, 1e-3, 1.0, 300.0, 1e7]))
def test_packing_what_was_unpacked_gives_the_same_bytes(packing: str, seed: int, size: float) -> None:
    packed = pack(state(seed, size), packing)
    again = pack(unpack(packed), packing)
    assert all(torch.equal(packed[name], again[name]) for name in packed)
    layout = packed_layout(packing, 9, 16, 16)
    assert {name: (tensor.dtype, tuple(tensor.shape[2:])) for name, tensor in packed.items()} == layout
    assert all(torch.isfinite(tensor).all() for tensor in unpack(packed).values())


@pytest.mark.parametrize(("packing", "error"), [("float32", 0.0), ("float16", 2**-11), ("int8", 0.5 / 127 + 2**-8)])
def test_a_packed_number_is_off_by_half_a_step_at_most(packing: str, error: float) -> None:
    whole = state(3)
    got = unpack(pack(whole, packing))
    for name in ("keys", "values"):
        largest = whole[name].abs().amax(-1, keepdim=True)
        assert ((got[name] - whole[name]).abs() <= error * largest + 1e-12).all()
    assert torch.equal(got["counts"], whole["counts"])


@pytest.mark.parametrize("packing", PACKINGS)
def test_slots_that_nothing_merges_with_do_not_drift(packing: str) -> None:
    rule = SlotsRule(slots=400, packing=packing)
    first = state(1, slots=20)
    written = rule.write(None, first["keys"], first["values"])
    later = written
    for seed in range(2, 12):
        more = state(seed, slots=20)
        later = rule.write(later, more["keys"], more["values"])
    for name in written:
        assert torch.equal(later[name][:, :, :20], written[name])


def test_a_packed_memory_has_the_bytes_of_its_layout() -> None:
    sizes = {}
    for packing in PACKINGS:
        first = state(1, slots=20)
        written = SlotsRule(slots=10, packing=packing).write(None, first["keys"], first["values"])
        sizes[packing] = sum(tensor.numel() * tensor.element_size() for tensor in written.values())
    assert sizes == {"float32": 20 * (32 * 4 + 4), "float16": 20 * (32 * 2 + 4), "int8": 20 * (32 + 2 * 4 + 4)}


def test_an_unknown_packing_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="float16"):
        make_rule("slots", packing="int4")


def test_inspection_shows_the_size_of_what_is_stored_in_every_packing(make_model: MakeModel, tmp_path: Path) -> None:
    shown = {}
    for packing in PACKINGS:
        path = tmp_path / packing
        # Without passages, even a short document is kept as states.
        DocumentMemory.from_text(TEXT * 3, model=make_model(packing=packing), passages=False).save(path)
        shown[packing] = describe(path)["layers"][0]
    for name in ("keys_rms", "values_rms"):
        assert shown["float32"][name] == pytest.approx(shown["int8"][name], rel=0.02)
        assert shown["float32"][name] == pytest.approx(shown["float16"][name], rel=0.001)
