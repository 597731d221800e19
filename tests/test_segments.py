"""Segments end where sentences do, and do not depend on how tokens arrive."""

from __future__ import annotations

from typing import Any

from conftest import TEXT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinimem.text.segments import Segmenter

tokens = st.lists(st.integers(3, 511), max_size=200)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=tokens, length=st.integers(1, 40))
def test_segments_are_all_of_the_tokens_and_never_long(tokenizer: Any, tokens: list[int], length: int) -> None:
    segments = list(Segmenter(tokenizer, length).split(tokens))
    assert [token for segment in segments for token in segment] == tokens
    assert all(0 < len(segment) <= length for segment in segments)
    assert all(len(segment) > length // 2 for segment in segments[:-1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=tokens, length=st.integers(1, 40))
def test_an_end_once_known_does_not_change(tokenizer: Any, tokens: list[int], length: int) -> None:
    segmenter = Segmenter(tokenizer, length)
    ends = {segmenter.end(tokens[:size]) for size in range(len(tokens) + 1)} - {None}
    assert len(ends) <= 1


def test_a_segment_of_prose_ends_with_a_sentence(tokenizer: Any) -> None:
    ids = tokenizer(TEXT * 12)["input_ids"]
    segments = list(Segmenter(tokenizer, 64).split(ids))
    texts = [tokenizer.decode(segment) for segment in segments[:-1]]
    assert len(texts) > 4 and all(text.endswith(".") for text in texts)


def test_a_decimal_point_is_no_sentence_end(tokenizer: Any) -> None:
    ids = tokenizer("and a value of 3.14159 or 2.71828 " * 10)["input_ids"]
    for segment in Segmenter(tokenizer, 24).split(ids):
        assert not tokenizer.decode(segment).endswith(("3.", "2."))
