"""Documents as training uses them: cut into passages as in ingestion, and ranked without a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from ..datasets.documents import SEPARATOR, Document
from ..datasets.questions import Question, read_questions, starts_of
from ..datasets.summaries import Request, read_summaries
from ..errors import InvalidSetting, SourceError, TrainingDataError
from ..search.ranking import LexicalRanker
from ..text.passages import Passage, cut, holding


class Passages:
    """A text's passages and their ranking."""

    def __init__(self, title: str, paragraphs: Sequence[str]) -> None:
        self.title = title
        self.paragraphs = list(paragraphs)

    @cached_property
    def passages(self) -> list[Passage]:
        """The passages, cut as in ingestion."""
        return cut(SEPARATOR.join(self.paragraphs), self.title)

    @cached_property
    def ranker(self) -> LexicalRanker:
        """Ranks the passages without a model."""
        return LexicalRanker(self.passages)


class QuestionDocument(Passages):
    """A document with questions."""

    def __init__(self, title: str, paragraphs: Sequence[str], questions: Sequence[Question]) -> None:
        super().__init__(title, paragraphs)
        self.questions = list(questions)

    @classmethod
    def of(cls, document: Document[Question]) -> QuestionDocument:
        """Make one from a document of a data file."""
        questions = [
            Question(one.text, tuple(answer.strip() for answer in one.answers), one.spans, one.paragraphs)
            for one in document.questions
        ]
        return cls(document.title, document.paragraphs, questions)

    def right(self, question: Question) -> list[int]:
        """Indexes of the passages that hold the answer.

        Where no passage holds it literally: indexes of the passages that the question is about.
        """
        starts = starts_of(self.paragraphs)
        spans = [(starts[i], starts[i] + len(self.paragraphs[i])) for i in question.paragraphs]
        return holding(self.passages, spans, question.answers)


class SummaryDocument(Passages):
    """A document with summaries that people wrote."""

    def __init__(self, document: Document[Request]) -> None:
        super().__init__(document.title, document.paragraphs)
        self.requests = document.questions


def question_documents(path: Path) -> list[QuestionDocument]:
    """The documents of a data file with questions. Raises TrainingDataError."""
    with training_data():
        return [QuestionDocument.of(document) for document in read_questions(path)]


def summary_documents(path: Path) -> list[SummaryDocument]:
    """The documents of a data file with summaries. Raises TrainingDataError."""
    with training_data():
        return [SummaryDocument(document) for document in read_summaries(path)]


@contextlib.contextmanager
def training_data() -> Iterator[None]:
    """Raise errors about data files as TrainingDataError."""
    try:
        yield
    except (SourceError, InvalidSetting) as error:
        raise TrainingDataError(f"{error} (paths are relative to the configuration)") from error
