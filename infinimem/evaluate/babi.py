"""bAbI stories told among the sentences of a book, as BABILong does: facts that have to be found, and put together.

The document goes through the memory as a whole; the question stands in the local window, after worked examples of its
task, so that a model that was never trained on it knows what an answer looks like. The people of the examples have
names that no story has, so an example cannot answer a question about who or where.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EmptySource, InvalidSetting, UnsupportedSource
from .continuations import continuations
from .data import read_json_lines
from .intervals import bootstrap, mean, wilson

if TYPE_CHECKING:
    from ..attention import InfiniCache
    from ..model import InfiniModel

PATHS = "qa19"  # the task whose answers are steps one after the other
MEMORIES = ("own", "emptied", "other")
ANSWER_TOKENS = 12
# Examples are the shortest of so many stories.
CANDIDATES = 50
PEOPLE = ("Mary", "John", "Daniel", "Sandra", "Fred", "Jeff", "Bill", "Julie")
OTHER_PEOPLE = ("Anna", "Peter", "Victor", "Laura", "Simon", "Hugo", "Oscar", "Clara")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|\n{2,}")


@dataclass(frozen=True)
class Story:
    """Facts in order, and one question that they answer."""

    task: str
    facts: tuple[str, ...]
    question: str
    answer: str


def load_stories(path: Path, tasks: Sequence[str] | None = None) -> list[Story]:
    """Each row's last question with the facts told before it: {task, sentences, qas: [{question, answer, after}]}.

    tasks: keep these alone. Raises the SourceError that names the cause, UnsupportedSource for another layout,
    InvalidSetting for a task that is not there.
    """
    stories = []
    for number, row in enumerate(read_json_lines(path), start=1):
        try:
            told = row["qas"][-1]
            facts = tuple(str(sentence) for sentence in row["sentences"][: int(told["after"])])
            story = Story(str(row["task"]), facts, str(told["question"]), str(told["answer"]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UnsupportedSource(
                f"row {number} of {path} is no bAbI story ({type(error).__name__}: {error}); give objects with task, "
                f"sentences and qas of question, answer, after"
            ) from error
        if not story.facts or not story.answer.strip():
            raise UnsupportedSource(f"row {number} of {path} has no facts or no answer")
        stories.append(story)
    there = sorted({story.task for story in stories})
    if tasks is None:
        return stories
    missing = [task for task in tasks if task not in there]
    if missing or not tasks:
        raise InvalidSetting(f"there is no task {', '.join(missing) or '(none)'} in {path}; it has {', '.join(there)}")
    return [story for story in stories if story.task in tasks]


def babi(
    model: InfiniModel,
    stories: Sequence[Story],
    noise: str,
    tokens: int = 4096,
    *,
    limit: int | None = 20,
    shots: int = 2,
    seed: int = 0,
    on_story: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Share of questions answered right, by task, from three memories of one reading each.

    Every document has `tokens` tokens: the story's facts in their order, between sentences of `noise`, which begins
    at another place for each story. limit: stories per task, drawn with `seed`; at least 2. shots: worked examples
    before a question. own: the memory of the document. emptied: no memory. other: the memory of another document of
    the same task. Answers are decoded greedily and right when their first words are the expected ones.

    Shares have Wilson's 95 % intervals, differences own - emptied and own - other bootstrap intervals over questions.
    Raises InvalidSetting, EmptySource for noise without sentences.
    """
    if shots < 0 or (limit is not None and limit < 2):
        raise InvalidSetting(f"shots ({shots}) must be at least 0, and limit ({limit}) at least 2 for a control")
    sentences = [" ".join(piece.split()) for piece in SENTENCE_END.split(noise) if piece.strip()]
    if not sentences:
        raise EmptySource("the noise has no sentences in it")
    by_task: dict[str, list[Story]] = {}
    for story in stories:
        by_task.setdefault(story.task, []).append(story)
    generator = random.Random(seed)
    chosen = {task: _choose(task, found, limit, shots, generator) for task, found in sorted(by_task.items())}
    if not chosen:
        raise EmptySource("there are no stories to tell")
    total, done = sum(len(asked) for asked, _ in chosen.values()), 0
    tasks: dict[str, Any] = {}
    everything: list[dict[str, Any]] = []
    for task, (asked, examples) in chosen.items():
        rows: list[dict[str, Any]] = []
        first: tuple[Story, InfiniCache] | None = None
        previous: InfiniCache | None = None
        for story in asked:
            cache = model.new_cache()
            model.read_tokens(story_tokens(model, story, sentences, tokens, generator), cache)
            row = {"task": task, "question": story.question, "answer": story.answer}
            rows.append(row | {"own": _ask(model, story, examples, cache)})
            rows[-1]["emptied"] = _ask(model, story, examples, model.new_cache())
            if previous is not None:
                rows[-1]["other"] = _ask(model, story, examples, previous)
            first, previous = first or (story, cache), cache
            done += 1
            if on_story is not None:
                on_story(done, total)
        if first is not None and previous is not None:
            rows[0]["other"] = _ask(model, first[0], examples, previous)
        tasks[task] = {**_scores(rows, seed), "answers": rows}
        everything += rows
    return {
        "tokens": tokens,
        **model.describe(),
        "shots": shots,
        "tasks": tasks,
        "overall": _scores(everything, seed),
    }


