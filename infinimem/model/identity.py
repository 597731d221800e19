"""What a memory depends on in a base model: its configuration, its weights, its tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Elements of a weight tensor that enter the fingerprint: at least this many, or all, and fewer than twice as many.
SAMPLED_WEIGHTS = 4096
# The field that says how weights were kept in memory; missing for bfloat16.
IN_MEMORY = "weights_in_memory"


def config_subset(config: Any) -> dict[str, Any]:
    """The fields of a configuration that change what attention computes."""
    names = [
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "rms_norm_eps",
        "rope_parameters",
        "sliding_window",
        "layer_types",
        "hidden_act",
        "tie_word_embeddings",
    ]
    return {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def hash_weights(model: PreTrainedModel) -> str:
    """SHA-256 of evenly spaced elements of every tensor (see SAMPLED_WEIGHTS), so that gigabytes need not be read."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "memory_gate" in name:
            continue
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLED_WEIGHTS)].float().cpu()
        total.update(f"{name}{tuple(tensor.shape)}".encode())
        total.update(sample.numpy().tobytes())
    return total.hexdigest()


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the vocabulary and of everything else that decides how text is cut into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    description = json.loads(backend.to_str())
    # Padding and truncation are settings of a call, not of the vocabulary.
    description.pop("padding", None)
    description.pop("truncation", None)
    return digest(json.dumps(description, sort_keys=True).encode())


def identity_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, weights: str | None = None
) -> dict[str, Any]:
    """What a memory depends on in a base model and its tokenizer.

    weights: hash of the base weights where they have changed since, as by a merged adapter; None hashes the weights as
        they are.
    """
    return {
        "config": config_subset(model.config.get_text_config()),
        "weights": weights or hash_weights(model),
        "tokenizer": hash_tokenizer(tokenizer),
        "chat_template": digest(str(tokenizer.chat_template or "").encode()),
    }


def differences(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """A readable line for each field in which two identities differ; a nested field is named by its path."""
    found = []
    for key in sorted({*mine, *other}):
        a, b = mine.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{key}.{line}" for line in differences(a, b)]
        elif a != b:
            found.append(f"{key}: {_short(a)} in the file, {_short(b)} here")
    return found


# The first part of a difference's name to what users call it.
OF_THE_MODEL = {
    "config": "its architecture",
    "weights": "its weights",
    "tokenizer": "its tokenizer",
    "chat_template": "its chat template",
}


def in_words(different: list[str], made_with: str, given: str) -> str:
    """What lines of `differences` mean to a user, and what the user can do.

    made_with: name of the model that made the memory.
    given: name of the model that the memory is loaded with.
    """
    kinds = {line.partition(":")[0].partition(".")[0] for line in different}
    if kinds & OF_THE_MODEL.keys() and made_with != given:
        return other_model(made_with, given)
    if parts := [words for key, words in OF_THE_MODEL.items() if key in kinds]:
        return (
            f"this memory was made with another version of {given}: {' and '.join(parts)} changed since; read the "
            "document again"
        )
    if "adapter" in kinds:
        line = next(line for line in different if line.startswith("adapter"))
        return (
            f"this memory was made with {made_with} and another adapter than it is loaded with ({line}); leave "
            "--adapter out, or read the document again"
        )
    return (
        f"this memory was made with other settings than it is loaded with: {'; '.join(different)}; load it by its file "
        "alone, or read the document again"
    )


def other_model(made_with: str, given: str) -> str:
    """What a user reads who gives another model than the one that made the memory."""
    return (
        f"this memory was made with {made_with}; you gave {given}; read the document again or leave --model out "
        "(model= in Python)"
    )


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 40 else f"{text[:12]}…"
