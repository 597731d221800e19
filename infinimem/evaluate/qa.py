"""Questions about documents, answered with and without what the memory holds.

- none: no document at all
- memory: the compressive memory alone
- other: the memory of another document, the same way; what any memory does to the answers
- recall: `DocumentMemory.ask`, from the best passages
- absent: the same of another document, so that the right answer is that it does not say
- gold: the same from the passages of the paragraph that holds the answer alone; what a perfect retriever would reach

none, memory and other ask with one and the same prompt.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..answer import is_answer
from ..asking import checked_question
from ..errors import EmptyQuestion, InvalidSetting, UnsupportedSource
from .data import Document, check_names, choose_questions, read_json_lines
from .intervals import bootstrap, mean, wilson

if TYPE_CHECKING:
    from ..document_memory import DocumentMemory
    from ..model import InfiniModel

MODES = ("none", "memory", "other", "recall", "absent", "gold")
# Modes that ask another document.
ELSEWHERE = {"other": "memory", "absent": "recall"}
BATCH = 8  # questions decoded together
SEPARATOR = "\n\n"  # between paragraphs
GOLD_CHARACTERS = 1500  # of a longer paragraph, so much around the answer


@dataclass(frozen=True)
class Question:
    """A question, its accepted answers, and where the text that holds them stands: characters of the document."""

    text: str
    answers: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


def load_documents(path: Path) -> list[Document[Question]]:
    """Rows of three layouts; documents without questions are left out.

    {title, paragraphs, qas: [{question, answers, paragraph or paragraphs}]}, {title, document, qas: [{question,
    answers, answer_start}]}, or {title, passage, question, answers}. Raises the SourceError that names the cause,
    UnsupportedSource for another layout.
    """
    documents = []
    for number, row in enumerate(read_json_lines(path), start=1):
        try:
            documents.append(_document(row, number))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UnsupportedSource(
                f"row {number} of {path} is no document with questions ({type(error).__name__}: {error}); give objects "
                f"with paragraphs and qas, document and qas, or passage, question and answers"
            ) from error
    documents = [document for document in documents if document.questions]
    if not documents:
        raise UnsupportedSource(f"{path} has no questions; give documents with qas of question and answers")
    return documents


def _document(row: dict[str, Any], number: int) -> Document[Question]:
    # Passages are cited by the title, so it is never blank.
    title = next((name for key in ("title", "id") if (name := str(row.get(key) or "").strip())), str(number))
    if "passage" in row:
        passage = str(row["passage"])
        return Document(title, passage, (_question(row, passage, [(0, len(passage))]),))
    if "paragraphs" in row:
        paragraphs = [str(paragraph) for paragraph in row["paragraphs"]]
        text, starts = SEPARATOR.join(paragraphs), [0]
        for paragraph in paragraphs:
            starts.append(starts[-1] + len(paragraph) + len(SEPARATOR))
        found = []
        for qa in row["qas"]:
            places = qa["paragraphs"] if "paragraphs" in qa else [qa["paragraph"]]
            about = [range(len(paragraphs))[int(place)] for place in places]
            found.append(_question(qa, text, [(starts[i], starts[i] + len(paragraphs[i])) for i in about]))
        return Document(title, text, tuple(found))
    text = str(row["document"])
    return Document(
        title, text, tuple(_question(qa, text, [_around(text, int(qa["answer_start"][0]))]) for qa in row["qas"])
    )


def _question(row: dict[str, Any], text: str, spans: list[tuple[int, int]]) -> Question:
    answers = row["answers"]
    if not isinstance(answers, list) or not answers or not any(text[start:end].strip() for start, end in spans):
        raise ValueError("a question needs a list of answers, and text that holds them")
    try:
        asked = checked_question(str(row["question"]))
    except EmptyQuestion as error:
        raise ValueError(f"a question has no words in it: {row['question']!r}") from error
    return Question(asked, tuple(map(str, answers)), tuple(spans))


def _around(text: str, place: int) -> tuple[int, int]:
    """The span of the paragraph at this character; of a very long one, of the text around it."""
    start, end = text.rfind(SEPARATOR, 0, place) + 1, text.find(SEPARATOR, place)
    end = len(text) if end < 0 else end
    if end - start > GOLD_CHARACTERS:
        start, end = max(start, place - GOLD_CHARACTERS // 2), min(end, place + GOLD_CHARACTERS // 2)
    return start, end


def qa(
    model: InfiniModel,
    documents: Sequence[Document[Question]],
    *,
    modes: Sequence[str] = MODES,
    limit: int | None = None,
    k: int = 4,
    max_new_tokens: int = 32,
    seed: int = 0,
    on_question: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """F1 and exact match, as SQuAD scores them, of the answers to questions in each mode (see above).

    Every document is read once. limit: questions in all, spread evenly over the documents. k: passages for recall.
    Answers are decoded greedily; `not_found` is the share of those that say that the document does not. Intervals are
    95 %: bootstrap over questions for F1 (`interval`) and for its differences of memory to none and to other, question
    by question; Wilson's for exact match (`em_interval`) and `not_found`. Raises InvalidSetting.
    """
    check_names("mode", modes, MODES)
    chosen = choose_questions(documents, limit, seed)
    elsewhere = [mode for mode in ELSEWHERE if mode in modes]
    needed = 2 if elsewhere else 1
    if len(chosen) < needed <= len(documents):
        raise InvalidSetting(
            f"--limit {limit} leaves {len(chosen)} of {len(documents)} documents, and mode {elsewhere[0]} needs two; "
            "raise the limit, or leave that mode out"
        )
    if len(chosen) < needed:
        raise InvalidSetting(
            f"there are {len(chosen)} documents with questions; {' and '.join(ELSEWHERE)} need two, other modes one"
        )
    asked = [mode for mode in MODES if mode in modes]
    total, done = len(asked) * sum(len(document.questions) for document in chosen), 0
    said: dict[str, dict[int, list[str]]] = {mode: {} for mode in asked}
    for index, mode, answers in _answers(model, chosen, asked, k, max_new_tokens):
        said[mode][index] = answers
        done += len(answers)
        if on_question is not None:
            on_question(done, total)
    by_mode = {mode: list(_rows(chosen, said[mode])) for mode in asked}
    return {
        "questions": total // len(asked),
        "documents": len(chosen),
        **model.describe(),
        "max_new_tokens": max_new_tokens,
        "modes": {mode: _scores(found, seed) for mode, found in by_mode.items()},
        "differences": _differences(by_mode, seed),
        "answers": by_mode,
    }


def _rows(documents: Sequence[Document[Question]], said: dict[int, list[str]]) -> Iterator[dict[str, Any]]:
    """A row per question, in the order of the documents."""
    for index, document in enumerate(documents):
        for question, answer in zip(document.questions, said[index], strict=True):
            yield {
                "document": document.title,
                "question": question.text,
                "answers": list(question.answers),
                "answer": answer,
                "f1": f1(answer, question.answers),
                "em": exact_match(answer, question.answers),
                "found": is_answer(answer),
            }


def _answers(
    model: InfiniModel, documents: Sequence[Document[Question]], modes: Sequence[str], k: int, max_new_tokens: int
) -> Iterator[tuple[int, str, list[str]]]:
    """Document index, mode, and answers to all its questions. No more than two memories are kept at a time."""
    from ..document_memory import DocumentMemory
    from ..prompts import memory_messages

    def from_memory(memory: DocumentMemory, document: Document[Question], mode: str) -> list[str]:
        return [
            answer.text
            for batch in _batches(document.questions)
            for answer in memory.ask_many([q.text for q in batch], mode=mode, k=k, max_new_tokens=max_new_tokens)
        ]

    def from_gold(memory: DocumentMemory, document: Document[Question]) -> list[str]:
        return [
            answer.text
            for batch in _batches(document.questions)
            for answer in memory.ask_within([(q.text, q.spans) for q in batch], k=k, max_new_tokens=max_new_tokens)
        ]

    previous: DocumentMemory | None = None
    for index, document in enumerate(documents):
        memory: DocumentMemory | None = None
        if set(modes) - {"none"}:
            memory = DocumentMemory.from_text(document.text, name=document.title, model=model)
        for mode in modes:
            if mode == "none":
                prompts = [memory_messages(q.text) for q in document.questions]
                yield index, mode, _from_prompts(model, prompts, max_new_tokens)
            elif mode == "gold" and memory is not None:
                yield index, mode, from_gold(memory, document)
            elif mode not in ELSEWHERE and memory is not None:
                yield index, mode, from_memory(memory, document, mode)
            elif previous is not None:
                yield index, mode, from_memory(previous, document, ELSEWHERE[mode])
        previous = memory
    for mode in ELSEWHERE:
        if mode in modes and previous is not None:
            # The first document has none before it; it asks the last one's memory.
            yield 0, mode, from_memory(previous, documents[0], ELSEWHERE[mode])


def _from_prompts(model: InfiniModel, prompts: Sequence[Any], max_new_tokens: int) -> list[str]:
    from ..generation import Decoding, continue_texts
    from ..prompts import encode_chat

    texts: list[str] = []
    for batch in _batches(prompts):
        encoded = [encode_chat(model, messages) for messages in batch]
        texts += continue_texts(model, encoded, None, Decoding(max_new_tokens))
    return [text.strip() for text in texts]


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def normalized(text: str) -> list[str]:
    """Words as SQuAD compares them: lower case, no punctuation, no articles."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def exact_match(said: str, answers: Sequence[str]) -> float:
    """1 if the answer is one of those accepted, word by word."""
    return float(any(normalized(said) == normalized(answer) for answer in answers))


