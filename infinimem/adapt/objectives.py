"""What is trained: each objective makes samples from a data source, a mixture draws from them by weight.

A sample is a pure function of the configuration's seed, the step, and its index in the step.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ..errors import TrainingDataError
from ..prompts import NOT_SAID, Message, encode_chat, memory_messages, recall_messages, summary_messages
from ..readers.prose import around, sentences
from ..recall import central_passages
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
from .data import (
    SEPARATOR,
    Books,
    Document,
    Question,
    Story,
    Summaries,
    read_questions,
    read_stories,
    read_summaries,
)
from .facts import invent
from .samples import ATTEMPTS, Bench, Generator, Sample, Segment

if TYPE_CHECKING:
    from ..model import InfiniModel
    from ..passages import Passage

CUE_WORDS = 8
REPEAT_REQUESTS = (
    'How does the document go on after these words: "{cue}"?',
    'Continue this passage of the document word for word: "{cue}"',
    'Repeat what the document says after "{cue}".',
)


def lm(bench: Bench, books: Books) -> Generator:
    """Language modelling over consecutive segments. The first one has no past and no loss."""

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
    """Continue a passage of one of the segments, given its first words."""

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


class Questions:
    """Questions about documents, from the memory alone (qa.memory) or from passages in the prompt (qa.reading)."""

    def __init__(self, bench: Bench, files: list[list[Document]], config: QaConfig) -> None:
        self.bench = bench
        self.files = files
        self.config = config

    def __call__(self, rng: random.Random, segments: int) -> Sample:
        """A sample; every file is as likely as any other, and so is every question of it.

        What is read into the memory has `segments` segments at most: questions about more are drawn again, ATTEMPTS
        times, and then only a part of what they are about is read.
        """
        file = rng.choice(self.files)
        document, question, answer = self._draw(rng, file)
        reading = rng.random() < self.config.reading
        read: list[list[int]] = []
        if not reading or rng.random() < self.config.beside:
            for _ in range(ATTEMPTS):
                if self._fits(document, question, segments):
                    break
                document, question, answer = self._draw(rng, file)
            read = self._read(rng, file, document, question, answer, segments)
        if reading:
            passages = self._passages(rng, file, document, question)
            narrow = self.config.window > 0 and rng.random() < self.config.window
            shown: list[Passage] = []
            if self.config.absent and rng.random() < self.config.absent:
                elsewhere = rng.random() < self.config.elsewhere
                if narrow and not elsewhere:
                    # Of sentences that stand together, where one says it, the others do not.
                    right = self._right(document, question, passages)
                    shown = self._narrowed(rng, right, question.answers, telling=False)
                without = [] if shown else self._without(rng, file, document, question, elsewhere)
                if narrow and without:
                    shown = self._narrowed(rng, without, [""])
                passages, answer = (without or passages, NOT_SAID) if shown or without else (passages, answer)
            elif narrow:
                shown = self._narrowed(rng, self._right(document, question, passages), question.answers)
            shown = shown or passages
            more = self._more(
                rng,
                document,
                question,
                lambda other: (
                    self._shown(document, other, passages)
                    and (shown is passages or _tells(shown[0].text, other.answers))
                ),
            )
            return self.bench.ask("qa.reading", read, recall_messages(question.text, shown), answer, more)
        more = self._more(rng, document, question, self._whole_in(document, read))
        return self.bench.ask("qa.memory", read, memory_messages(question.text), answer, more)

    def _more(
        self, rng: random.Random, document: Document, asked: Question, answerable: Callable[[Question], bool]
    ) -> list[tuple[str, str]]:
        """Further questions of the document, each with an answer, in a random order."""
        if self.config.turns == 1:
            return []
        others = [other for other in document.questions if other.text != asked.text and answerable(other)]
        chosen = rng.sample(others, min(len(others), self.config.turns - 1))
        return [(other.text, rng.choice(other.answers)) for other in chosen]

    def _whole_in(self, document: Document, read: list[list[int]]) -> Callable[[Question], bool]:
        """Whether all that a question is about was read."""
        text = self.bench.decode([token for part in read for token in part]) if self.config.turns > 1 else ""
        return lambda other: all(document.paragraphs[i] in text for i in other.paragraphs)

    @staticmethod
    def _shown(document: Document, question: Question, shown: Sequence[Passage]) -> bool:
        """Whether a passage that holds the question's answer is among those shown."""
        passages = document.passages()[0]
        return any(passages[index] in shown for index in document.right(question))

    @staticmethod
    def _right(document: Document, question: Question, passages: Sequence[Passage]) -> list[Passage]:
        """Those of the passages that hold the question's answer."""
        right = [document.passages()[0][index] for index in document.right(question)]
        return [passage for passage in passages if passage in right]

    def _narrowed(
        self, rng: random.Random, passages: Sequence[Passage], answers: Sequence[str], telling: bool = True
    ) -> list[Passage]:
        """A sentence that holds an answer, or one of the others, alone or with its neighbours that do as it does; none
        where no sentence holds one literally."""
        cut = [(passage, sentences(passage.text)) for passage in passages]
        places = [
            (passage, borders, number, _tells(passage.text[slice(*border)], answers))
            for passage, borders in cut
            for number, border in enumerate(borders)
        ]
        if not any(tells for *_, tells in places):
            return []
        places = [place for place in places if place[3] is telling]
        if not places:
            return []
        passage, borders, number, _ = rng.choice(places)
        wide = passage.part(*around(borders, number))
        alone = rng.random() < self.config.alone or (not telling and _tells(wide.text, answers))
        return [passage.part(*borders[number]) if alone else wide]

    def _draw(self, rng: random.Random, file: list[Document]) -> tuple[Document, Question, str]:
        document = rng.choices(file, [len(document.questions) for document in file])[0]
        question = rng.choice(document.questions)
        return document, question, rng.choice(question.answers)

    def _cut(self, paragraphs: list[str]) -> list[list[int]]:
        return self.bench.cut(self.bench.encode(SEPARATOR.join(paragraphs)))

    def _fits(self, document: Document, question: Question, segments: int) -> bool:
        """Whether all paragraphs from the first to the last that a question is about can be read."""
        first, last = min(question.paragraphs), max(question.paragraphs)
        return len(self._cut(document.paragraphs[first : last + 1])) <= segments

    def _read(
        self,
        rng: random.Random,
        file: list[Document],
        document: Document,
        question: Question,
        answer: str,
        segments: int,
    ) -> list[list[int]]:
        """At most `segments` segments of consecutive paragraphs around those that the question is about.

        Documents of one paragraph are read among others of their file.
        """
        # Segments that end where sentences do are a little shorter than they may be.
        budget = segments * self.bench.length * 15 // 16
        paragraphs, first, last = document.paragraphs, min(question.paragraphs), max(question.paragraphs)
        if len(paragraphs) == 1:
            texts, place = list(paragraphs), 0
            while sum(len(self.bench.encode(text)) for text in texts) < budget and len(texts) < len(file):
                at = rng.randint(0, len(texts))
                texts.insert(at, rng.choice(file).paragraphs[0])
                place += at <= place
            if len(texts) > 1:
                # The last one went over the budget.
                if place < len(texts) - 1:
                    texts.pop()
                else:
                    texts.pop(0)
                    place -= 1
            return self._bounded(texts, [place], answer, segments)
        sizes = [len(self.bench.encode(paragraph)) + 1 for paragraph in paragraphs]
        used = sum(sizes[first : last + 1])
        while True:
            free = [(first - 1, True)] * (first > 0) + [(last + 1, False)] * (last + 1 < len(paragraphs))
            free = [(index, before) for index, before in free if used + sizes[index] <= budget]
            if not free:
                break
            index, before = rng.choice(free)
            used += sizes[index]
            first, last = (index, last) if before else (first, index)
        about = [index - first for index in question.paragraphs]
        return self._bounded(paragraphs[first : last + 1], about, answer, segments)

    def _bounded(self, texts: list[str], about: list[int], answer: str, segments: int) -> list[list[int]]:
        """Segments of paragraphs, `segments` at most.

        about: indexes of those that a question is about. Others are left out first; where these are too long by
        themselves, the segments around the answer, or around the start of the first of them, are kept.
        """
        while len(parts := self._cut(texts)) > segments:
            if max(about) + 1 < len(texts):
                texts = texts[:-1]
            elif min(about) > 0:
                texts, about = texts[1:], [index - 1 for index in about]
            else:
                break
        if len(parts) <= segments:
            return parts
        holding = next((index for index in sorted(about) if answer in texts[index]), min(about))
        before = "".join(text + SEPARATOR for text in texts[:holding])
        before += texts[holding][: max(0, texts[holding].find(answer))]
        place = len(self.bench.encode(before.rstrip()))
        ends = list(accumulate(map(len, parts)))
        at = next((index for index, end in enumerate(ends) if place < end), len(parts) - 1)
        # One segment at least follows, as the answer may go over the end of the one that it begins in.
        start = max(0, min(at - (segments - 1) // 2, len(parts) - segments))
        return parts[start : start + segments]

    def _passages(
        self, rng: random.Random, file: list[Document], document: Document, question: Question
    ) -> list[Passage]:
        """What `retrieve` would show, best first, with a passage that holds the answer and, if few fit, others."""
        passages, ranker = document.passages()
        count = rng.randint(1, self.config.passages)
        right = document.right(question)
        chosen = [index for index, _ in ranker.rank(question.text, count)]
        if not set(right) & set(chosen):
            chosen = [*chosen[: count - 1], rng.choice(right)]
        rest = [index for index in range(len(passages)) if index not in chosen]
        chosen += rng.sample(rest, min(len(rest), count - len(chosen)))
        shown = [passages[index] for index in chosen]
        if len(passages) == 1:
            others = [rng.choice(file).passages()[0] for _ in range(count - 1)]
            shown += [rng.choice(other) for other in others if other is not passages]
            rng.shuffle(shown)
        kept = {passages[index] for index in right}
        return fitting(
            self.bench.model, shown, lambda some: recall_messages(question.text, some), question.answers, kept
        )

    def _without(
        self, rng: random.Random, file: list[Document], document: Document, question: Question, elsewhere: bool
    ) -> list[Passage]:
        """What `retrieve` would show of this document had it no answer, or of another one; none where all have it."""
        passages, ranker = document.passages()
        kept = set(document.right(question))
        if elsewhere or len(kept) == len(passages):
            others = [other for other in file if other is not document]
            if others:
                (passages, ranker), kept = rng.choice(others).passages(), set()
        answers = [answer.lower() for answer in question.answers]
        order = [index for index, _ in ranker.rank(question.text, len(passages))]
        order += rng.sample(rest := [i for i in range(len(passages)) if i not in set(order)], len(rest))
        silent = [i for i in order if i not in kept and not any(a in passages[i].text.lower() for a in answers)]
        shown = [passages[index] for index in silent[: rng.randint(1, self.config.passages)]]
        return fitting(self.bench.model, shown, lambda some: recall_messages(question.text, some), [NOT_SAID], set())


def _tells(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds an answer literally, in whole words."""
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) for answer in answers)


def fitting(
    model: InfiniModel,
    passages: list[Passage],
    messages: Callable[[Sequence[Passage]], list[Message]],
    answers: Sequence[str],
    right: set[Passage],
) -> list[Passage]:
    """As many of the passages, from the front, as fit into a prompt beside any answer; the `right` ones go last."""
    room = model.context_length - max(len(model.encoder.encode(answer)) for answer in answers) - 2
    shown = list(passages)
    while len(shown) > 1 and len(encode_chat(model, messages(shown))) > room:
        wrong = [passage for passage in shown if passage not in right]
        shown.remove(wrong[-1] if wrong else shown[-1])
    return shown


def summary(bench: Bench, files: list[list[Summaries]], most: int) -> Generator:
    """A summary out of the passages that `summarize` shows; nothing is read into the memory."""

    def make(rng: random.Random, segments: int) -> Sample:
        chosen = rng.choice(rng.choice(files))
        focus, texts = rng.choice(chosen.requests)
        passages, ranker = chosen.document.passages()
        count = rng.randint(1, most)
        shown = central_passages(passages, count)
        if focus is not None and (ranked := ranker.rank(focus, count)):
            shown = [passages[index] for index in sorted(index for index, _ in ranked)]
        text = rng.choice(texts)
        shown = fitting(bench.model, shown, lambda some: summary_messages(some, focus), [text], set())
        return bench.ask("summary", [], summary_messages(shown, focus), text)

    return make


class Mixture:
    """Samples of all objectives by their weights. Raises TrainingDataError where a data file cannot be used."""

    def __init__(self, config: AdaptConfig, bench: Bench) -> None:
        self.config = config
        self._weights = [objective.weight for objective in config.objectives]
        books: dict[str, Books] = {}
        for objective in config.objectives:
            name = getattr(objective, "books", None)
            if name is not None and name not in books:
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
        return babi(bench, books[objective.books], read_stories(config.path(objective.data), objective.tasks))
    if isinstance(objective, SummaryConfig):
        return summary(bench, [read_summaries(config.path(name)) for name in objective.data], objective.passages)
    if isinstance(objective, QaConfig):
        return Questions(bench, [read_questions(config.path(name)) for name in objective.data], objective)
    raise TypeError(f"no generator for {type(objective).__name__}")
