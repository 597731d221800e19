"""Tiny random-weight models of all supported families, and the embedded model, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from infinimem.attention import InfiniCache
from infinimem.attention.rules import make_rule
from infinimem.model import directories
from infinimem.model.infini_model import InfiniModel
from infinimem.readers.process import parent

TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Mistral": {"sliding_window": 24},
    "Gemma2": {"sliding_window": 24, "query_pre_attn_scalar": 16},
    "Gemma3": {"sliding_window": 24, "query_pre_attn_scalar": 16},
    "SmolLM3": {"no_rope_layer_interval": 2},
    "Phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
}
CONFIG_NAMES = {"Gemma3": "Gemma3TextConfig"}
TEXT = (
    "The lighthouse keeper counted the ships that passed before breakfast. There were seven on Monday and none on "
    "Tuesday, when the fog came in from the north and stayed until the bell rang twice. "
)


def tiny_network(family: str, **changes: Any) -> transformers.PreTrainedModel:
    """A random model of the family, with weights large enough that attention matters."""
    config_class = getattr(transformers, CONFIG_NAMES.get(family, f"{family}Config"))
    config = config_class(**{**TINY, **FAMILIES[family], **changes})
    torch.manual_seed(0)
    network = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.15 if "embed" not in name else 1.0)
    return network.eval()


@pytest.fixture(scope="session", autouse=True)
def known_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests name is no business of the user's; processes that they start see it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(directories.VARIABLE, str(tmp_path_factory.mktemp("known") / "directories.jsonl"))
        yield


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with chat tokens, trained on a few sentences."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT * 4], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
    )


MakeModel = Callable[..., InfiniModel]


@pytest.fixture
def make_model(tokenizer: transformers.PreTrainedTokenizerFast) -> MakeModel:
    """Builds a tiny InfiniModel: make_model(family, rule, segment_length=..., memory_heads=..., **rule settings)."""

    def make(
        family: str = "Llama",
        rule: str = "slots",
        *,
        segment_length: int = 16,
        memory_heads: Any = None,
        carry: int = 0,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> InfiniModel:
        if rule == "slots":
            settings = {"slots": 24, "distance": 16, **settings}
        network = tiny_network(family).to(dtype)
        return InfiniModel(
            network,
            tokenizer,
            make_rule(rule, **settings),
            segment_length=segment_length,
            memory_heads=memory_heads,
            carry=carry,
            name="tiny",
        )

    return make


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A model directory as users have them."""
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_network("Llama").save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    directories.trust(directory)
    return directory


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every process that was started to parse; none is left at the end."""
    started: list[Any] = []

    class Seen(parent._Process):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(parent, "_Process", Seen)
    yield started
    assert all(child._child.poll() is not None for child in started)


@pytest.fixture(scope="session")
def embedded() -> InfiniModel:
    """The embedded default model with its default memory."""
    return InfiniModel.from_pretrained()


def ragged(lengths: list[int], segment: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Rows (1, length) each, and the batch and mask that hold them: whole segments stand where they would alone; the
    last, shorter one of a row is padded on its left."""
    rows, longest = [random_tokens(1, length, seed=length) for length in lengths], max(lengths)
    batch, mask = torch.zeros(2, len(lengths), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        whole = (longest - 1) // segment * segment
        rest = longest - (row.shape[1] - whole)
        batch[i, :whole], mask[i, :whole] = row[0, :whole], 1
        batch[i, rest:], mask[i, rest:] = row[0, whole:], 1
    return rows, batch, mask


def read(
    model: InfiniModel, tokens: torch.Tensor, cache: InfiniCache, attention_mask: torch.Tensor | None = None
) -> None:
    """Read tokens (B, T) into a memory, in segments of equal length; the last one may be shorter.

    attention_mask: (B, T), 0 for padding: on the left of the last segment, or after the end.
    """
    with torch.no_grad():
        for start in range(0, tokens.shape[1], model.segment_length):
            part = slice(start, start + model.segment_length)
            mask = None if attention_mask is None else attention_mask[:, part]
            model.read_segment(tokens[:, part], cache, mask)


def random_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Token ids (rows, length) without special tokens."""
    return torch.randint(3, 512, (rows, length), generator=torch.Generator().manual_seed(seed))
