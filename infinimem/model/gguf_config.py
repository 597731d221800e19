"""From the metadata of a GGUF file to a transformers configuration, and to the names of its tensors.

GGUF leaves out what its own readers compute from the family alone: those numbers are set here, each at its family. What
this module cannot express in a configuration raises UnsupportedModelFile, so that no model is loaded as something else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import DamagedModelFile, UnsupportedModelFile
from .gguf import GgufFile

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """What GGUF's conversion does to the weights of a family.

    model_type: the name in transformers.
    head_dim: whether the configuration has this field.
    permuted: rows of query and key projections alternate between the two halves of a head.
    norms_plus_one: norms are stored with 1 added.
    """

    model_type: str
    head_dim: bool = True
    permuted: bool = False
    norms_plus_one: bool = False


# By the architecture that the file names. Files of Mistral models say "llama", which computes the same.
FAMILIES = {
    "gemma": Family("gemma", norms_plus_one=True),
    "gemma2": Family("gemma2", norms_plus_one=True),
    "gemma3": Family("gemma3_text", norms_plus_one=True),
    "llama": Family("llama", permuted=True),
    "phi3": Family("phi3", head_dim=False),
    "qwen2": Family("qwen2", head_dim=False),
    "qwen3": Family("qwen3"),
    "smollm3": Family("smollm3", head_dim=False, permuted=True),
}
# Keys of GGUF to fields of the configuration, where both mean the same.
FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
SPECIAL = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
    "unk_token_id": "tokenizer.ggml.unknown_token_id",
}
# Control tokens that end a turn or a text whatever else the file names as the end.
END_TOKENS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>")
# Gemma's largest models scale their queries by the width for a head, all others by the size of a head.
LAYERS_OF_WIDE_GEMMA = {"gemma2": 46, "gemma3": 62}
EMBEDDING, OUTPUT, FREQUENCIES = "token_embd.weight", "output.weight", "rope_freqs.weight"


def family_of(file: GgufFile) -> Family:
    """The family of a file. Raises UnsupportedModelFile."""
    if file.architecture not in FAMILIES:
        raise UnsupportedModelFile(
            f"'{file.path}' is a model of the family '{file.architecture}', which infinimem cannot load from a GGUF "
            f"file; choose a model of one of these families: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[file.architecture]


def config_of(file: GgufFile) -> PretrainedConfig:
    """The configuration, of a bfloat16 model. Raises DamagedModelFile, UnsupportedModelFile."""
    import torch
    from transformers import AutoConfig

    family = family_of(file)
    fields: dict[str, Any] = {name: _number(file, key) for key, name in FIELDS.items()}
    heads, width = int(fields["num_attention_heads"]), int(fields["hidden_size"])
    fields["num_key_value_heads"] = file.setting("attention.head_count_kv", heads)
    size = file.setting("attention.key_length", file.setting("rope.dimension_count", width // heads))
    if family.model_type == "phi3":
        size = width // heads
    if file.setting("attention.value_length", size) != size or (not family.head_dim and size * heads != width):
        raise UnsupportedModelFile(
            f"'{file.path}' has heads of a size that models of the family '{file.architecture}' do not have; choose "
            "another file"
        )
    if family.head_dim:
        fields["head_dim"] = size
    if EMBEDDING not in file.tensors:
        raise DamagedModelFile(f"the model file '{file.path}' has no '{EMBEDDING}'; get it again")
    fields["vocab_size"] = file.tensors[EMBEDDING].shape[0]
    fields["tie_word_embeddings"] = OUTPUT not in file.tensors
    fields |= {name: file.metadata.get(key) for name, key in SPECIAL.items()}
    # transformers' own defaults hold for this token unless the file names it.
    if fields["unk_token_id"] is None:
        del fields["unk_token_id"]
    fields |= _of_family(file, int(size))
    try:
        config = AutoConfig.for_model(family.model_type, **fields)
    except Exception as error:
        raise DamagedModelFile(f"the model file '{file.path}' describes no model ({error}); get it again") from error
    config.dtype = torch.bfloat16
    return config


def _number(file: GgufFile, key: str) -> int | float:
    value = file.setting(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1 << 32:
        raise DamagedModelFile(
            f"the model file '{file.path}' has {value} for '{file.architecture}.{key}'; get it again, or choose another"
        )
    return value


def _of_family(file: GgufFile, size: int) -> dict[str, Any]:
    """Fields that only some families have. size: of a head."""
    kind = file.architecture
    rope = _rope(file, size)
    fields: dict[str, Any] = {}
    window = file.setting("attention.sliding_window")
    if kind in ("gemma2", "gemma3"):
        wide = file.setting("block_count") == LAYERS_OF_WIDE_GEMMA[kind]
        scaled = file.setting("embedding_length") // file.setting("attention.head_count") if wide else size
        fields = {"query_pre_attn_scalar": scaled}
        if window:
            fields["sliding_window"] = window
    if kind == "gemma2":
        fields["attn_logit_softcapping"] = file.setting("attn_logit_softcapping", 50.0)
        fields["final_logit_softcapping"] = file.setting("final_logit_softcapping", 30.0)
    if kind == "phi3" and window:
        fields["sliding_window"] = window
    if kind == "gemma3":
        local = {"rope_type": "default", "rope_theta": file.setting("rope.freq_base_swa", 10000.0)}
        rope = {"full_attention": rope, "sliding_attention": local}
    return fields | {"rope_parameters": rope}


def _rope(file: GgufFile, size: int) -> dict[str, Any]:
    """The rotary embedding of all layers, or of the layers with full attention."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(file.setting("rope.freq_base", 10000.0))}
    context = file.setting("rope.scaling.original_context_length")
    kind = file.setting("rope.scaling.type", "none")
    if file.architecture == "phi3":
        rope["partial_rotary_factor"] = file.setting("rope.dimension_count", size) / size
    if FREQUENCIES in file.tensors:
        return rope | _llama3(file, rope["rope_theta"], size)
    if any(name.startswith("rope_factors_") for name in file.tensors):
        raise UnsupportedModelFile(
            f"'{file.path}' has rotary factors for long contexts, which infinimem does not read from GGUF; choose the "
            "model of the same name with a short context, or its directory of safetensors"
        )
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": float(file.setting("rope.scaling.factor", 1.0))}
    elif kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": float(file.setting("rope.scaling.factor", 1.0))}
        if context:
            rope["original_max_position_embeddings"] = context
    elif kind != "none":
        raise UnsupportedModelFile(f"'{file.path}' scales rotary embeddings by '{kind}'; choose another file")
    return rope


