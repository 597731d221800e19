"""The term head: the small network that gives term weights, on top of one layer of the model.

- it looks at the input of one layer's attention: it costs next to nothing during ingestion, and a question has to pass
  only the layers below that layer
- one half weighs the words of passages during ingestion, the other half weighs the words of questions;
  `infinimem adapt` trains both halves
- its calibration says how much BM25 counts in the hybrid ranking, and how well the best passage must fit a question
  before the document is taken to have an answer at all
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DamagedAdapter
from ..storage.files import write_atomically
from ..storage.layout import PREFIX

FILE, OLD_FILE = "term_weights.safetensors", "addresses.safetensors"
# The name is historical: heads of all releases have their settings under this key.
SETTINGS = f"{PREFIX}addresses"
# softplus(ONE) is 1: before training, all words have the weight 1.
ONE = 0.5413


@dataclass(frozen=True)
class HeadSettings:
    """Layer, sizes and calibration of a term head.

    layer: index of the layer whose attention input the head looks at.
    width: width E of this input.
    hidden: hidden units of each half.
    lexical: share of BM25's score that the hybrid ranking adds to the score by term weights.
    least: the least coverage of a question that has an answer. The coverage is the best passage's score, divided by the
        highest score that the question allows.
    """

    layer: int
    width: int
    hidden: int = 64
    lexical: float = 0.3
    least: float = 0.0


class Weigher(nn.Module):
    """Gives every word a weight of at least 0, from a layer's input at the last token of the word."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.constant_(self.outer.bias, ONE)

    def forward(self, x: Tensor) -> Tensor:
        """The weights (...) float32 for the inputs x (..., E)."""
        return F.softplus(self.outer(F.gelu(self.inner(x.float())))).squeeze(-1)


class TermHead(nn.Module):
    """A term head with both halves.

    settings: its layer, sizes and calibration.
    sha256: hash of the layer and of the weights, without the calibration. Term weights of heads with different hashes
        do not mix.
    """

    def __init__(self, settings: HeadSettings, sha256: str = "") -> None:
        super().__init__()
        self.settings = settings
        self.sha256 = sha256
        self.passage = Weigher(settings.width, settings.hidden)
        self.question = Weigher(settings.width, settings.hidden)


def head_file(directory: Path) -> Path | None:
    """The file of the head in an adapter directory, by its present or its older name; None where there is no file."""
    return next((path for name in (FILE, OLD_FILE) if (path := directory / name).exists()), None)


def read_head(directory: Path) -> TermHead | None:
    """The term head in an adapter directory; None where there is no head. Raises DamagedAdapter."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = head_file(directory)
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedAdapter(f"'{path}' cannot be read ({error.strerror}); check its permissions") from error
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        settings = _settings(json.loads(header["__metadata__"][SETTINGS]))
        head = TermHead(settings)
        head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        head.sha256 = _fingerprint(head)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedAdapter(f"'{path}' is no term head ({reason}); restore a copy") from error
    if not all(bool(tensor.isfinite().all()) for tensor in head.state_dict().values()):
        raise DamagedAdapter(f"'{path}' has values that are not finite numbers; restore a copy")
    return head.requires_grad_(False).eval()


def _fingerprint(head: TermHead) -> str:
    total = hashlib.sha256(f"layer {head.settings.layer}".encode())
    for name, tensor in sorted(head.state_dict().items()):
        total.update(f"{name}{tuple(tensor.shape)}".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def _settings(plain: Any) -> HeadSettings:
    kinds = {field.name: int if field.type == "int" else float for field in fields(HeadSettings)}
    if not isinstance(plain, dict) or set(plain) != set(kinds):
        raise ValueError(f"its settings must be {', '.join(kinds)}")
    values: dict[str, Any] = {name: kind(plain[name]) for name, kind in kinds.items()}
    settings = HeadSettings(**values)
    if not (settings.layer >= 0 and 1 <= settings.width <= 1 << 16 and 1 <= settings.hidden <= 1 << 12):
        raise ValueError("its layer, width or hidden size is out of range")
    return settings


def write_head(directory: Path, head: TermHead) -> None:
    """Write the head into an adapter directory, atomically. Raises TargetNotWritable."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in head.state_dict().items()}
    data = save(tensors, {SETTINGS: json.dumps(asdict(head.settings), sort_keys=True)})
    write_atomically(directory / FILE, data)
