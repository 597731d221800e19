"""Training samples of questions: from the memory alone, or from passages in the prompt."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ..answering.prompts import NOT_SAID, Message, encode_chat, memory_messages, passage_messages
from ..datasets.documents import SEPARATOR
from ..datasets.questions import Question
from ..text.sentences import around, sentences
from .config import QaConfig
from .documents import QuestionDocument
from .samples import ATTEMPTS, Bench, Sample

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel
    from ..text.passages import Passage


class Questions:
    """Questions about documents, from the memory alone (qa.memory) or from passages in the prompt (qa.reading)."""

    def __init__(self, bench: Bench, files: list[list[QuestionDocument]], config: QaConfig) -> None:
        self.bench = bench
        self.files = files
        self.config = config

    def __call__(self, rng: random.Random, segments: int) -> Sample:
        """Draw a sample: first a file, then one of its questions, each as likely as any other.

        At most `segments` segments are read into the memory. A question about more text is drawn again, up to ATTEMPTS
        times; after that, only a part of the text that it is about is read.
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
                    # Another sentence of a passage with the answer: it looks like the right one, but holds no answer.
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
                    and (shown is passages or tells(shown[0].text, other.answers))
                ),
            )
            return self.bench.ask("qa.reading", read, passage_messages(question.text, shown), answer, more)
        more = self._more(rng, document, question, self._whole_in(document, read))
        return self.bench.ask("qa.memory", read, memory_messages(question.text), answer, more)

    def _more(
        self, rng: random.Random, document: QuestionDocument, asked: Question, answerable: Callable[[Question], bool]
    ) -> list[tuple[str, str]]:
        """Further questions of the document, each with an answer, in a random order.

        answerable: whether the sample shows enough to answer a question.
        """
        if self.config.turns == 1:
            return []
        others = [other for other in document.questions if other.text != asked.text and answerable(other)]
        chosen = rng.sample(others, min(len(others), self.config.turns - 1))
        return [(other.text, rng.choice(other.answers)) for other in chosen]

    def _whole_in(self, document: QuestionDocument, read: list[list[int]]) -> Callable[[Question], bool]:
        """A function that tells whether all paragraphs that a question is about were read."""
        text = self.bench.decode([token for part in read for token in part]) if self.config.turns > 1 else ""
        return lambda other: all(document.paragraphs[i] in text for i in other.paragraphs)

    @staticmethod
    def _shown(document: QuestionDocument, question: Question, shown: Sequence[Passage]) -> bool:
        """Whether a passage that holds the question's answer is among those shown."""
        passages = document.passages
        return any(passages[index] in shown for index in document.right(question))

    @staticmethod
    def _right(document: QuestionDocument, question: Question, passages: Sequence[Passage]) -> list[Passage]:
        """The passages, of those given, that hold the question's answer."""
        right = [document.passages[index] for index in document.right(question)]
        return [passage for passage in passages if passage in right]

    def _narrowed(
        self, rng: random.Random, passages: Sequence[Passage], answers: Sequence[str], telling: bool = True
    ) -> list[Passage]:
        """A random sentence of the passages, alone or with its neighbours, as a list of one passage.

        telling: choose a sentence that holds an answer; if False, choose one that holds none. A sentence without an
            answer stands alone if its neighbours hold one.
        Returns an empty list where no sentence holds an answer literally, and, if `telling` is False, where all do.
        """
        cut = [(passage, sentences(passage.text)) for passage in passages]
        places = [
            (passage, borders, number, tells(passage.text[slice(*border)], answers))
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
        alone = rng.random() < self.config.alone or (not telling and tells(wide.text, answers))
        return [passage.part(*borders[number]) if alone else wide]

    def _draw(self, rng: random.Random, file: list[QuestionDocument]) -> tuple[QuestionDocument, Question, str]:
        document = rng.choices(file, [len(document.questions) for document in file])[0]
        question = rng.choice(document.questions)
        return document, question, rng.choice(question.answers)

    def _cut(self, paragraphs: list[str]) -> list[list[int]]:
        return self.bench.cut(self.bench.encode(SEPARATOR.join(paragraphs)))

    def _fits(self, document: QuestionDocument, question: Question, segments: int) -> bool:
        """Whether the paragraphs from the first to the last that a question is about fit into `segments` segments."""
        first, last = min(question.paragraphs), max(question.paragraphs)
        return len(self._cut(document.paragraphs[first : last + 1])) <= segments

    def _read(
        self,
        rng: random.Random,
        file: list[QuestionDocument],
        document: QuestionDocument,
        question: Question,
        answer: str,
        segments: int,
    ) -> list[list[int]]:
        """At most `segments` segments of consecutive paragraphs around those that the question is about.

        A document of one paragraph is read among other such documents of its file.
        """
        # Segments end where sentences end, so they are a little shorter than the limit.
        budget = segments * self.bench.length * 15 // 16
        paragraphs, first, last = document.paragraphs, min(question.paragraphs), max(question.paragraphs)
        if len(paragraphs) == 1:
            texts, place = list(paragraphs), 0
            while sum(len(self.bench.encode(text)) for text in texts) < budget and len(texts) < len(file):
                at = rng.randint(0, len(texts))
                texts.insert(at, rng.choice(file).paragraphs[0])
                place += at <= place
            if len(texts) > 1:
                # One text too many was added, so one at an end is left out, but not the question's own.
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
        """At most `segments` segments of paragraphs.

        about: indexes of the paragraphs that a question is about.
        Other paragraphs are left out first, from the ends. If the rest is still too long, the segments around the
        answer are kept; without a literal answer, those around the start of the first paragraph in `about`.
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
        # At least one segment follows the one in which the answer begins, because the answer may go over its end.
        start = max(0, min(at - (segments - 1) // 2, len(parts) - segments))
        return parts[start : start + segments]

    def _passages(
        self, rng: random.Random, file: list[QuestionDocument], document: QuestionDocument, question: Question
    ) -> list[Passage]:
        """The passages that `retrieve` would show, best first; a passage that holds the answer is among them.

        Where few passages match the question, others are added: of the document at random, or, where it has only one
        passage, of other documents.
        """
        passages, ranker = document.passages, document.ranker
        count = rng.randint(1, self.config.passages)
        right = document.right(question)
        chosen = [index for index, _ in ranker.rank(question.text, count)]
        if not set(right) & set(chosen):
            chosen = [*chosen[: count - 1], rng.choice(right)]
        rest = [index for index in range(len(passages)) if index not in chosen]
        chosen += rng.sample(rest, min(len(rest), count - len(chosen)))
        shown = [passages[index] for index in chosen]
        if len(passages) == 1:
            others = [rng.choice(file).passages for _ in range(count - 1)]
            shown += [rng.choice(other) for other in others if other is not passages]
            rng.shuffle(shown)
        kept = {passages[index] for index in right}
        return fitting(
            self.bench.model, shown, lambda some: passage_messages(question.text, some), question.answers, kept
        )

    def _without(
        self,
        rng: random.Random,
        file: list[QuestionDocument],
        document: QuestionDocument,
        question: Question,
        elsewhere: bool,
    ) -> list[Passage]:
        """The passages that `retrieve` would show if the document did not hold the answer.

        elsewhere: show passages of another document, as is done where every passage of this one holds the answer.
        Returns an empty list where no passage without the answer can be found.
        """
        passages, ranker = document.passages, document.ranker
        kept = set(document.right(question))
        if elsewhere or len(kept) == len(passages):
            others = [other for other in file if other is not document]
            if others:
                other = rng.choice(others)
                passages, ranker, kept = other.passages, other.ranker, set()
        answers = [answer.lower() for answer in question.answers]
        order = [index for index, _ in ranker.rank(question.text, len(passages))]
        order += rng.sample(rest := [i for i in range(len(passages)) if i not in set(order)], len(rest))
        silent = [i for i in order if i not in kept and not any(a in passages[i].text.lower() for a in answers)]
        shown = [passages[index] for index in silent[: rng.randint(1, self.config.passages)]]
        return fitting(self.bench.model, shown, lambda some: passage_messages(question.text, some), [NOT_SAID], set())


def tells(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds an answer literally, in whole words."""
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) for answer in answers)


def fitting(
    model: InfiniModel,
    passages: list[Passage],
    messages: Callable[[Sequence[Passage]], list[Message]],
    answers: Sequence[str],
    right: set[Passage],
) -> list[Passage]:
    """As many of the passages, from the front, as fit into a prompt with any of the answers.

    right: the passages that are left out last.
    """
    room = model.context_length - max(len(model.encoder.encode(answer)) for answer in answers) - 2
    shown = list(passages)
    while len(shown) > 1 and len(encode_chat(model, messages(shown))) > room:
        wrong = [passage for passage in shown if passage not in right]
        shown.remove(wrong[-1] if wrong else shown[-1])
    return shown