def _llama3(file: GgufFile, theta: float, size: int) -> dict[str, Any]:
    """Scaling of the rotary frequencies as in Llama 3.1 and later.

    The file has the resulting divisors, one a frequency; all models with them have the other numbers in common. The
    largest divisor is the factor, and the divisors that follow from it must be those of the file.
    """
    import numpy as np

    tensor = file.tensors[FREQUENCIES]
    if tensor.format != "F32" or tensor.shape != (size // 2,):
        raise DamagedModelFile(f"the model file '{file.path}' has no usable '{FREQUENCIES}'; get it again")
    found = np.fromfile(file.path, "<f4", size // 2, offset=tensor.start).astype(np.float64)
    factor, low, high, context = round(float(found.max()), 3), 1.0, 4.0, 8192
    lengths = 2 * math.pi * theta ** (np.arange(0, size, 2) / size)
    smooth = (context / lengths - low) / (high - low)
    middle = 1 / ((1 - smooth) / factor + smooth)
    expected = np.where(lengths < context / high, 1.0, np.where(lengths > context / low, factor, middle))
    if not np.allclose(found, expected, rtol=1e-3):
        raise UnsupportedModelFile(
            f"'{file.path}' scales rotary embeddings in a way that is not Llama 3's; choose another file"
        )
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    return scaling | {"original_max_position_embeddings": context}


def end_tokens(file: GgufFile) -> list[int]:
    """Tokens that end an answer: those that the file names as ends, and control tokens that end turns and texts."""
    names = file.metadata.get("tokenizer.ggml.tokens", [])
    found = [file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    found += [names.index(name) for name in END_TOKENS if name in names]
    padding = file.metadata.get(SPECIAL["pad_token_id"])
    if padding is not None and padding < len(names) and names[padding] == "<|endoftext|>":
        found.append(padding)
    return sorted({token for token in found if token is not None})


def tensor_names(file: GgufFile, config: PretrainedConfig) -> dict[str, str]:
    """Name in transformers to name in the file, for every weight of the model.

    Raises DamagedModelFile where the file lacks a weight, or has it in another shape; UnsupportedModelFile where it has
    weights that the model has no place for.
    """
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    kind = next((key for key, name in MODEL_ARCH_NAMES.items() if name == file.architecture), None)
    if kind is None:
        raise UnsupportedModelFile(
            f"the installed package gguf does not know the family '{file.architecture}' of '{file.path}'; update gguf"
        )
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    found: dict[str, str] = {}
    for name, weight in skeleton.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        stored = f"{names.get_name(stem)}.{suffix}"
        if stored not in file.tensors or file.tensors[stored].shape != tuple(weight.shape):
            raise DamagedModelFile(
                f"the model file '{file.path}' has no '{stored}' of the shape {tuple(weight.shape)}; get it again"
            )
        found[name] = stored
    unknown = [name for name in file.tensors if name not in {*found.values(), FREQUENCIES}]
    if unknown:
        raise UnsupportedModelFile(
            f"'{file.path}' has weights that models of the family '{file.architecture}' do not have "
            f"('{unknown[0]}'); choose another file"
        )
    return found
