"""Finding and loading base models: models of the catalogue, local directories, GGUF files, hub ids.

- no code from a model repository is ever run (`trust_remote_code` stays off), and no attention kernel that a
  configuration names
- a model that only a memory file names is loaded from safetensors alone, without a network
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import (
    DefaultModelMissing,
    InfinimemError,
    InvalidSetting,
    ModelCacheDamaged,
    ModelError,
    ModelNotFound,
    NoRotaryEmbedding,
    NotACausalLM,
)
from .cached import directory_of_gguf, failed_recently, model_directory
from .catalogue import VARIABLE, default_models, find_model
from .directories import directory_at, model_place, trust
from .download import hub_reachable, say
from .gguf import read_gguf
from .quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_base(
    name: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    fetch: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Load a causal language model with rotary embeddings, and its tokenizer.

    name: None for the default model; a name of the catalogue; a local directory; a GGUF file; or a hub id.
    device: where the weights are put.
    dtype: of the weights; None for bfloat16, or for float32 where float32 is clearly faster.
    fetch: True where the user named the model: it may then be downloaded, and a directory or a file becomes trusted.
        False loads only what is on this machine, from safetensors and GGUF files alone.
    Returns the model, its tokenizer, and the name by which memory files call the model.
    Raises DefaultModelMissing, ModelNotFound, NotACausalLM, NoRotaryEmbedding, ModelCacheDamaged, InvalidSetting, and
    the errors of `cached.get_model` and `cached.directory_of_gguf`.
    """
    _check_device(device)
    chosen = str(chosen_model(name))
    if (known := find_model(chosen)) is not None:
        directory = model_directory(known, fetch=fetch)
        if directory is None:
            raise ModelNotFound(
                f"the model {known.name} is not on this machine, and a memory file alone may not download it; run: "
                f"infinimem models get {known.name}"
            )
        return *_load(str(directory), directory, device, dtype, fetch), known.name
    place = model_place(chosen)
    directory = directory_of_gguf(place) if place is not None and place.is_file() else place
    model, tokenizer = _load(chosen, directory, device, dtype, fetch)
    if place is not None and fetch:
        trust(place)
    return model, tokenizer, chosen


