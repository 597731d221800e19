"""Data files of the training: JSON Lines, gzipped or not, checked and brought into one form.

Layouts (one object a line):
- books: `text`
- questions, any of: `title, paragraphs[], qas[{question, answers[], paragraph | paragraphs[]}]`;
  `title, passage, question, answers[]`; `title, document, qas[{question, answers[], answer_start[]}]`
- summaries, either of: `document, questions[{question, summaries[]}]`, whose first question is about the whole;
  `document, general[{question, summary}], specific[{question, summary}]`
- babi: `task, sentences[], qas[{question, answer, after}]`
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import TrainingDataError
from ..passages import Passage, cut, holding
from ..recall import LexicalRanker
from .samples import Bench

SEPARATOR = "\n\n"
# English prose has four to five characters a token; a first guess that is nearly always enough.
CHARACTERS_PER_TOKEN = 6


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a .jsonl or .jsonl.gz file, each with the words that name its place in an error."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                place = f"line {number} of '{path}'"
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise TrainingDataError(f"{place} is no JSON object; the file must have one on every line")
                    yield place, row
    except FileNotFoundError as error:
        raise TrainingDataError(f"no data file is at '{path}'; paths are relative to the configuration") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TrainingDataError(f"'{path}' cannot be read ({error}); restore a copy") from error
    except ValueError as error:
        raise TrainingDataError(f"'{path}' is not JSON Lines ({error}); give one JSON object a line") from error


def need(place: str, row: dict[str, Any], name: str, kind: type, of: type | None = None) -> Any:
    """A field of a row, of the right type and not empty."""
    value = row.get(name)
    listed = value if isinstance(value, list) else []
    if not isinstance(value, kind) or value in ("", []) or (of and any(type(item) is not of for item in listed)):
        inside = f" of {of.__name__}" if of else ""
        raise TrainingDataError(f"{place} needs a field '{name}' ({kind.__name__}{inside}) that is not empty")
    return value


class Books:
    """Whole books as a source of consecutive prose."""

    def __init__(self, path: Path) -> None:
        self.texts: list[str] = [need(place, row, "text", str) for place, row in read_rows(path)]
        if not self.texts:
            raise TrainingDataError(f"'{path}' has no rows; it needs books with a field 'text'")
        self._weights = [len(text) for text in self.texts]

    def tokens(self, bench: Bench, rng: random.Random, count: int) -> list[int]:
        """`count` consecutive tokens from the start of a random paragraph; where a book ends, another goes on."""
        book = rng.choices(self.texts, self._weights)[0]
        at = book.find(SEPARATOR, rng.randrange(len(book)))
        text = book[0 if at == -1 else at + len(SEPARATOR) :].lstrip()
        found: list[int] = []
        while True:
            size = (count - len(found)) * CHARACTERS_PER_TOKEN
            while True:
                more = bench.encode(text[:size])
                if len(found) + len(more) >= count:
                    return [*found, *more][:count]
                if size >= len(text):
                    break
                size *= 2
            found += more
            text = SEPARATOR + rng.choices(self.texts, self._weights)[0]


@dataclass(frozen=True)
class Question:
    """A question, accepted answers, and the indexes of the paragraphs that it is about."""

    text: str
    answers: list[str]
    paragraphs: list[int]


@dataclass
class Document:
    """Paragraphs and questions about them."""

    title: str
    paragraphs: list[str]
    questions: list[Question]
    _ranked: tuple[list[Passage], LexicalRanker] | None = field(default=None, repr=False)

    def passages(self) -> tuple[list[Passage], LexicalRanker]:
        """Passages as reading the document cuts them, and their ranking as `retrieve` makes it."""
        if self._ranked is None:
            passages = cut(SEPARATOR.join(self.paragraphs), self.title)
            self._ranked = (passages, LexicalRanker(passages))
        return self._ranked

    def right(self, question: Question) -> list[int]:
        """Indexes of the passages that hold the answer; where none does literally, of those the question is about."""
        starts = [0]
        for paragraph in self.paragraphs:
            starts.append(starts[-1] + len(paragraph) + len(SEPARATOR))
        spans = [(starts[i], starts[i] + len(self.paragraphs[i])) for i in question.paragraphs]
        return holding(self.passages()[0], spans, question.answers)


def read_questions(path: Path) -> list[Document]:
    """Documents with questions, in any of the layouts. Raises TrainingDataError."""
    documents = []
    for place, row in read_rows(path):
        title = str(row.get("title") or path.name.partition(".")[0])
        if "passage" in row:
            qas = [{**row, "paragraph": 0}]
            paragraphs = [need(place, row, "passage", str)]
        elif "document" in row:
            paragraphs = need(place, row, "document", str).split(SEPARATOR)
            qas = need(place, row, "qas", list, dict)
        else:
            paragraphs = need(place, row, "paragraphs", list, str)
            qas = need(place, row, "qas", list, dict)
        questions = [_question(place, qa, paragraphs) for qa in qas]
        documents.append(Document(title, paragraphs, questions))
    if not documents:
        raise TrainingDataError(f"'{path}' has no rows; it needs documents with questions")
    return documents


def _question(place: str, qa: dict[str, Any], paragraphs: list[str]) -> Question:
    text, answers = need(place, qa, "question", str), need(place, qa, "answers", list, str)
    if "answer_start" in qa:
        starts = need(place, qa, "answer_start", list, int)
        about, end = [], -len(SEPARATOR)
        for index, paragraph in enumerate(paragraphs):
            start, end = end + len(SEPARATOR), end + len(SEPARATOR) + len(paragraph)
            about += [index] * any(start <= at < end for at in starts[:1])
    elif "paragraph" in qa:
        about = [need(place, qa, "paragraph", int)]
    else:
        about = need(place, qa, "paragraphs", list, int)
    if not about or any(not 0 <= index < len(paragraphs) for index in about):
        raise TrainingDataError(f"{place} has a question about a paragraph that is not there: '{text}'")
    if not any(paragraphs[index].strip() for index in about):
        raise TrainingDataError(
            f"{place} has a question about a blank paragraph: '{text}'; name the one that answers it"
        )
    return Question(text.strip(), [answer.strip() for answer in answers], about)


@dataclass(frozen=True)
class Summaries:
    """A document and the summaries of it: (what they are about, None for the whole; texts, any of which will do)."""

    document: Document
    requests: list[tuple[str | None, list[str]]]


def read_summaries(path: Path) -> list[Summaries]:
    """Documents with summaries, in either layout. Raises TrainingDataError."""
    found = []
    for place, row in read_rows(path):
        title = str(row.get("title") or path.name.partition(".")[0])
        document = Document(title, need(place, row, "document", str).split(SEPARATOR), [])
        requests: list[tuple[str | None, list[str]]] = []
        if "questions" in row:
            for number, asked in enumerate(need(place, row, "questions", list, dict)):
                focus = need(place, asked, "question", str) if number else None
                requests.append((focus, need(place, asked, "summaries", list, str)))
        else:
            requests += [
                (None, [need(place, told, "summary", str)]) for told in need(place, row, "general", list, dict)
            ]
            for asked in need(place, row, "specific", list, dict) if row.get("specific") else []:
                requests.append((need(place, asked, "question", str), [need(place, asked, "summary", str)]))
        if not document.passages()[0] or any(not text.strip() for _, texts in requests for text in texts):
            raise TrainingDataError(f"{place} has a blank document or summary; leave it out")
        found.append(Summaries(document, requests))
    if not found:
        raise TrainingDataError(f"'{path}' has no rows; it needs documents with summaries")
    return found


@dataclass(frozen=True)
class Story:
    """Sentences told in order; questions as (text, answer, how many sentences were told before)."""

    sentences: list[str]
    questions: list[tuple[str, str, int]]


def read_stories(path: Path, tasks: tuple[str, ...]) -> list[Story]:
    """bAbI stories of these tasks, of all if none is named. Raises TrainingDataError."""
    stories, seen = [], set()
    for place, row in read_rows(path):
        seen.add(task := need(place, row, "task", str))
        sentences = need(place, row, "sentences", list, str)
        questions = []
        for qa in need(place, row, "qas", list, dict):
            after = need(place, qa, "after", int)
            if not 0 < after <= len(sentences):
                raise TrainingDataError(f"{place} has a question after {after} of {len(sentences)} sentences")
            questions.append((need(place, qa, "question", str), need(place, qa, "answer", str), after))
        if not tasks or task in tasks:
            stories.append(Story(sentences, questions))
    if not stories or not set(tasks) <= seen:
        raise TrainingDataError(f"'{path}' has the tasks {', '.join(sorted(seen)) or '(none)'}, not all that are asked")
    return stories
