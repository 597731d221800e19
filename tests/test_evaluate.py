"""The evaluations measure what they say."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TEXT, MakeModel
from torch.nn import functional as F

from infinimem.errors import EmptySource
from infinimem.evaluate.perplexity import perplexity


def test_perplexity_of_the_window_is_that_of_the_plain_model(make_model: MakeModel) -> None:
    model = make_model(segment_length=32)
    result = perplexity(model, TEXT * 4)
    segments = list(model.segmenter.split(model.encoder.encode(TEXT * 4)))
    loss, count = 0.0, 0
    for segment in segments[1:]:
        ids = torch.tensor([segment])
        with torch.no_grad():
            logits = model.model(input_ids=ids).logits[0, :-1]
        loss += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += len(segment) - 1
    assert result["scored_tokens"] == count and math.isclose(result["window"], math.exp(loss / count), rel_tol=1e-4)


def test_short_texts_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(EmptySource, match="more than one segment"):
        perplexity(make_model(), "Too short.")
