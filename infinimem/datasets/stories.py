"""bAbI stories in JSON Lines (one object a line): `task, sentences[], qas[{question, answer, after}]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import InvalidSetting, UnsupportedSource
from .json_lines import need, read_rows


class StoryQuestion(NamedTuple):
    """A question, its answer, and the number of sentences that were told before it."""

    text: str
    answer: str
    after: int


@dataclass(frozen=True)
class Story:
    """Sentences in order, and questions about them."""

    task: str
    sentences: tuple[str, ...]
    questions: tuple[StoryQuestion, ...]


def read_stories(path: Path, tasks: Sequence[str] | None = None) -> list[Story]:
    """Stories of these tasks; None for all tasks.

    Raises the SourceError that names the cause; UnsupportedSource for another layout; InvalidSetting for a task that is
    not in the file.
    """
    stories = []
    for place, row in read_rows(path):
        sentences = tuple(need(place, row, "sentences", list, str))
        questions = []
        for qa in need(place, row, "qas", list, dict):
            asked = StoryQuestion(*(need(place, qa, name, kind) for name, kind in _FIELDS))
            if not asked.answer.strip():
                raise UnsupportedSource(f"{place} has a question with a blank answer; leave it out")
            if not 0 < asked.after <= len(sentences):
                raise UnsupportedSource(f"{place} has a question after {asked.after} of {len(sentences)} sentences")
            questions.append(asked)
        stories.append(Story(need(place, row, "task", str), sentences, tuple(questions)))
    there = sorted({story.task for story in stories})
    if tasks is None:
        return stories
    missing = [task for task in tasks if task not in there]
    if missing or not tasks:
        raise InvalidSetting(
            f"there is no task {', '.join(missing) or '(none)'} in '{path}'; it has the tasks {', '.join(there)}"
        )
    return [story for story in stories if story.task in tasks]


_FIELDS = (("question", str), ("answer", str), ("after", int))
