"""The evaluations measure what they say."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TEXT, MakeModel
from torch.nn import functional as F

from infinimem.errors import EmptySource, InvalidSetting
from infinimem.evaluate import passkey as passkey_module
from infinimem.evaluate.passkey import FILLER, INTRODUCTION, QUESTION, passkey
from infinimem.evaluate.perplexity import perplexity


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [400, 777])
def test_the_passkey_text_has_the_length_the_key_and_the_question_last(
    make_model: MakeModel, depth: float, tokens: int
) -> None:
    model = make_model()
    ids = list(passkey_module._document(model, model.encoder.encode(FILLER), "31415", tokens, depth))
    text = model.tokenizer.decode(ids)
    assert len(ids) == tokens and text.startswith(INTRODUCTION) and text.endswith(QUESTION)
    place = text.index("31415") / len(text)
    assert text.count("31415") == 2 and abs(place - depth) < 0.55 * (1 if depth in (0, 1) else 0.4)


def test_a_model_that_says_the_key_scores_one_and_a_half_right_key_half(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    keys: list[str] = []
    original = passkey_module._document

    def listening(model, around, key, tokens, depth):  # type: ignore[no-untyped-def]
        keys.append(key)
        return original(model, around, key, tokens, depth)

    monkeypatch.setattr(passkey_module, "_document", listening)
    monkeypatch.setattr(passkey_module, "_answer", lambda *_: f" {keys[-1]}.")
    full = passkey(model, 300, samples=2)
    assert set(full["accuracy"].values()) == set(full["exact"].values()) == {1.0}
    monkeypatch.setattr(passkey_module, "_answer", lambda *_: f"{keys[-1][:3]}")
    part = passkey(model, 300)
    assert set(part["accuracy"].values()) == {0.6} and set(part["exact"].values()) == {0.0}
    assert len(set(keys[:6])) == 6


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


@pytest.mark.parametrize(
    "settings", [{"tokens": 5}, {"depths": [1.5]}, {"depths": []}, {"samples": 0}, {"depths": [float("nan")]}]
)
def test_impossible_passkey_settings_are_refused(make_model: MakeModel, settings: dict) -> None:
    with pytest.raises(InvalidSetting):
        passkey(make_model(), **{"tokens": 300, **settings})


def test_empty_filler_and_short_texts_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(EmptySource):
        passkey(make_model(), 300, filler="")
    with pytest.raises(EmptySource, match="more than one segment"):
        perplexity(make_model(), "Too short.")
