"""transformers: the base model with plain full attention, its cache saved to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from ..model.pretrained import load_base
from ..text.tokens import TextEncoder
from .task import WARM_UP, Task, clock_of, first_and_rest, peak_gpu_mb, repeated, timed_loads
from .transformers_model import greedy, matrix_parameters


@torch.no_grad()
def measure(task: Task) -> dict[str, Any]:
    """Reads the text in one forward (in chunks it is slower), saves the keys and values, loads them, and asks."""
    device = task.device or "cpu"
    clock = clock_of(device)
    started = clock()
    network, tokenizer, _ = load_base(task.model, device=device)
    model_load = clock() - started
    encoder = TextEncoder(tokenizer)
    # A text may be longer than the model was trained on: the answers are then worth nothing, but cost the same.
    tokens = repeated(encoder.encode(task.read_text()), task.tokens)
    for _ in zip(range(2), greedy(network, tokens[:WARM_UP], DynamicCache()), strict=False):
        pass

    ids = torch.tensor([tokens], device=device)
    started = clock()
    cache = DynamicCache()
    network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    seconds = clock() - started
    path = task.state_path(".safetensors")
    save_cache(cache, path)
    del cache

    loaded, load_ms = timed_loads(lambda: load_cache(path, device), clock)
    first, decode = first_and_rest(greedy(network, encoder.encode(task.question_after_text), loaded), clock)
    return {
        "tokens": len(tokens),
        "tokens_per_second": len(tokens) / seconds,
        "file_bytes": path.stat().st_size,
        "load_ms": load_ms,
        "first_token_ms": first * 1e3,
        "decode_tokens_per_second": decode,
        "model_load_ms": model_load * 1e3,
        "matrix_parameters": matrix_parameters(network),
        **peak_gpu_mb(device),
    }


def save_cache(cache: DynamicCache, path: Path) -> None:
    """Write keys and values of all layers."""
    parts = {f"{i}.{name}": getattr(layer, name) for i, layer in enumerate(cache.layers) for name in ("keys", "values")}
    save_file({name: tensor.contiguous() for name, tensor in parts.items()}, path)


def load_cache(path: Path, device: str) -> DynamicCache:
    """The cache that `save_cache` wrote."""
    found = load_file(path, device=device)
    return DynamicCache([(found[f"{i}.keys"], found[f"{i}.values"]) for i in range(len(found) // 2)])