def _choose(
    task: str, stories: list[Story], limit: int | None, shots: int, generator: random.Random
) -> tuple[list[Story], list[Story]]:
    """The stories to ask about, and examples that are none of them."""
    different = list(dict.fromkeys(stories))
    generator.shuffle(different)
    pool = sorted(different[:CANDIDATES], key=lambda story: len(" ".join(story.facts)))
    examples = pool[:shots]
    asked = [story for story in different if story not in examples][:limit]
    if len(examples) < shots or len(asked) < 2:
        raise InvalidSetting(f"task {task} has {len(different)} different stories; {shots} examples need {shots + 2}")
    return asked, examples


def story_tokens(
    model: InfiniModel, story: Story, sentences: Sequence[str], tokens: int, generator: random.Random
) -> list[int]:
    """The document: the facts in order at random places between consecutive sentences, `tokens` tokens in all."""
    facts = [model.encoder.encode(f" {fact}") for fact in story.facts]
    room = tokens - sum(map(len, facts))
    if room < 0:
        raise InvalidSetting(f"a story has {tokens - room} tokens alone; give the document more than {tokens}")
    pieces: list[list[int]] = []
    place = generator.randrange(len(sentences))
    while room > 0:
        pieces.append(model.encoder.encode(f" {sentences[place % len(sentences)]}")[:room])
        room -= len(pieces[-1])
        place += 1
    # The last piece may be cut off in its middle; nothing is told after it.
    places = sorted(generator.randrange(max(1, len(pieces))) for _ in facts)
    for before, fact in reversed(list(zip(places, facts, strict=True))):
        pieces.insert(before, fact)
    return [token for piece in pieces for token in piece]


def question_text(story: Story, examples: Sequence[Story]) -> str:
    """What stands in the window: examples, then the question."""
    text = ""
    for example in examples:
        shown = f"{' '.join(example.facts)}\nQuestion: {example.question}\nAnswer: {example.answer}"
        for name, other in zip(PEOPLE, OTHER_PEOPLE, strict=True):
            shown = re.sub(rf"\b{name}\b", other, shown)
        text += f"\nExample: {shown}\n"
    return f"{text}\nNow the text that you have read.\nQuestion: {story.question}\nAnswer:"


def _ask(model: InfiniModel, story: Story, examples: Sequence[Story], cache: InfiniCache) -> str:
    prompt = model.encoder.encode(question_text(story, examples))
    return continuations(model, [prompt], cache, ANSWER_TOKENS)[0].strip()


def is_right(said: str, answer: str, task: str = "") -> bool:
    """Whether the first words said are the answer, articles and case aside.

    Lists with commas need the same items as often, in any order, but in their own where the task is about paths.
    """
    line = said.strip().split("\n")[0].casefold()
    if "," in answer:
        items = [_words(part) for part in re.split(r",|\band\b", re.split(r"[.!?]", line)[0])]
        found, wanted = [item for item in items if item], [_words(part) for part in answer.casefold().split(",")]
        return found == wanted if task == PATHS else sorted(found) == sorted(wanted)
    expected = _words(answer.casefold())
    return _words(line)[: len(expected)] == expected


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word not in ("the", "a", "an")]


def _scores(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    right = {memory: [float(is_right(row[memory], row["answer"], row["task"])) for row in rows] for memory in MEMORIES}
    differences = {}
    for control in MEMORIES[1:]:
        gains = [own - other for own, other in zip(right["own"], right[control], strict=True)]
        differences[f"own-{control}"] = {"mean": mean(gains), "interval": bootstrap(gains, seed)}
    return {
        "questions": len(rows),
        **{memory: mean(values) for memory, values in right.items()},
        "interval": {memory: wilson(int(sum(values)), len(values)) for memory, values in right.items()},
        "differences": differences,
    }
