"""A model of the transformers library as it comes: greedy decoding, prompts, and the size of its matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..answering.prompts import Message
from ..model.quantized import Int8Linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def greedy(network: PreTrainedModel, tokens: Sequence[int], cache: Any) -> Iterator[int]:
    """The most probable tokens after `tokens`, one a step, without end. cache: changed in place."""
    ids = torch.tensor([list(tokens)], device=network.device)
    while True:
        with torch.no_grad():
            logits = network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1:].argmax(dim=-1)
        yield int(ids)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a chat, up to the beginning of the answer; of plain text where there is no chat template."""
    if tokenizer.chat_template:
        shown = str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        return list(tokenizer(shown, add_special_tokens=False)["input_ids"])
    text = "\n\n".join(message["content"] for message in messages)
    return list(tokenizer(f"{text}\n\nAnswer:")["input_ids"])


def matrix_parameters(network: PreTrainedModel) -> int:
    """The number of weights that every token is multiplied with: those of the linear layers, without the language-model
    head."""
    linear = [module for module in network.get_decoder().modules() if isinstance(module, (torch.nn.Linear, Int8Linear))]
    return sum(module.in_features * module.out_features for module in linear)
