"""Weights of 8 bits: the product against float64, models that use it, and answer adapters beside the weights."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from conftest import FAMILIES, MakeModel, random_tokens, read, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adapter import make_adapter, with_answer_adapter

from infinimem import DocumentMemory
from infinimem.adapt.lora import LoraLayers
from infinimem.attention.native import products
from infinimem.cli.main import main
from infinimem.errors import AdapterMismatch, InvalidConfig, InvalidSetting, ModelMismatch, UnsupportedVersion
from infinimem.ingest.opening import model_of
from infinimem.model.adapter import load_adapter
from infinimem.model.catalogue import catalogue
from infinimem.model.infini_model import InfiniModel
from infinimem.model.lora import add_lora, merge_lora
from infinimem.model.quantized import Int8Embedding, Int8Linear, Int8Weight, quantize
from infinimem.model.settings import WEIGHTS, MemorySettings
from infinimem.storage.memory_file import read_memory_file

LIBRARY = products.library()
needs_library = pytest.mark.skipif(LIBRARY is None, reason="the C library is not built")
KERNELS = [number for number in products.KERNELS.values() if LIBRARY is not None and number <= LIBRARY.best]
TEXT = "The keeper of the lighthouse counted seven ships on Monday. " * 30


def matrix(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def with_outliers(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs of which a few are hundreds of times larger than the others, as models have them."""
    x = matrix(rows, width, seed)
    x[:, width // 3] *= 300
    return x


def exact(x: torch.Tensor, weight: Int8Weight) -> torch.Tensor:
    """The product with the rounded weights, in float64."""
    return x.double() @ weight[:].double().T


def rounding(x: torch.Tensor, weight: Int8Weight) -> torch.Tensor:
    """The most that rounding x can change in the product: half a step, in each group of 128 numbers."""
    absolute, bound = weight[:].double().abs(), torch.zeros(x.shape[0], len(weight), dtype=torch.float64)
    for first in range(0, x.shape[1], 128):
        step = x[:, first : first + 128].double().abs().amax(dim=1, keepdim=True) / 127
        bound += 0.5 * step * absolute[:, first : first + 128].sum(dim=1)
    return bound


@given(rows=st.integers(1, 200), width=st.integers(1, 300), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_packing_loses_nothing(rows: int, width: int, seed: int) -> None:
    integers = torch.randint(-127, 128, (rows, width), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    packed = products.pack(integers)
    assert packed.shape == products.packed_shape(rows, width)
    assert products.unpack(packed, width)[:rows].equal(integers)
    chosen = torch.arange(rows).flip(0)
    assert products.rows_of(packed, chosen, width).equal(integers.flip(0))


@given(rows=st.integers(1, 200), width=st.integers(1, 300), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_rounded_weights_are_within_half_a_step(rows: int, width: int, seed: int) -> None:
    weight = matrix(rows, width, seed)
    error = (Int8Weight.of(weight)[:] - weight).abs()
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool((error <= step * 0.5001).all())


def test_a_row_of_zeros_stays_zero() -> None:
    weight = matrix(70, 40)
    weight[3] = 0
    assert not Int8Weight.of(weight)[:][3].any()
    found = Int8Weight.of(weight).product(torch.zeros(2, 40), None)
    assert not found.any()


@needs_library
@pytest.mark.parametrize("kernel", KERNELS)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    width=st.integers(1, 400),
    biased=st.booleans(),
    half=st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_every_kernel_agrees_with_float64(
    kernel: int, rows: int, columns: int, width: int, biased: bool, half: bool
) -> None:
    x = with_outliers(rows, width, seed=rows)
    x = x.bfloat16() if half else x
    weight = Int8Weight.of(matrix(columns, width, seed=columns))
    bias = matrix(1, columns)[0] if biased else None
    found = products.product(x, weight.packed, weight.scales, bias, kernel=kernel)
    expected = exact(x, weight) + (0 if bias is None else bias.double())
    bound = rounding(x, weight) * 1.001 + expected.abs() * (2**-8 if half else 2**-18) + 1e-4
    assert found.dtype == x.dtype and found.shape == (rows, columns)
    assert bool(((found.double() - expected).abs() <= bound).all())


@given(rows=st.integers(1, 3), width=st.integers(1, 300), columns=st.integers(1, 130), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_row_alone_has_the_bits_that_it_has_among_others(rows: int, width: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = Int8Weight.of(torch.randn(columns, width, generator=generator))
    x = torch.randn(rows, width, generator=generator)
    together = weight.product(x, None)
    assert torch.equal(torch.cat([weight.product(row[None], None) for row in x]), together)


@needs_library
@pytest.mark.parametrize("kernel", KERNELS)
def test_outliers_make_only_their_own_group_coarse(kernel: int) -> None:
    weight = Int8Weight.of(matrix(64, 1280))
    x = with_outliers(20, 1280)
    found = products.product(x, weight.packed, weight.scales, kernel=kernel)
    wrong = (found.double() - exact(x, weight)).abs().mean()
    # With one step for a whole row, the error would be about three times as large.
    step = x.abs().amax(dim=1, keepdim=True) / 127
    coarse = ((x / step).round() * step).double() - x.double()
    assert wrong < 0.5 * (coarse @ weight[:].double().T).abs().mean()


@needs_library
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_depends_neither_on_other_rows_nor_on_threads(kernel: int) -> None:
    x, weight = with_outliers(83, 300).bfloat16(), Int8Weight.of(matrix(130, 300))

    def product(rows: torch.Tensor) -> torch.Tensor:
        return products.product(rows, weight.packed, weight.scales, kernel=kernel)

    together = product(x)
    for first, last in ((0, 1), (40, 45), (16, 32), (70, 83)):
        assert product(x[first:last]).equal(together[first:last])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert product(x).equal(together)
    finally:
        torch.set_num_threads(threads)


@needs_library
def test_kernels_agree_to_the_last_bit_of_bfloat16_but_for_few_numbers() -> None:
    x, weight = with_outliers(40, 700).bfloat16(), Int8Weight.of(matrix(130, 700))
    found = [products.product(x, weight.packed, weight.scales, kernel=kernel) for kernel in KERNELS]
    for other in found[1:]:
        assert (other != found[0]).float().mean() < 0.01
        torch.testing.assert_close(other, found[0], rtol=2**-7, atol=1e-4)


@needs_library
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stay_visible(bad: float) -> None:
    x, weight = matrix(3, 200), Int8Weight.of(matrix(64, 200))
    x[1, 5] = bad
    found = weight.product(x, None)
    assert not found[1].isfinite().any() and found[[0, 2]].isfinite().all()


@needs_library
def test_tensors_that_do_not_fit_are_refused() -> None:
    weight = Int8Weight.of(matrix(64, 200))
    for x, scales in ((matrix(2, 100), weight.scales), (matrix(2, 200), torch.ones(100)), (matrix(2, 200).half(),) * 2):
        with pytest.raises(ValueError, match="do not fit"):
            products.product(x, weight.packed, scales)


def test_without_the_library_the_product_is_that_of_the_rounded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "library", lambda: None)
    x, weight = with_outliers(7, 300), Int8Weight.of(matrix(130, 300))
    torch.testing.assert_close(weight.product(x, None).double(), exact(x, weight), rtol=1e-4, atol=1e-2)
    bias = matrix(1, 130)[0]
    assert weight.product(x.bfloat16(), bias).dtype == torch.bfloat16


def test_gradients_reach_the_inputs() -> None:
    x = matrix(3, 100).requires_grad_()
    weight = Int8Weight.of(matrix(64, 100))
    weight.product(x, None).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], weight[:].sum(dim=0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_quantized_model_says_nearly_the_same(family: str) -> None:
    network = tiny_network(family)
    tokens = random_tokens(2, 40)
    with torch.no_grad():
        expected = network(tokens).logits
        quantize(network)
        found = network(tokens).logits
    kinds = {type(module) for module in network.modules()}
    tied = network.config.get_text_config().tie_word_embeddings
    assert Int8Linear in kinds and torch.nn.Linear not in kinds
    # An embedding that is no head is no product.
    assert (Int8Embedding in kinds) == tied
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.98


@pytest.mark.parametrize("tied", [True, False])
def test_head_and_embedding_share_their_weights_where_they_did(tied: bool) -> None:
    network: Any = tiny_network("Llama", tie_word_embeddings=tied)
    quantize(network)
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    assert (head.packed is getattr(embedding, "packed", None)) == tied


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_memories_do_not_depend_on_what_else_is_in_the_batch(family: str, make_model: MakeModel) -> None:
    model = make_model(family)
    quantize(model.model)
    tokens = random_tokens(3, 48)
    alone = [model.new_cache() for _ in range(3)]
    together = [model.new_cache() for _ in range(3)]
    for row, cache in enumerate(alone):
        read(model, tokens[row : row + 1], cache)
    for start in range(0, 48, 16):
        model.read_batch([row[start : start + 16] for row in tokens.tolist()], together, [None] * 3)
    for one, other in zip(alone, together, strict=True):
        for index, state in one.states().items():
            for name, tensor in state.items():
                torch.testing.assert_close(other.states()[index][name].float(), tensor.float(), rtol=1e-3, atol=1e-3)


@pytest.fixture
def small(tiny_directory: Path) -> InfiniModel:
    return InfiniModel.from_pretrained(tiny_directory, weights="int8", segment_length=32)


def test_a_memory_file_brings_back_the_weights_it_was_read_with(tiny_directory: Path, tmp_path: Path) -> None:
    memory = DocumentMemory.from_text(TEXT, model=tiny_directory, weights="int8", segment_length=32)
    said = memory.ask("Who counted?", max_new_tokens=5).text
    memory.save(tmp_path / "small.safetensors")
    loaded = DocumentMemory.load(tmp_path / "small.safetensors")
    assert loaded.identity["weights_in_memory"] == "int8"
    assert loaded.ask("Who counted?", max_new_tokens=5).text == said
    loaded.append_text("There was none on Tuesday.")
    loaded.save(tmp_path / "more.safetensors")


def test_a_memory_belongs_to_the_weights_it_was_read_with(tiny_directory: Path, tmp_path: Path) -> None:
    for name in ("bfloat16", "int8"):
        memory = DocumentMemory.from_text(TEXT, model=tiny_directory, weights=name, segment_length=32)
        memory.save(tmp_path / f"{name}.safetensors")
    assert "weights_in_memory" not in DocumentMemory.load(tmp_path / "bfloat16.safetensors").identity
    with pytest.raises(ModelMismatch, match="weights_in_memory"):
        DocumentMemory.load(tmp_path / "int8.safetensors", model=tiny_directory, weights="bfloat16")
    with pytest.raises(ModelMismatch, match="weights_in_memory"):
        DocumentMemory.load(tmp_path / "bfloat16.safetensors", model=tiny_directory, weights="int8")


@pytest.mark.parametrize("kept", ["int2", 8, {"bits": 8}])
def test_weights_of_a_later_version_are_named(tiny_directory: Path, tmp_path: Path, kept: Any) -> None:
    memory = DocumentMemory.from_text(TEXT, model=tiny_directory, segment_length=32)
    memory.save(tmp_path / "memory.safetensors")
    file = read_memory_file(tmp_path / "memory.safetensors")
    file.identity["weights_in_memory"] = kept
    with pytest.raises(UnsupportedVersion, match="update infinimem"):
        model_of(file, None, None, None)


def test_the_identity_names_the_weights_of_the_base(tiny_directory: Path, small: InfiniModel) -> None:
    plain = InfiniModel.from_pretrained(tiny_directory, segment_length=32)
    assert {**plain.identity(), "weights_in_memory": "int8"} == small.identity()


def test_weights_have_known_names(tiny_directory: Path) -> None:
    with pytest.raises(InvalidSetting, match="int4"):
        MemorySettings(weights="int4")
    small = InfiniModel.from_pretrained(tiny_directory, weights="int8")
    with pytest.raises(InvalidSetting, match="weights"):
        DocumentMemory.from_text(TEXT, model=small, weights="int8")


def test_an_adapter_is_merged_before_weights_are_rounded(tiny_directory: Path, tmp_path: Path) -> None:
    directory = make_adapter(tmp_path / "adapter")
    found = InfiniModel.from_pretrained(tiny_directory, adapter=directory, weights="int8", dtype=torch.float32)
    expected = InfiniModel.from_pretrained(tiny_directory, adapter=directory, dtype=torch.float32)
    for path, module in expected.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            weight = found.model.get_submodule(path).weight[:]
            step = module.weight.abs().amax(dim=1, keepdim=True) / 127
            assert bool(((weight - module.weight).abs() <= 0.501 * step).all())


def test_an_adapter_for_another_model_is_refused_before_weights_change(tiny_directory: Path, tmp_path: Path) -> None:
    directory = make_adapter(tmp_path / "adapter")
    other = tmp_path / "other"
    tiny_network("Llama", intermediate_size=64).save_pretrained(other)
    transformers.AutoTokenizer.from_pretrained(tiny_directory).save_pretrained(other)
    with pytest.raises(AdapterMismatch):
        InfiniModel.from_pretrained(other, adapter=directory, weights="int8")


def test_training_refuses_weights_of_8_bits(small: InfiniModel) -> None:
    with pytest.raises(InvalidConfig, match="bfloat16"):
        LoraLayers(small.model, ["q_proj"], rank=4, alpha=8)


def test_a_lora_beside_the_weights_equals_the_merged_one(tiny_directory: Path, tmp_path: Path) -> None:
    adapter = load_adapter(make_adapter(tmp_path / "adapter"))
    assert adapter is not None
    tokens = random_tokens(2, 40)
    reference, merged, beside = tiny_network("Llama").double(), tiny_network("Llama"), tiny_network("Llama")
    for path, (a, b) in adapter.lora.items():
        reference.get_submodule(path).weight.data += adapter.scale * (b.double() @ a.double())
    merge_lora(merged, adapter)
    add_lora(beside, adapter)
    with torch.no_grad():
        expected = reference(tokens).logits
        for network in (merged, beside):
            torch.testing.assert_close(network(tokens).logits.double(), expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(tiny_network("Llama")(tokens).logits.double(), expected, rtol=1e-2, atol=1e-2)


def test_an_answer_adapter_lies_beside_weights_of_8_bits_and_shares_them(tiny_directory: Path, tmp_path: Path) -> None:
    directory = with_answer_adapter(make_adapter(tmp_path / "adapter"))
    model = InfiniModel.from_pretrained(tiny_directory, adapter=directory, weights="int8")
    answering = model.answering_model
    assert answering is not model and answering.adapter_hash == model.adapter_hash
    pointers = [
        {tensor.data_ptr() for tensor in one.model.state_dict().values() if tensor.dtype == torch.int8}
        for one in (model, answering)
    ]
    assert pointers[0] == pointers[1]
    tokens = random_tokens(1, 20)
    with torch.no_grad():
        assert not model.model(tokens).logits.equal(answering.model(tokens).logits)


def test_threads_read_and_answer_at_once_as_one_after_the_other(tiny_directory: Path, tmp_path: Path) -> None:
    directory = with_answer_adapter(make_adapter(tmp_path / "adapter"))
    model = InfiniModel.from_pretrained(tiny_directory, adapter=directory, weights="int8")
    tokens = random_tokens(1, 60)

    def logits(which: InfiniModel) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = which.model(tokens).logits
        return found

    expected = {which: logits(which) for which in (model, model.answering_model)}
    wrong: list[str] = []

    def work(which: InfiniModel) -> None:
        for _ in range(20):
            if not logits(which).equal(expected[which]):
                wrong.append(which.name)

    threads = [threading.Thread(target=work, args=(which,)) for which in [*expected, *expected]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_commands_take_the_weights(tiny_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    file = tmp_path / "memory.safetensors"
    options = ["--model", str(tiny_directory), "--weights", "int8"]
    done = CliRunner().invoke(main, ["ingest", str(tmp_path / "text.txt"), "-o", str(file), *options])
    assert done.exit_code == 0, done.output
    assert DocumentMemory.load(file).identity["weights_in_memory"] == "int8"
    asked = CliRunner().invoke(main, ["ask", str(file), "Who counted?", "--max-new-tokens", "5"])
    assert asked.exit_code == 0, asked.output


def test_the_catalogue_says_how_weights_are_kept_by_default() -> None:
    kept = {model.name: MemorySettings().resolved(None, model.name).weights for model in catalogue()}
    assert kept == {model.name: model.weights for model in catalogue()} and set(kept.values()) <= set(WEIGHTS)
    assert MemorySettings(weights="bfloat16").resolved(None, "qwen2.5-1.5b").weights == "bfloat16"
    # Where there are no products of 8 bits, they would only cost time.
    assert MemorySettings(device="cuda").resolved(None, "qwen2.5-1.5b").weights == "bfloat16"
