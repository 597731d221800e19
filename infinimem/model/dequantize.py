"""A GGUF file into a model directory: bfloat16 safetensors, configuration, tokenizer and chat template.

- weights go from one file to the other in pieces of a tensor, so that the model is never in memory
- the directory appears in one rename, with the checksums of all its files
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import UnsupportedModelFile
from .gguf import FORMATS, GgufFile, GgufTensor, read_gguf
from .gguf_config import Family, config_of, end_tokens, family_of, tensor_names
from .quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

WEIGHTS, CHECKSUMS = "model.safetensors", "checksums.json"
# Values that are converted at once: few enough for a processor's cache, and for memory that is used again.
PIECE = 1 << 18
# Pieces that are read or converted while another piece is written.
AHEAD = 4

# Takes bytes done and bytes in all.
OnBytes = Callable[[int, int], None]


def dequantize_into(source: Path, target: Path, progress: OnBytes | None = None) -> None:
    """Make the model directory `target` of a GGUF file; its parent must be there.

    progress: called with the bytes of the GGUF file's tensors that are converted, and all of them.
    Raises ModelNotFound, DamagedModelFile, UnsupportedModelFile, and OSError where the directory cannot be written.
    """
    file = read_gguf(source)
    config = config_of(file)
    names = tensor_names(file, config)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        sums = {WEIGHTS: _write_weights(file, names, config, building / WEIGHTS, progress)}
        _write_rest(file, config, building)
        for path in sorted(building.iterdir()):
            if path.name not in sums:
                sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (building / CHECKSUMS).write_text(json.dumps(dict(sorted(sums.items())), indent=1) + "\n", encoding="utf-8")
        building.chmod(0o755)
        os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_rest(file: GgufFile, config: PretrainedConfig, directory: Path) -> None:
    """Write configuration, tokenizer and chat template."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        TOKENIZER_MAPPING,
        GenerationConfig,
        PreTrainedTokenizerFast,
    )

    with quiet():
        network: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        config.architectures = [network.__name__]
        config.save_pretrained(directory)
        special: dict[str, Any] = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
        GenerationConfig(eos_token_id=end_tokens(file), **special).save_pretrained(directory)
        # The class that AutoTokenizer chooses for a directory. AutoTokenizer itself is slow with GGUF files.
        kind: Any = PreTrainedTokenizerFast
        if type(config) in TOKENIZER_MAPPING:
            kind = TOKENIZER_MAPPING[type(config)]
        try:
            tokenizer = kind.from_pretrained(file.path.parent, gguf_file=file.path.name)
        except Exception as error:
            raise UnsupportedModelFile(
                f"the tokenizer in '{file.path}' cannot be read ({error}); choose another file"
            ) from error
        tokenizer.save_pretrained(directory)


def _write_weights(
    file: GgufFile, names: dict[str, str], config: PretrainedConfig, target: Path, progress: OnBytes | None
) -> str:
    """Write the weights as bfloat16; returns the SHA-256 of the file."""
    import torch

    family = family_of(file)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, stored in sorted(names.items()):
        shape = file.tensors[stored].shape
        length = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [place, place + length]}
        place += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    tensors = [file.tensors[stored] for _, stored in sorted(names.items())]
    done, total = 0, sum(tensor.size for tensor in tensors)
    digest = hashlib.sha256()
    # A thread for each of the two halves of the work, so that hashing and the disk do not wait for products.
    with file.path.open("rb") as source, target.open("wb") as out, ThreadPoolExecutor(1) as pool:

        def write(data: Any) -> None:
            out.write(data)
            digest.update(data)

        pending: list[Future[None]] = [pool.submit(write, len(text).to_bytes(8, "little") + text)]
        for tensor in tensors:
            for values in _converted(source, tensor, family, config):
                pending.append(pool.submit(write, values.view(torch.uint8).numpy().data))
                if len(pending) > AHEAD:
                    pending.pop(0).result()
            done += tensor.size
            if progress is not None:
                progress(done, total)
        for one in pending:
            one.result()
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _converted(source: BinaryIO, tensor: GgufTensor, family: Family, config: PretrainedConfig) -> Iterator[Tensor]:
    """The weights of a tensor in transformers' order, bfloat16 (values,), piece by piece."""
    import torch

    from .blocks import dequantize

    heads = 0
    if family.permuted and ".attn_q." in tensor.name:
        heads = config.num_attention_heads
    elif family.permuted and ".attn_k." in tensor.name:
        heads = config.num_key_value_heads
    row = torch.Size(tensor.shape[1:]).numel()
    # A head's rows are put in order together, so a piece holds whole heads.
    step = tensor.shape[0] // heads if heads else 1
    rows = max(1, PIECE // (row * step)) * step
    _, values, width = next(entry for entry in FORMATS.values() if entry[0] == tensor.format)
    if len(tensor.shape) == 1 and not heads:
        rows = tensor.shape[0]
    source.seek(tensor.start)
    for start in range(0, tensor.shape[0], rows):
        count = min(rows, tensor.shape[0] - start)
        # frombuffer takes no buffer that cannot be written.
        data = torch.frombuffer(bytearray(source.read(count * row // values * width)), dtype=torch.uint8)
        piece = dequantize(data, tensor.format)
        if family.norms_plus_one and tensor.name.endswith("norm.weight"):
            piece = piece - 1
        if heads:
            # GGUF has the pairs of a rotation side by side, transformers has them half a head apart.
            piece = piece.view(-1, step // 2, 2, row).transpose(1, 2).reshape(-1)
        yield piece.bfloat16()
