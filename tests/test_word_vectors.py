"""Which words are related: vectors from the model's input embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from infinimem.search.word_vectors import DIRECTIONS, WordVectors
from infinimem.text.tokens import TextEncoder

if TYPE_CHECKING:
    from infinimem.model.infini_model import InfiniModel


@pytest.mark.parametrize(
    ("word", "near", "far"),
    [
        ("mist", "fog", "bread"),
        ("ocean", "sea", "wood"),
        ("timber", "wood", "sea"),
        ("rodents", "mice", "clocks"),
        ("error", "mistake", "island"),
        ("discovered", "found", "walked"),
    ],
)
def test_a_word_is_nearer_to_one_that_means_the_same(embedded: InfiniModel, word: str, near: str, far: str) -> None:
    _, (asked, close, distant) = WordVectors.of(embedded)([word, near, far])
    assert asked @ close > 0.35 and asked @ close > asked @ distant + 0.2


def test_vectors_have_length_one_and_words_of_several_tokens_numbers_and_short_ones_none(embedded: InfiniModel) -> None:
    words = ["harbour", "fog", "Fog", "Kelderay", "of", "7", "", "warsaw"]
    places, vectors = WordVectors.of(embedded)(words)
    assert places.tolist() == [0, 1, 2, 7]
    assert vectors.shape == (4, embedded.model.config.hidden_size) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 1], abs=1e-5)
    assert (vectors[1] == vectors[2]).all()
    assert [x.shape for x in WordVectors.of(embedded)([])] == [(0,), (0, embedded.model.config.hidden_size)]


def test_words_that_a_tokenizer_does_not_know_are_not_related() -> None:
    known = Tokenizer(WordLevel({"<unk>": 0, "harbour": 1, "fog": 2}, unk_token="<unk>"))
    known.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known, unk_token="<unk>")
    table = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    places, _ = WordVectors(table, TextEncoder(tokenizer), tokenizer.unk_token_id)(["zebra", "harbour", "lion", "fog"])
    assert places.tolist() == [1, 3]


def test_mean_and_widest_directions_are_taken_out(tokenizer: PreTrainedTokenizerFast) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(len(tokenizer), DIRECTIONS, generator=generator) * torch.tensor([9.0, 7.0, 5.0])
    table = (
        torch.randn(len(tokenizer), 24, generator=generator)
        + wide @ torch.randn(DIRECTIONS, 24, generator=generator)
        + 3
    )
    words = [word for word in ("the", "ship", "fog", "and", "was") if len(tokenizer(f" {word}")["input_ids"]) == 1]
    rows = [tokenizer(f" {word}")["input_ids"][0] for word in words if len(word) > 2]
    centred = (table - table.mean(dim=0)).double().numpy()
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    kept = centred[rows] @ (np.eye(24) - directions[:DIRECTIONS].T @ directions[:DIRECTIONS])
    expected = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    _, found = WordVectors(table, TextEncoder(tokenizer))([word for word in words if len(word) > 2])
    assert len(rows) > 0 and np.abs(found - expected).max() < 1e-3
