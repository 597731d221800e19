"""bAbI stories hidden among the sentences of a book, as in BABILong: a model has to find facts and combine them.

The whole document goes through the memory. The question stands in the local window, after worked examples of its task,
so that a model that was never trained on the task knows the form of an answer. The people in the examples have names
that no story uses, so an example cannot answer a question about a person or a place.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..datasets.stories import Story
from ..errors import EmptySource, InvalidSetting
from .continuations import continuations
from .intervals import bootstrap, mean, wilson

if TYPE_CHECKING:
    from ..attention.cache import InfiniCache
    from ..model.infini_model import InfiniModel

PATHS = "qa19"  # the task about paths: an answer is a list of steps, whose order counts
MEMORIES = ("own", "emptied", "other")
ANSWER_TOKENS = 12
# The worked examples of a task are the shortest of this many stories.
CANDIDATES = 50
PEOPLE = ("Mary", "John", "Daniel", "Sandra", "Fred", "Jeff", "Bill", "Julie")
OTHER_PEOPLE = ("Anna", "Peter", "Victor", "Laura", "Simon", "Hugo", "Oscar", "Clara")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|\n{2,}")


@dataclass(frozen=True)
class AskedStory:
    """Facts in order, and one question that they answer."""

    task: str
    facts: tuple[str, ...]
    question: str
    answer: str

    @classmethod
    def of(cls, story: Story) -> AskedStory:
        """The last question of a story, with the sentences told before that question."""
        asked = story.questions[-1]
        return cls(story.task, story.sentences[: asked.after], asked.text, asked.answer)


def babi(
    model: InfiniModel,
    stories: Sequence[AskedStory],
    noise: str,
    tokens: int = 4096,
    *,
    limit: int | None = 20,
    shots: int = 2,
    seed: int = 0,
    on_story: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The share of questions answered right, per task, from each of three memories.

    The memories are `own`, the memory of the story's document; `emptied`, no memory; and `other`, the memory of
    another document of the same task. Answers are decoded greedily; `is_right` compares them.

    stories: stories of any tasks, at least two per task beside the worked examples.
    noise: a text, such as a book. The facts of a story stand in order between sentences of the noise, which begins at
        another place for each story.
    tokens: length of every document.
    limit: stories per task, drawn with `seed`, at least 2; None for all.
    shots: worked examples before a question.
    on_story: called after each story with the numbers of stories done and in all.

    Shares have Wilson's 95 % intervals; the differences own - emptied and own - other have bootstrap intervals over
    questions. Raises InvalidSetting, and EmptySource where the noise has no sentences or there are no stories.
    """
    if shots < 0 or (limit is not None and limit < 2):
        raise InvalidSetting(
            f"shots ({shots}) must be at least 0, and limit ({limit}) at least 2: the control needs a second story"
        )
    sentences = [" ".join(piece.split()) for piece in SENTENCE_END.split(noise) if piece.strip()]
    if not sentences:
        raise EmptySource("the noise has no sentences; give another text")
    by_task: dict[str, list[AskedStory]] = {}
    for story in stories:
        by_task.setdefault(story.task, []).append(story)
    generator = random.Random(seed)
    chosen = {task: _choose(task, found, limit, shots, generator) for task, found in sorted(by_task.items())}
    if not chosen:
        raise EmptySource("there are no stories to ask about; give at least two of a task")
    total, done = sum(len(asked) for asked, _ in chosen.values()), 0
    tasks: dict[str, Any] = {}
    everything: list[dict[str, Any]] = []
    for task, (asked, examples) in chosen.items():
        rows: list[dict[str, Any]] = []
        first: tuple[AskedStory, InfiniCache] | None = None
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
    task: str, stories: list[AskedStory], limit: int | None, shots: int, generator: random.Random
) -> tuple[list[AskedStory], list[AskedStory]]:
    """The stories to ask about, and the worked examples, which are other stories."""
    different = list(dict.fromkeys(stories))
    generator.shuffle(different)
    pool = sorted(different[:CANDIDATES], key=lambda story: len(" ".join(story.facts)))
    examples = pool[:shots]
    asked = [story for story in different if story not in examples][:limit]
    if len(examples) < shots or len(asked) < 2:
        raise InvalidSetting(f"task {task} has {len(different)} different stories, but {shots} shots need {shots + 2}")
    return asked, examples


def story_tokens(
    model: InfiniModel, story: AskedStory, sentences: Sequence[str], tokens: int, generator: random.Random
) -> list[int]:
    """The `tokens` tokens of a document: the facts in order, at random places between consecutive sentences.

    Raises InvalidSetting where the facts do not fit.
    """
    facts = [model.encoder.encode(f" {fact}") for fact in story.facts]
    room = tokens - sum(map(len, facts))
    if room < 0:
        raise InvalidSetting(f"the facts of a story alone have {tokens - room} tokens; raise tokens, which is {tokens}")
    pieces: list[list[int]] = []
    place = generator.randrange(len(sentences))
    while room > 0:
        pieces.append(model.encoder.encode(f" {sentences[place % len(sentences)]}")[:room])
        room -= len(pieces[-1])
        place += 1
    # No fact stands after the last sentence, which may be cut off in the middle.
    places = sorted(generator.randrange(max(1, len(pieces))) for _ in facts)
    for before, fact in reversed(list(zip(places, facts, strict=True))):
        pieces.insert(before, fact)
    return [token for piece in pieces for token in piece]


def question_text(story: AskedStory, examples: Sequence[AskedStory]) -> str:
    """The prompt in the local window: the worked examples, then the question."""
    text = ""
    for example in examples:
        shown = f"{' '.join(example.facts)}\nQuestion: {example.question}\nAnswer: {example.answer}"
        for name, other in zip(PEOPLE, OTHER_PEOPLE, strict=True):
            shown = re.sub(rf"\b{name}\b", other, shown)
        text += f"\nExample: {shown}\n"
    return f"{text}\nNow the text that you have read.\nQuestion: {story.question}\nAnswer:"


def _ask(model: InfiniModel, story: AskedStory, examples: Sequence[AskedStory], cache: InfiniCache) -> str:
    prompt = model.encoder.encode(question_text(story, examples))
    return continuations(model, [prompt], cache, ANSWER_TOKENS)[0].strip()


def is_right(said: str, answer: str, task: str = "") -> bool:
    """Whether what the model said begins with the words of the answer; articles and case do not count.

    An answer with commas is a list: the model must say the same items, each as often. Their order counts in the task
    about paths alone.
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
