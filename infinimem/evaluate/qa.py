"""Questions about documents, answered in six modes, with and without the document's memory.

- none: without any document
- memory: from the compressive memory alone
- other: as in memory, but from the memory of another document; shows what any memory does to the answers
- recall: from the best passages, as `DocumentMemory.ask` does it
- absent: as in recall, but from another document; the right answer is that the document does not say
- gold: as in recall, but from passages of the paragraph with the answer alone; shows what a perfect search would reach

The modes none, memory and other use the same prompt.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..answering.answer import is_answer
from ..answering.decoding import SHORT, Decoding
from ..answering.plan import asked_after, plan_from_passages
from ..answering.prompts import Message, encode_chat, instructions_for, memory_messages
from ..answering.stream import answer_texts, continue_texts
from ..datasets.documents import Document
from ..datasets.questions import Question
from ..document_memory import DocumentMemory
from ..errors import InvalidSetting, check_names
from ..ingest.ingestion import Ingestion, pieces
from ..ingest.record import SourceRecord
from ..model.infini_model import InfiniModel
from ..search.search import Search
from .intervals import bootstrap, mean, wilson
from .sampling import choose_questions

MODES = ("none", "memory", "other", "recall", "absent", "gold")
# Modes that ask another document, and the mode in which that document is asked.
ELSEWHERE = {"other": "memory", "absent": "recall"}
# The modes as `answer_from` of `DocumentMemory.ask`. The modes keep their names: scripts read them in the result.
ANSWER_FROM = {"memory": "memory", "recall": "passages"}
BATCH = 8  # questions decoded together


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
    """F1 and exact match, as SQuAD scores them, of the answers to questions in each mode.

    Every document is read once, unless no mode needs its memory. Answers are decoded greedily.

    modes: names of MODES, which the top of this module explains.
    limit: questions in all, spread evenly over the documents; None for all.
    k: most passages for an answer, in the modes recall, absent and gold.
    on_question: called with the numbers of questions answered and in all, each counted once per mode.

    Returns per mode `f1`, `em` and `not_found`, the share of answers that say that the document does not say, and the
    differences in F1, question by question, of memory to none and to other. Intervals are 95 %: bootstrap over
    questions for F1 (`interval`) and its differences, Wilson's for exact match (`em_interval`) and `not_found`. Raises
    InvalidSetting.
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
            f"there are {len(chosen)} documents with questions; the modes {' and '.join(ELSEWHERE)} need two, all "
            "remaining modes one"
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
    """Document index, mode, and answers to all questions of the document. At most two memories are kept at a time."""

    def from_memory(memory: DocumentMemory, document: Document[Question], mode: str) -> list[str]:
        return [
            answer.text
            for batch in _batches(document.questions)
            for answer in memory.ask_many(
                [q.text for q in batch], answer_from=ANSWER_FROM[mode], k=k, max_new_tokens=max_new_tokens
            )
        ]

    def from_gold(memory: DocumentMemory, document: Document[Question]) -> list[str]:
        search, decoding = Search([memory]), Decoding(max_new_tokens)
        return [
            text for batch in _batches(document.questions) for text in _ask_within(memory, search, batch, k, decoding)
        ]

    previous: DocumentMemory | None = None
    for index, document in enumerate(documents):
        memory: DocumentMemory | None = None
        if set(modes) - {"none"}:
            memory = _memory_of(model, document, modes)
        for mode in modes:
            if mode == "none":
                instructions = instructions_for(model).memory[SHORT]
                prompts = [memory_messages(q.text, instructions=instructions) for q in document.questions]
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
            # No document comes before the first, so its questions are asked of the last document.
            yield 0, mode, from_memory(previous, documents[0], ELSEWHERE[mode])


def _memory_of(model: InfiniModel, document: Document[Question], modes: Sequence[str]) -> DocumentMemory:
    """The memory of a document. It is read now only where a mode asks it, or a term head weighs its words."""
    if model.term_head is not None or {"memory", "other"} & set(modes):
        return DocumentMemory.from_text(document.text, name=document.title, model=model)
    ingestion = Ingestion.empty(model, keep_passages=True)
    ingestion.begin_source(SourceRecord(document.title, "string", pages=1))
    for piece in pieces(document.text):
        ingestion.take(piece)
    return DocumentMemory(ingestion.record, ingestion=ingestion)


def _ask_within(
    memory: DocumentMemory, search: Search[DocumentMemory], questions: Sequence[Question], k: int, decoding: Decoding
) -> list[str]:
    """Like `ask_many`, but for each question only the spans that hold its answer are searched and shown: gives the
    answers that a better search would bring."""
    plans = [
        plan_from_passages(
            memory.model, search, search.within(one.text, one.spans, k), asked_after((), one.text), decoding
        )
        for one in questions
    ]
    return answer_texts(memory.model, plans, memory.complete_memory, decoding)


def _from_prompts(model: InfiniModel, prompts: Sequence[list[Message]], max_new_tokens: int) -> list[str]:
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
    """1 if the words of the answer are those of an accepted answer, otherwise 0."""
    return float(any(normalized(said) == normalized(answer) for answer in answers))


def f1(said: str, answers: Sequence[str]) -> float:
    """The best overlap of words (harmonic mean of precision and recall) with an accepted answer."""
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
