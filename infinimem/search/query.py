"""A query as the model sees it: the term head that weighs the words of passages weighs the query's words too."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..attention.attend import SeenEnough
from ..errors import InvalidSetting
from ..text.term_weights import last_tokens

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel


def weigh(model: InfiniModel, query: str) -> list[float]:
    """The weight of each word of a query (`words.spans`); words at the end of a very long query have the weight 0.

    Raises InvalidSetting where the model has no term head.
    """
    if model.term_head is None:
        raise InvalidSetting(f"the model '{model.name}' has no term head; rank with rank_by='lexical'")
    places, inputs = echo(model, query, model.term_head.settings.layer)
    weights = model.term_head.question(inputs).tolist()
    return [weights[place] if place < len(weights) else 0.0 for place in places]


def echo(model: InfiniModel, query: str, layer: int) -> tuple[list[int], Tensor]:
    """The words of a query as the model sees them when it reads the query a second time.

    layer: index of the layer whose attention input is returned.
    Returns, for each of `words.spans`, the index of its last token in the second copy of the query, and the inputs of
    the layer at the tokens of the second copy, (T, E). Each copy is cut to half a segment of tokens; words that end
    after the cut have the index T.
    """
    most = max(1, model.segment_length // 2)
    first, (second, ends) = model.encoder.encode(f"{query}\n")[:most], model.encoder.encode_placed([query])
    seen = inputs_at(model, layer, [*first, *second[:most]])[len(first) :]
    return last_tokens(ends[:most], 0, query), seen


@torch.no_grad()
def inputs_at(model: InfiniModel, layer: int, tokens: Sequence[int]) -> Tensor:
    """The input of a layer's attention, (T, E), for a text with no memory before it; no layer above is computed."""
    cache = model.new_cache()
    cache.watched, cache.enough = layer, True
    with contextlib.suppress(SeenEnough):
        ids = torch.tensor([[*model.prefix, *tokens]], device=model.device)
        model.model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache.watched_inputs()[0]