def chosen_model(name: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """The name of the model to load: the given name, or the default model's.

    name: None for what INFINIMEM_MODEL names, else for the first default of the catalogue whose weights can be had.
        Where it is not the first of them, one line on standard error says so.
    Raises DefaultModelMissing.
    """
    if name is not None:
        return name
    if named := os.environ.get(VARIABLE):
        return named
    models, reason = default_models(), ""
    for model in models:
        others = any(other.directory.is_dir() for other in models)
        if not model.directory.is_dir() and others and failed_recently(model):
            reason = reason or "it could not be had within the last day"
            continue
        try:
            model_directory(model, fetch=True)
        except ModelCacheDamaged:
            raise
        except ModelError as error:
            reason = reason or str(error)
            continue
        if model is not models[0]:
            say(f"the default model {models[0].name} cannot be had ({reason}); using {model.name}")
        return model.name
    for model in models:
        # A directory that happens to have the name must not pass for the model.
        if directory_at(model.hub) is None and _on_hub(model.hub):
            say(f"the default model {models[0].name} cannot be had ({reason}); using '{model.hub}' from the hub")
            return model.hub
    raise DefaultModelMissing(
        f"there is no default model, and none can be had: {reason}; with a network, run: infinimem models get "
        f"{models[0].name}"
    )


def known_config(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Fields that tell models apart, as far as they are known without loading the model; {} where nothing is known.

    name: of a model of the catalogue, a directory, or a GGUF file.
    Raises ModelNotFound, DamagedModelFile and UnsupportedModelFile for files.
    """
    if (model := find_model(name)) is not None:
        return model.config
    place = model_place(name)
    if place is None:
        return {}
    if place.is_file():
        file, told = read_gguf(place), {"hidden_size": "embedding_length", "num_hidden_layers": "block_count"}
        return {field: file.setting(key) for field, key in told.items()}
    try:
        content = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    fields = default_models()[0].config
    return {key: content[key] for key in fields if key in content} if isinstance(content, dict) else {}


def _on_hub(name: str) -> bool:
    """Whether a hub id can be loaded, from the hub or from its local cache."""
    with contextlib.suppress(OSError):
        return hub_reachable() or _cached(name).is_dir()
    return False


def _load(
    where: str, directory: Path | None, device: str | torch.device, dtype: torch.dtype | None, fetch: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if directory is None and (where.startswith((".", "/", "~")) or where.count("/") > 1 or not where):
        raise ModelNotFound(
            f"no model directory is at '{where}'; give a directory with config.json, a GGUF file, a "
            "name that `infinimem models` lists, or a hub id"
        )
    with quiet(), _usable(where, directory is not None, fetch):
        if directory is None and not (fetch and hub_reachable()):
            directory = _cached(where)
        place = str(directory or where)
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        # A configuration may name an attention kernel, which transformers would download and run.
        config._attn_implementation = None
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise NotACausalLM(
                f"'{where}' is a {config.model_type} model, which does not continue text; choose a causal LM"
            )
        _refuse_without_rotary(where, config)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            place,
            config=config,
            dtype=dtype or best_dtype(device),
            trust_remote_code=False,
            use_safetensors=None if fetch else True,
        )
        return cast("PreTrainedModel", cast("Any", model).to(device).eval()), tokenizer


def _cached(name: str) -> Path:
    """The directory of a hub id in the local cache: loading from it never asks the hub. Raises OSError."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        raise FileNotFoundError("it is not in the local cache")
    return Path(config).parent


@contextlib.contextmanager
def _usable(where: str, directory: bool, fetch: bool) -> Iterator[None]:
    """Turn every error that transformers raises for a missing, foreign or damaged model into ModelNotFound."""
    try:
        yield
    except InfinimemError:
        raise
    except Exception as error:
        raise ModelNotFound(_not_found(where, directory, fetch, error)) from error


def _refuse_without_rotary(where: str, config: Any) -> None:
    """Raise NoRotaryEmbedding for an architecture that cannot have a memory, before its weights are loaded."""
    import torch
    from transformers import AutoModelForCausalLM

    from ..attention.attach import attention_modules

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    try:
        attention_modules(skeleton)
    except NoRotaryEmbedding as error:
        raise NoRotaryEmbedding(f"'{where}': {error}") from None


def _not_found(where: str, directory: bool, fetch: bool, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if directory:
        return f"'{where}' does not hold a usable model: {reason}"
    if not fetch:
        return (
            f"the model '{where}' is not on this machine, and a memory file alone may not download it; "
            "name it yourself as model= (--model)"
        )
    return f"no model is at '{where}', neither as a directory nor on the hub (or there is no network): {reason}"


def _check_device(device: str | torch.device) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidSetting(
            f"the device '{device}' cannot be used ({str(error).splitlines()[0]}); name another device, or none"
        ) from error


def best_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 on GPUs, and on CPUs that have it in hardware and lose no time with it; float32 elsewhere."""
    import torch

    if torch.device(device).type != "cpu" or _bfloat16_pays():
        return torch.bfloat16
    return torch.float32


# A resumed ingestion gives the bytes of an unbroken ingestion only if both parts use the same dtype, and no file says
# which dtype the first part used. Every process measures anew, so where both dtypes are about equally fast, bfloat16
# must win every time.
_CLEARLY = 1.5


@functools.cache
def _bfloat16_pays() -> bool:
    """Whether float32 is not clearly faster here: some processors have bfloat16 instructions, but slow ones."""
    import torch

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    single, half = _seconds_for_products()
    return half < _CLEARLY * single


def _seconds_for_products() -> tuple[float, float]:
    """Seconds for a segment of 512 tokens times a matrix of a small model, in float32 and in bfloat16.

    Each is the least of eight runs.
    """
    import torch

    # Products of ones take as long as products of any other numbers.
    factors = [
        (torch.ones(512, 576, dtype=kind), torch.ones(1536, 576, dtype=kind))
        for kind in (torch.float32, torch.bfloat16)
    ]
    least = [float("inf")] * 2
    with torch.inference_mode():
        # The dtypes take turns, so that other work of the machine slows down both.
        for turn in range(16):
            started = time.perf_counter()
            torch.nn.functional.linear(*factors[turn % 2])
            least[turn % 2] = min(least[turn % 2], time.perf_counter() - started)
    return least[0], least[1]
