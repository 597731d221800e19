"""Documents with questions, in three layouts of JSON Lines (one object a line):

- `title, paragraphs[], qas[{question, answers[], paragraph | paragraphs[]}]`
- `title, document, qas[{question, answers[], answer_start[]}]`
- `title, passage, question, answers[]`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import EmptyQuestion, UnsupportedSource
from ..text.words import checked_question
from .documents import SEPARATOR, Document
from .json_lines import Row, need, read_rows, title_of

GOLD_CHARACTERS = 1500  # a longer paragraph is cut to this much text around the answer


@dataclass(frozen=True)
class Question:
    """A question about a document.

    answers: accepted answers.
    spans: where the text with the answer stands: (start, end) in characters of the document.
    paragraphs: indexes of the paragraphs that the question is about.
    """

    text: str
    answers: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    paragraphs: tuple[int, ...] = ()


def read_questions(path: Path) -> list[Document[Question]]:
    """Documents with their questions; documents without questions are left out.

    Raises the SourceError that names the cause; UnsupportedSource for another layout.
    """
    documents = []
    for number, (place, row) in enumerate(read_rows(path), start=1):
        if "passage" in row:
            qas = [{**row, "paragraph": 0}]
            paragraphs = [need(place, row, "passage", str)]
        else:
            qas = need(place, row, "qas", list, dict) if row.get("qas") != [] else []
            if "document" in row:
                paragraphs = need(place, row, "document", str).split(SEPARATOR)
            else:
                paragraphs = need(place, row, "paragraphs", list, str)
        text, starts = SEPARATOR.join(paragraphs), starts_of(paragraphs)
        questions = tuple(_question(place, qa, text, paragraphs, starts) for qa in qas)
        documents.append(Document(title_of(row, number), text, questions, tuple(paragraphs)))
    documents = [document for document in documents if document.questions]
    if not documents:
        raise UnsupportedSource(
            f"'{path}' has no questions; give documents whose field 'qas' has questions with their answers"
        )
    return documents


def starts_of(paragraphs: Sequence[str]) -> list[int]:
    """The characters of the text at which the paragraphs start, and at which a further paragraph would start."""
    starts = [0]
    for paragraph in paragraphs:
        starts.append(starts[-1] + len(paragraph) + len(SEPARATOR))
    return starts


def _question(place: str, qa: Row, text: str, paragraphs: Sequence[str], starts: Sequence[int]) -> Question:
    try:
        asked = checked_question(need(place, qa, "question", str))
    except EmptyQuestion as error:
        raise UnsupportedSource(f"{place} has a question without words: {qa['question']!r}; leave it out") from error
    answers = need(place, qa, "answers", list, str)
    if "answer_start" in qa:
        at = need(place, qa, "answer_start", list, int)[0]
        about = [i for i, paragraph in enumerate(paragraphs) if starts[i] <= at < starts[i] + len(paragraph)]
        spans = [_around(text, at)]
    else:
        about = need(place, qa, "paragraphs", list, int) if "paragraphs" in qa else [need(place, qa, "paragraph", int)]
        spans = [(starts[i], starts[i] + len(paragraphs[i])) for i in about if 0 <= i < len(paragraphs)]
    if not about or any(not 0 <= index < len(paragraphs) for index in about):
        raise UnsupportedSource(f"{place} has a question about a paragraph that is not there: '{asked}'")
    if not any(paragraphs[index].strip() for index in about):
        raise UnsupportedSource(
            f"{place} has a question about a blank paragraph: '{asked}'; name the paragraph that answers it"
        )
    return Question(asked, tuple(answers), tuple(spans), tuple(about))


def _around(text: str, place: int) -> tuple[int, int]:
    """The span of the paragraph at a character; in a very long paragraph, of the text around the character."""
    start, end = text.rfind(SEPARATOR, 0, place) + 1, text.find(SEPARATOR, place)
    end = len(text) if end < 0 else end
    if end - start > GOLD_CHARACTERS:
        start, end = max(start, place - GOLD_CHARACTERS // 2), min(end, place + GOLD_CHARACTERS // 2)
    return start, end