def f1(said: str, answers: Sequence[str]) -> float:
    """The best word overlap (harmonic mean of precision and recall) with an accepted answer."""
    return max(_overlap(normalized(said), normalized(answer)) for answer in answers)


def _overlap(said: list[str], expected: list[str]) -> float:
    if not said or not expected:
        return float(said == expected)
    shared = sum((Counter(said) & Counter(expected)).values())
    return 2 * shared / (len(said) + len(expected))


def _scores(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    overlaps, exact = [row["f1"] for row in rows], [row["em"] for row in rows]
    silent = [float(not row["found"]) for row in rows]
    return {
        "f1": mean(overlaps),
        "em": mean(exact),
        "interval": bootstrap(overlaps, seed),
        "em_interval": wilson(int(sum(exact)), len(exact)),
        "not_found": mean(silent),
        "not_found_interval": wilson(int(sum(silent)), len(silent)),
    }


def _differences(by_mode: dict[str, list[dict[str, Any]]], seed: int) -> dict[str, Any]:
    differences = {}
    for control in ("none", "other"):
        if {"memory", control} <= set(by_mode):
            pairs = zip(by_mode["memory"], by_mode[control], strict=True)
            gains = [own["f1"] - other["f1"] for own, other in pairs]
            differences[f"memory-{control}"] = {"f1": mean(gains), "interval": bootstrap(gains, seed)}
    return differences
