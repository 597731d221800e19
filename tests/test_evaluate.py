"""The evaluations measure what they say."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT, MakeModel, tiny_network
from torch.nn import functional as F

from infinimem.datasets.documents import books
from infinimem.errors import EmptySource, InvalidSetting, SourceNotFound, UnsupportedSource
from infinimem.evaluate.intervals import bootstrap, wilson
from infinimem.evaluate.perplexity import SYSTEMS, perplexity, recent_tokens

BOOKS = [("First", TEXT * 4), ("Second", "A bell rang twice. " + TEXT * 2 + "Nobody counted the ships. " * 9)]


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


@pytest.mark.parametrize("segment_length", [20, 32])
def test_sliding_is_a_plain_forward_over_two_segments(make_model: MakeModel, segment_length: int) -> None:
    model = make_model(segment_length=segment_length)
    result = perplexity(model, TEXT * 4, systems=["sliding"])
    plain = tiny_network("Llama")
    segments = list(model.segmenter.split(model.encoder.encode(TEXT * 4)))
    loss, count = 0.0, 0
    for before, segment in zip(segments, segments[1:], strict=False):
        with torch.no_grad():
            everything = plain(input_ids=torch.tensor([[*before, *segment]])).logits[0].log_softmax(-1)
        for place, token in enumerate(segment[1:]):
            loss -= float(everything[len(before) + place, token])
            count += 1
    assert result["scored_tokens"] == count and math.isclose(result["sliding"], math.exp(loss / count), rel_tol=1e-4)
    assert set(SYSTEMS) & set(result) == {"sliding"} and "mean_change" not in result


def test_recent_is_plain_attention_while_the_bytes_hold_everything_and_less_after_that(make_model: MakeModel) -> None:
    model = make_model(slots=1000, packing="float32", memory_heads=range(4))
    roomy = perplexity(model, TEXT * 3, systems=SYSTEMS)
    assert math.isclose(roomy["memory"], roomy["exact"], rel_tol=1e-5)
    ids = model.encoder.encode(TEXT * 3)
    segments = list(model.segmenter.split(ids))
    with torch.no_grad():
        everything = tiny_network("Llama")(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    scored = [p for p in range(len(segments[0]), len(ids)) if p not in np.cumsum([len(part) for part in segments])]
    loss = -sum(float(everything[place - 1, ids[place]]) for place in scored)
    assert math.isclose(roomy["recent"], math.exp(loss / len(scored)), rel_tol=1e-3)
    small = perplexity(make_model(slots=24, packing="float32", memory_heads=range(4)), TEXT * 3, systems=SYSTEMS)
    assert small["exact"] == roomy["exact"]
    assert len({small[system] for system in SYSTEMS}) == len(SYSTEMS)
    assert small["documents"][0]["recent_tokens"] == 24


@pytest.mark.parametrize(("rule", "tokens"), [("slots", 24), ("linear", (16 * 16 + 16) // 33), ("recent", 17)])
def test_recent_has_the_bytes_of_the_memory(make_model: MakeModel, rule: str, tokens: int) -> None:
    model = make_model(rule=rule, memory_heads=range(4), **({"tokens": 17} if rule == "recent" else {}))
    row = perplexity(model, TEXT * 3, systems=["recent"])["documents"][0]
    assert row["recent_tokens"] == recent_tokens(model, row["memory_bytes"]) == tokens


def test_recent_has_the_bytes_of_a_memory_in_some_heads_and_of_what_is_carried(make_model: MakeModel) -> None:
    model = make_model(memory_heads={1: [0], 3: [0, 1]}, carry=10)
    row = perplexity(model, TEXT * 3, systems=["recent"])["documents"][0]
    token = 32 + 2 * 4 + 4
    assert row["memory_bytes"] == 3 * 24 * token + 8 * 10 * token and row["recent_tokens"] == 3 * 24 // 8 + 10


def test_books_are_scored_apart_and_together(make_model: MakeModel) -> None:
    model = make_model()
    both = perplexity(model, BOOKS, systems=["memory", "window"])
    alone = [perplexity(model, text) for _, text in BOOKS]
    assert [row["title"] for row in both["documents"]] == ["First", "Second"]
    for row, one in zip(both["documents"], alone, strict=True):
        assert (row["memory"], row["window"], row["tokens"]) == (one["memory"], one["window"], one["tokens"])
    scored = [one["scored_tokens"] for one in alone]
    loss = sum(math.log(one["memory"]) * count for one, count in zip(alone, scored, strict=True))
    assert math.isclose(both["memory"], math.exp(loss / sum(scored)), rel_tol=1e-9)
    changes = [one["memory"] / one["window"] - 1 for one in alone]
    assert both["worst_change"] == max(changes) and math.isclose(both["mean_change"], sum(changes) / 2)


def test_skip_and_limit_choose_tokens(make_model: MakeModel) -> None:
    model = make_model()
    text = BOOKS[1][1]
    some = perplexity(model, text, skip=9, limit=70)
    later = perplexity(model, model.tokenizer.decode(model.encoder.encode(text)[9:79]))
    assert some["tokens"] == 70 and some["memory"] == later["memory"] != perplexity(model, text, limit=70)["memory"]


@pytest.mark.parametrize("settings", [{"systems": ["magic"]}, {"systems": []}, {"skip": -1}, {"limit": 0}])
def test_impossible_perplexity_settings_are_refused(make_model: MakeModel, settings: dict) -> None:
    with pytest.raises(InvalidSetting):
        perplexity(make_model(), TEXT * 3, **settings)


def test_two_segments_must_fit_the_context(make_model: MakeModel) -> None:
    with pytest.raises(InvalidSetting, match="context of 2200"):
        perplexity(make_model(segment_length=1100), TEXT, systems=["sliding"])
    with pytest.raises(EmptySource, match="no texts"):
        perplexity(make_model(), [])


@pytest.mark.parametrize(("right", "total"), [(0, 5), (1, 1), (3, 10), (40, 40), (500, 1000)])
def test_wilson_holds_all_shares_that_are_not_too_far_away(right: int, total: int) -> None:
    def far(share: float) -> float:
        return abs(right / total - share) - 1.959963985 * math.sqrt(share * (1 - share) / total)

    low, high = wilson(right, total)
    for edge, outside in ((low, low - 1e-6), (high, high + 1e-6)):
        if 0 < edge < 1:
            assert abs(far(edge)) < 1e-7 < far(outside)
    assert low <= right / total <= high and (right or low == 0) and (right < total or high == 1)


def test_the_bootstrap_is_as_wide_as_the_standard_error_says() -> None:
    values = [float(v) for v in torch.randn(400, generator=torch.Generator().manual_seed(0))]
    middle = sum(values) / 400
    error = math.sqrt(sum((v - middle) ** 2 for v in values) / 400 / 400)
    low, high = bootstrap(values, seed=1)
    assert math.isclose(high - low, 2 * 1.96 * error, rel_tol=0.08) and math.isclose(
        low + high, 2 * middle, abs_tol=0.02
    )
    assert bootstrap(values, seed=1) == [low, high] != bootstrap(values, seed=2)
    assert bootstrap([0.5] * 3) == [0.5, 0.5]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_books_come_from_json_lines_and_from_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"books{suffix}"
    with gzip.open(path, "wt") if suffix.endswith("gz") else path.open("w") as file:
        file.writelines(json.dumps({"id": title, "title": title, "text": text}) + "\n" for title, text in BOOKS)
    assert books(path) == BOOKS
    (tmp_path / "story.txt").write_text(TEXT)
    assert [(title, text.strip()) for title, text in books(tmp_path / "story.txt")] == [("story.txt", TEXT.strip())]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("missing.jsonl", None, SourceNotFound),
        ("missing.jsonl.gz", None, SourceNotFound),
        ("empty.jsonl", b"", EmptySource),
        ("blank.jsonl", b"\n\n", EmptySource),
        ("words.jsonl", b"Once upon a time\n", UnsupportedSource),
        ("list.jsonl", b"[1, 2]\n", UnsupportedSource),
        ("notext.jsonl", b'{"title": "T"}\n', UnsupportedSource),
        ("bytes.jsonl", b'{"text": "\xff\xfe"}\n', UnsupportedSource),
        ("plain.jsonl.gz", b'{"text": "T"}\n', UnsupportedSource),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "' + bytes(range(32, 127)) * 50 + b'"}')[:60], UnsupportedSource),
    ],
)
def test_bad_books_say_what_is_wrong(tmp_path: Path, name: str, content: bytes | None, error: type[Exception]) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=name):
        books(tmp_path / name)
