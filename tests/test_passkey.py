"""Passkey retrieval: what is hidden, who is asked, and how it is scored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import TEXT, MakeModel

from infinimem.datasets.needles import NAMES, QUESTION, WORDS, Needle, draw_needles
from infinimem.errors import EmptySource, InvalidSetting
from infinimem.evaluate import passkey as passkey_module
from infinimem.evaluate.continuations import continuations
from infinimem.evaluate.passkey import FILLER, INTRODUCTION, passkey
from infinimem.model.infini_model import InfiniModel


def document(model: InfiniModel, needles: list[Needle], tokens: int, depths: list[float], **settings: Any) -> list[int]:
    around = model.encoder.encode(FILLER)
    return list(passkey_module._document(model, around, needles, tokens, depths, **settings))


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [400, 777])
def test_the_passkey_text_has_the_length_and_the_key_at_its_depth(
    make_model: MakeModel, depth: float, tokens: int
) -> None:
    model = make_model()
    needle = Needle("digits", "31415")
    ids = document(model, [needle], tokens, [depth])
    text = model.tokenizer.decode(ids)
    assert len(ids) == tokens and text.startswith(INTRODUCTION) and QUESTION not in text
    before, after = text.removeprefix(INTRODUCTION).split(needle.fact)
    assert abs(len(before) / len(before + after) - depth) < 0.02


@pytest.mark.parametrize("kind", ["digits", "names"])
def test_every_needle_stands_at_its_depth_of_the_filler(make_model: MakeModel, kind: str) -> None:
    model, count = make_model(), 6
    needles = draw_needles(count, kind, random.Random(3))
    depths = [(i + 0.5) / count for i in range(count)]
    ids = document(model, needles, 3000, depths)
    text = model.tokenizer.decode(ids)
    assert len(ids) == 3000
    filler = text.split("there.\n", 1)[1]
    for needle in needles:
        filler = filler.replace(needle.fact, "|")
    whole, seen = len(filler) - count, 0
    for depth, piece in zip(depths, filler.split("|")[:-1], strict=True):
        seen += len(piece)
        assert abs(seen / whole - depth) < 0.01


def test_names_are_different_people_and_no_value_begins_another() -> None:
    needles = draw_needles(len(NAMES), "names", random.Random(0))
    assert len({needle.name for needle in needles}) == len(NAMES) == len(set(NAMES))
    for values in WORDS.values():
        assert not [(a, b) for a in values for b in values if a != b and b.casefold().startswith(a.casefold())]
    assert {needle.what for needle in draw_needles(5, "names", random.Random(1))} == set(WORDS)


@pytest.mark.parametrize(
    ("kind", "value", "said", "score"),
    [
        ("digits", "31415", " 31415. Remember", 1.0),
        ("digits", "31415", " 314", 0.6),
        ("digits", "31415", " 91415", 0.8),
        ("digits", "31415", " 1415", 0.0),
        ("digits", "31415", " the sky", 0.0),
        ("names", "turquoise", " Turquoise. The sky", 1.0),
        ("names", "London", "\nlondon", 1.0),
        ("names", "turquoise", " not turquoise", 0.0),
        ("names", "turquoise", "", 0.0),
    ],
)
def test_answers_are_scored_by_place_and_by_their_first_word(kind: str, value: str, said: str, score: float) -> None:
    assert Needle(kind, value, name="Novak").score(said) == pytest.approx(score)


@pytest.mark.parametrize("kind", ["digits", "names"])
def test_a_changed_needle_asks_the_same_and_tells_something_else(kind: str) -> None:
    generator = random.Random(0)
    for needle in draw_needles(20, kind, generator):
        other = needle.changed(generator)
        assert other.question == needle.question and other.value != needle.value and other.value in other.fact


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Needle], str]]:
    """Every text that is made: its needles, and its words."""
    texts: list[tuple[list[Needle], str]] = []
    original = passkey_module._document

    def listening(model: InfiniModel, around: Any, needles: list[Needle], *rest: Any, **settings: Any) -> Iterator[int]:
        ids = list(original(model, around, needles, *rest, **settings))
        texts.append((needles, model.tokenizer.decode(ids)))
        return iter(ids)

    monkeypatch.setattr(passkey_module, "_document", listening)
    return texts


def test_a_model_that_says_the_key_scores_one_and_a_half_right_key_half(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, heard: list[tuple[list[Needle], str]]
) -> None:
    model = make_model()
    monkeypatch.setattr(passkey_module, "continuations", lambda *_: [f" {heard[-1][0][0].value}."])
    full = passkey(model, 300, samples=2)
    assert set(full["accuracy"].values()) == set(full["exact"].values()) == {1.0}
    assert full["overall"]["needles"] == 6 and full["overall"]["interval"] == [1.0, 1.0]
    monkeypatch.setattr(passkey_module, "continuations", lambda *_: [heard[-1][0][0].value[:3]])
    part = passkey(model, 300)
    assert set(part["accuracy"].values()) == {0.6} and set(part["exact"].values()) == {0.0}
    assert len({needles[0].value for needles, _ in heard[:6]}) == 6


def test_digits_are_asked_for_after_the_space_before_them_and_once_without_it(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, heard: list[tuple[list[Needle], str]]
) -> None:
    model = make_model()
    space = [8000]
    encode = model.encoder.encode

    def digits_apart(text: str) -> list[int]:
        return [*space, *encode(text[1:])] if text[0] == " " and text[1:].isdigit() else encode(text)

    def only_after_a_space(_: InfiniModel, prompts: list[list[int]], *rest: Any) -> list[str]:
        return [heard[-1][0][0].value if prompt[-1:] == space else " a secret" for prompt in prompts]

    monkeypatch.setattr(model.encoder, "encode", digits_apart)
    monkeypatch.setattr(passkey_module, "continuations", only_after_a_space)
    result = passkey(model, 300, depths=[0.0])
    assert result["exact"] == {"0.0": 1.0} and result["unled"] == {"0.0": 0.0} and result["overall"]["unled"] == 0.0
    assert result["answers"]["0.0"][0]["unled"] == "a secret"
    names = passkey(model, 400, needles=2, kind="names")
    assert names["unled"] == names["exact"]


def test_needles_share_one_reading_and_are_asked_one_by_one(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, heard: list[tuple[list[Needle], str]]
) -> None:
    asked: list[list[str]] = []

    def answer(model: InfiniModel, prompts: list[list[int]], cache: Any, _: int) -> list[str]:
        asked.append([model.tokenizer.decode(prompt) for prompt in prompts])
        assert int(cache.seen[0]) == 1500
        # The first four are right.
        return [n.value if i < 4 else "?" for i, n in enumerate(heard[-1][0])]

    monkeypatch.setattr(passkey_module, "continuations", answer)
    result = passkey(make_model(), 1500, needles=8, kind="names", samples=2)
    assert len(heard) == len(asked) == 2
    assert asked[0] == [needle.question for needle in heard[0][0]]
    assert list(result["accuracy"]) == [str((i + 0.5) / 8) for i in range(8)]
    assert list(result["accuracy"].values()) == [1.0] * 4 + [0.0] * 4
    assert result["overall"]["exact"] == 0.5 and result["overall"]["needles"] == 16
    assert all(low < 0.5 < high for low, high in [result["overall"]["interval"], result["overall"]["exact_interval"]])
    assert len(result["answers"]["0.0625"]) == 2


@pytest.mark.parametrize("settings", [{}, {"needles": 3}])
def test_controls_ask_other_memories(
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    heard: list[tuple[list[Needle], str]],
) -> None:
    model, caches = make_model(), {}
    told: dict[str, list[str]] = {}

    def keep(model: InfiniModel, prompts: list[list[int]], cache: Any, count: int) -> list[str]:
        caches[memory] = cache.clone()
        told[memory] = [model.tokenizer.decode(prompt) for prompt in prompts]
        return continuations(model, prompts, cache, count)

    monkeypatch.setattr(passkey_module, "continuations", keep)
    results = {}
    for memory in ("own", "emptied", "other"):
        results[memory] = passkey(model, 400, depths=[0.0], memory=memory, **settings)
    assert caches["emptied"].seen is None and results["emptied"]["memory_bytes"] == 0
    assert int(caches["own"].seen[0]) == int(caches["other"].seen[0])
    own, other = caches["own"].states(), caches["other"].states()
    assert any((own[i]["keys"] != other[i]["keys"]).any() for i in own)
    assert told["own"] == told["emptied"] == told["other"]
    # The same keys are asked for; the other text does not have them.
    keys = [[row["key"] for rows in results[m]["answers"].values() for row in rows] for m in results]
    assert keys[0] == keys[1] == keys[2]
    assert all(key in heard[0][1] and key not in heard[-1][1] for key in keys[0])
    assert [results[m]["memory"] for m in results] == ["own", "emptied", "other"]


def test_prose_begins_elsewhere_in_every_sample_and_the_papers_filler_does_not(
    make_model: MakeModel, heard: list[tuple[list[Needle], str]]
) -> None:
    prose = " ".join(f"Sentence number {i} is here." for i in range(300))
    passkey(make_model(), 300, depths=[1.0], samples=3, filler=prose)
    assert len({text.split("there.\n", 1)[1][:30] for _, text in heard}) == 3
    first = [text for _, text in heard]
    heard.clear()
    passkey(make_model(), 300, depths=[1.0], samples=3, filler=prose)
    assert [text for _, text in heard] == first
    heard.clear()
    passkey(make_model(), 300, depths=[1.0], samples=3)
    assert all(text.startswith(INTRODUCTION + FILLER) for _, text in heard)


def test_prompts_decoded_together_say_what_they_say_alone(make_model: MakeModel) -> None:
    model = make_model()
    cache = model.new_cache()
    model.read_tokens(model.encoder.encode(TEXT), cache)
    prompts = [model.encoder.encode(TEXT[i : i + 9 * i]) for i in range(1, 12)]
    together = continuations(model, prompts, cache, 6)
    assert together == [continuations(model, [prompt], cache, 6)[0] for prompt in prompts]
    assert len(set(together)) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens": 5},
        {"depths": [1.5]},
        {"depths": []},
        {"samples": 0},
        {"depths": [float("nan")]},
        {"needles": 0},
        {"needles": len(NAMES) + 1},
        {"needles": 40},
        {"kind": "songs"},
        {"memory": "none"},
    ],
)
def test_impossible_passkey_settings_are_refused(make_model: MakeModel, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        passkey(make_model(), **{"tokens": 300, **settings})


def test_an_empty_filler_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(EmptySource):
        passkey(make_model(), 300, filler="")
