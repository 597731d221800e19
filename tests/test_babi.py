"""bAbI among noise: the document, the question, and the three memories."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, MakeModel

from infinimem.datasets.stories import read_stories
from infinimem.errors import EmptySource, InvalidSetting, SourceNotFound, UnsupportedSource
from infinimem.evaluate import babi as babi_module
from infinimem.evaluate.babi import PEOPLE, AskedStory, babi, is_right, question_text, story_tokens

ROOMS = ("kitchen", "garden", "office", "hallway", "bathroom")
STORIES = [
    AskedStory(
        task,
        (f"Mary went to the {room}.", f"Mary took the {thing}.", f"Sandra moved to the {other}.")[: 2 + i % 2],
        "Where is Mary?",
        room,
    )
    for task in ("qa1", "qa2")
    for i, (room, thing, other) in enumerate(
        (room, thing, other) for room in ROOMS for thing in ("milk", "apple") for other in ROOMS[:2]
    )
]


def row(story: AskedStory) -> dict[str, Any]:
    after = len(story.facts)
    late = {"question": story.question, "answer": story.answer, "after": after, "supporting": [0]}
    early = {"question": "Early?", "answer": "no", "after": 1, "supporting": [0]}
    return {"task": story.task, "sentences": [*story.facts, "Told too late."], "qas": [early, late]}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(path: Path, tasks: list[str] | None = None) -> list[AskedStory]:
    return [AskedStory.of(story) for story in read_stories(path, tasks)]


def test_the_last_question_and_what_was_told_before_it_are_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "stories.jsonl", [row(story) for story in STORIES])
    assert asked(path) == STORIES
    assert {story.task for story in asked(path, ["qa2"])} == {"qa2"}
    with pytest.raises(InvalidSetting, match="qa9"):
        asked(path, ["qa9"])


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"task": "qa1", "sentences": ["A."], "qas": []},
        {"task": "qa1", "sentences": ["A."], "qas": [{"question": "?", "answer": "a"}]},
        {"task": "qa1", "sentences": 5, "qas": [{"question": "?", "answer": "a", "after": 1}]},
        {"task": "qa1", "sentences": ["A."], "qas": [{"question": "?", "answer": "a", "after": 0}]},
        {"task": "qa1", "sentences": ["A."], "qas": [{"question": "?", "answer": " ", "after": 1}]},
    ],
)
def test_other_layouts_are_refused_by_row(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSource, match="line 2"):
        asked(write(tmp_path / "stories.jsonl", [row(STORIES[0]), bad]))
    with pytest.raises(SourceNotFound):
        asked(tmp_path / "missing.jsonl.gz")


@pytest.mark.parametrize("seed", range(5))
def test_facts_stand_in_order_among_whole_sentences_of_noise(make_model: MakeModel, seed: int) -> None:
    model = make_model()
    noise = [f"Noise number {i} is here." for i in range(90)]
    facts = tuple(f"Fact {name} was told." for name in ("one", "two", "three", "four"))
    story = AskedStory("qa1", facts, "?", "!")
    ids = story_tokens(model, story, noise, 700, random.Random(seed))
    assert len(ids) == 700
    text = model.tokenizer.decode(ids)
    places = [text.index(f" {fact}") for fact in facts]
    assert places == sorted(places) and places[-1] - places[0] > 100
    for fact in facts:
        text = text.replace(f" {fact}", "")
    numbers = [int(word) for word in text.split() if word.isdigit()]
    assert all(b == (a + 1) % 90 for a, b in zip(numbers, numbers[1:], strict=False)) and len(numbers) > 20


def test_noise_starts_elsewhere_for_each_story(make_model: MakeModel) -> None:
    generator, model = random.Random(0), make_model()
    noise = [f"Noise number {i} is here." for i in range(90)]
    texts = {tuple(story_tokens(model, STORIES[0], noise, 300, generator)) for _ in range(5)}
    assert len(texts) == 5


def test_examples_are_in_the_question_under_other_names() -> None:
    text = question_text(STORIES[3], STORIES[:2])
    assert text.endswith("Question: Where is Mary?\nAnswer:") and text.count("Example:") == 2
    before = text[: text.index("Now the text")]
    assert "Anna went to the kitchen." in before and "Answer: kitchen" in before
    assert not any(name in before for name in PEOPLE)
    assert "Example" not in question_text(STORIES[3], [])


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        (" kitchen\nQuestion", "kitchen", True),
        (" The Kitchen.", "kitchen", True),
        (" in the kitchen", "kitchen", False),
        (" kitchenette", "kitchen", False),
        ("", "kitchen", False),
        (" garden, kitchen", "kitchen", False),
        (" milk and apple. Then", "apple,milk", True),
        (" apple, milk", "apple,milk", True),
        (" apple", "apple,milk", False),
        (" apple, milk, football", "apple,milk", False),
        (" apple, apple, milk", "apple,milk", False),
        (" north", "north,north", False),
        (" north, north", "north,north", True),
    ],
)
def test_an_answer_is_right_by_its_first_words(said: str, answer: str, right: bool) -> None:
    assert is_right(said, answer) is right


def test_steps_of_a_path_are_right_in_their_order_alone(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(babi_module, "_ask", lambda *_: "east, south")
    for task, share in (("qa8", 1.0), ("qa19", 0.0)):
        stories = [AskedStory(task, (f"Place {i} is here.",), "How?", "south,east") for i in range(3)]
        found = babi(make_model(), stories, TEXT, 200, shots=0)
        assert found["tasks"][task]["own"] == found["overall"]["own"] == share
    assert is_right(" south, east", "south,east", "qa19")


def test_three_memories_answer_and_the_other_one_is_another_document(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    documents: list[AskedStory] = []
    told: dict[int, AskedStory] = {}
    asked: list[tuple[AskedStory, AskedStory | None]] = []
    original, read = babi_module.story_tokens, model.read_tokens

    def tell(model: Any, story: AskedStory, *rest: Any) -> list[int]:
        documents.append(story)
        return original(model, story, *rest)

    def remember(tokens: Any, cache: Any) -> None:
        read(tokens, cache)
        assert int(cache.seen[0]) == 200
        told[id(cache)] = documents[-1]

    def answer(model: Any, story: AskedStory, examples: list[AskedStory], cache: Any) -> str:
        assert story not in examples and len(examples) == 2
        memory = None if cache.seen is None else told[id(cache)]
        asked.append((story, memory))
        return "?" if memory is None else memory.answer

    monkeypatch.setattr(babi_module, "story_tokens", tell)
    monkeypatch.setattr(model, "read_tokens", remember)
    monkeypatch.setattr(babi_module, "_ask", answer)
    result = babi(model, STORIES, TEXT, 200, limit=6)
    assert len(documents) == 12 and len(asked) == 36
    for story in documents:
        memories = [memory for one, memory in asked if one is story]
        assert len(memories) == 3 and None in memories and story in memories
        (other,) = [memory for memory in memories if memory is not None and memory is not story]
        assert other.task == story.task
    for scores in [*result["tasks"].values(), result["overall"]]:
        assert scores["own"] == 1 and scores["emptied"] == 0 and scores["other"] < 1
        assert scores["differences"]["own-emptied"] == {"mean": 1.0, "interval": [1.0, 1.0]}
    assert result["overall"]["questions"] == 12 and list(result["tasks"]) == ["qa1", "qa2"]


def test_a_run_is_repeatable_and_reads_what_it_says(make_model: MakeModel) -> None:
    model = make_model()
    runs = [babi(model, STORIES, TEXT, 200, limit=3, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0]["tasks"]["qa1"]["questions"] == 3 and all("other" in r for r in runs[0]["tasks"]["qa2"]["answers"])


@pytest.mark.parametrize("settings", [{"limit": 1}, {"shots": -1}, {"tokens": 3}, {"shots": 50}])
def test_impossible_settings_are_refused(make_model: MakeModel, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        babi(make_model(), STORIES, TEXT, **{"tokens": 200, **settings})


def test_without_noise_or_stories_there_is_nothing_to_do(make_model: MakeModel) -> None:
    with pytest.raises(EmptySource):
        babi(make_model(), STORIES, " \n")
    with pytest.raises(EmptySource):
        babi(make_model(), [], TEXT)
