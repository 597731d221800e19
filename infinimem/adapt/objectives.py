"""What is trained: each objective makes samples from a data source, and a mixture draws from the objectives by weight.

A sample is a pure function of the configuration's seed, the step, and its index in the step.
"""

from __future__ import annotations

import random
import re

from ..answering.prompts import memory_messages, summary_messages
from ..datasets.facts import invent
from ..datasets.stories import Story, read_stories
from ..errors import TrainingDataError
from ..search.central import central_passages
from .books import Books
from .config import (
    AdaptConfig,
    BabiConfig,
    LmConfig,
    NeedlesConfig,
    ObjectiveConfig,
    QaConfig,
    RepeatConfig,
    SummaryConfig,
)
from .documents import SummaryDocument, question_documents, summary_documents, training_data
from .questions import Questions, fitting
from .samples import ATTEMPTS, Bench, Generator, Sample, Segment

CUE_WORDS = 8
REPEAT_REQUESTS = (
    'How does the document go on after these words: "{cue}"?',
    'Continue this passage of the document word for word: "{cue}"',
    'Repeat what the document says after "{cue}".',
)


def lm(bench: Bench, books: Books) -> Generator:
    """Language modelling over consecutive segments. The first segment has no past, and no loss."""

    def make(rng: random.Random, segments: int) -> Sample:
        parts = bench.cut(books.tokens(bench, rng, segments * bench.length))[:segments]
        return Sample(
            "lm",
            [
                Segment(part, [number > 0 and place > 0 for place in range(len(part))])
                for number, part in enumerate(parts)
            ],
        )

    return make


def repeat(bench: Bench, books: Books, words: int, raw: float) -> Generator:
    """Continue a passage of one of the segments, whose first words are given."""

    def make(rng: random.Random, segments: int) -> Sample:
        for _ in range(ATTEMPTS):
            parts = bench.cut(books.tokens(bench, rng, segments * bench.length))[:segments]
            text = bench.decode(rng.choice(parts))
            starts = [0, *(match.end() for match in re.finditer(r"[.!?]\s+(?=\w)", text))]
            tails = [tail for start in starts if len(tail := text[start:].split()) >= CUE_WORDS + min(words, CUE_WORDS)]
            if tails:
                tail = rng.choice(tails)
                cue, rest = " ".join(tail[:CUE_WORDS]), " ".join(tail[CUE_WORDS : CUE_WORDS + words])
                if rng.random() < raw:
                    return bench.complete("repeat", parts, cue, rest)
                request = rng.choice(REPEAT_REQUESTS).format(cue=cue)
                return bench.ask("repeat", parts, memory_messages(request), rest)
        raise TrainingDataError("the books have no passages long enough to be repeated; use longer segments")

    return make


def needles(bench: Bench, books: Books, most: int, raw: float) -> Generator:
    """Facts hidden in prose, one of them asked for; loss on the answer alone."""

    def make(rng: random.Random, segments: int) -> Sample:
        facts = invent(rng, rng.randint(1, most))
        parts = bench.cut(books.tokens(bench, rng, segments * bench.length))[:segments]
        rng.shuffle(facts)
        asked = rng.choice(facts)
        document = bench.hide(parts, [bench.encode(f" {fact.statement}") for fact in facts], rng)
        if document is None:
            raise TrainingDataError("the segments are too short for the needles; use longer ones, or fewer needles")
        if rng.random() < raw:
            return bench.complete("needles", document, f"\n{asked.question} {asked.cue}", asked.answer)
        return bench.ask("needles", document, memory_messages(asked.question), asked.answer)

    return make


def babi(bench: Bench, books: Books, stories: list[Story]) -> Generator:
    """A story's sentences, in order, scattered over prose; then one of its questions."""

    def make(rng: random.Random, segments: int) -> Sample:
        parts = bench.cut(books.tokens(bench, rng, segments * bench.length))[:segments]
        for _ in range(ATTEMPTS):
            story = rng.choice(stories)
            question, answer, after = rng.choice(story.questions)
            document = bench.hide(parts, [bench.encode(f" {told}") for told in story.sentences[:after]], rng)
            if document is not None:
                return bench.ask("babi", document, memory_messages(question), answer)
        raise TrainingDataError("the segments are too short for the stories; use longer ones")

    return make


def summary(bench: Bench, files: list[list[SummaryDocument]], most: int) -> Generator:
    """A summary from the passages that `summarize` shows; nothing is read into the memory."""

    def make(rng: random.Random, segments: int) -> Sample:
        chosen = rng.choice(rng.choice(files))
        request = rng.choice(chosen.requests)
        focus = request.focus
        passages, ranker = chosen.passages, chosen.ranker
        count = rng.randint(1, most)
        shown = central_passages(passages, count)
        if focus is not None and (ranked := ranker.rank(focus, count)):
            shown = [passages[index] for index in sorted(index for index, _ in ranked)]
        text = rng.choice(request.summaries)
        shown = fitting(bench.model, shown, lambda some: summary_messages(some, focus), [text], set())
        return bench.ask("summary", [], summary_messages(shown, focus), text)

    return make


class Mixture:
    """Draws samples of all objectives by their weights. Raises TrainingDataError where a data file cannot be used."""

    def __init__(self, config: AdaptConfig, bench: Bench) -> None:
        self.config = config
        self._weights = [objective.weight for objective in config.objectives]
        books: dict[str, Books] = {}
        for objective in config.objectives:
            name = getattr(objective, "books", None)
            if name is not None and name not in books:
                with training_data():
                    books[name] = Books(config.path(name))
        self._generators = [_generator(objective, config, bench, books) for objective in config.objectives]

    def sample(self, step: int, index: int) -> Sample:
        """Sample `index` of a step (from 0)."""
        rng = random.Random(f"{self.config.seed}/{step}/{index}")
        generator = rng.choices(self._generators, self._weights)[0]
        return generator(rng, self.config.stages[self.config.stage(step)].segments)


def _generator(objective: ObjectiveConfig, config: AdaptConfig, bench: Bench, books: dict[str, Books]) -> Generator:
    if isinstance(objective, LmConfig):
        return lm(bench, books[objective.books])
    if isinstance(objective, RepeatConfig):
        return repeat(bench, books[objective.books], objective.words, objective.raw)
    if isinstance(objective, NeedlesConfig):
        return needles(bench, books[objective.books], objective.most, objective.raw)
    if isinstance(objective, BabiConfig):
        with training_data():
            stories = read_stories(config.path(objective.data), objective.tasks or None)
        return babi(bench, books[objective.books], stories)
    if isinstance(objective, SummaryConfig):
        return summary(bench, [summary_documents(config.path(name)) for name in objective.data], objective.passages)
    if isinstance(objective, QaConfig):
        return Questions(bench, [question_documents(config.path(name)) for name in objective.data], objective)
    raise TypeError(f"no generator for {type(objective).__name__}")
