"""Questions about documents: what is asked of which memory, and how answers are scored."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, MakeModel

from infinimem import DocumentMemory
from infinimem.answering.decoding import SHORT, Decoding
from infinimem.answering.plan import asked_after, plan_from_passages
from infinimem.answering.prompts import NOT_SAID, encode_chat, instructions_for, memory_messages, passage_messages
from infinimem.answering.stream import continue_texts, stream_answer
from infinimem.datasets.documents import Document
from infinimem.datasets.questions import Question, read_questions
from infinimem.errors import InvalidSetting, SourceNotFound, UnsupportedSource
from infinimem.evaluate import qa as qa_module
from infinimem.evaluate.intervals import wilson
from infinimem.evaluate.qa import ANSWER_FROM, ELSEWHERE, exact_match, f1, qa
from infinimem.evaluate.sampling import choose_questions
from infinimem.search.search import Search

SQUAD = {
    "title": "Ships",
    "paragraphs": ["The Heron sails on Monday.", "Odile Marchetti is the captain of the Heron."],
    "qas": [
        {"question": "Who is the captain?", "answers": ["Odile Marchetti", "Marchetti"], "paragraph": 1},
        {"question": "When does the Heron sail?", "answers": ["Monday"], "paragraph": 0},
    ],
}
FAIRY = {
    "id": "tale",
    "paragraphs": ["One.", "Two.", "Three."],
    "qas": [{"question": "How many?", "answers": ["two"], "paragraphs": [0, 2]}],
}
PAPER = {
    "title": "Paper",
    "document": "Opening words.\n\nThe dose was 5 mg.\n\n"
    + "Long words. " * 400
    + "The end came late. "
    + "More. " * 400,
    "qas": [
        {"question": "Which dose?", "answers": ["5 mg"], "answer_start": [29]},
        {"question": "What came late?", "answers": ["The end"], "answer_start": [36 + 4800]},
    ],
}
PASSAGE = {"title": "Tower", "passage": "It is 300 m high.", "question": " How high? ", "answers": ["300 m"]}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def documents(*sizes: int) -> list[Document]:
    found = []
    for i, size in enumerate(sizes):
        text, gold = f"Place {i}. " + TEXT, f"The name is N{i}."
        spans = ((len(text), len(text) + len(gold)),)
        questions = tuple(Question(f"Question {j} of {i}?", (f"N{i}",), spans) for j in range(size))
        found.append(Document(f"D{i}", f"{text}{gold} ", questions))
    return found


def told(document: Document, question: Question) -> str:
    return "\n\n".join(document.text[start:end] for start, end in question.spans).strip()


def test_all_layouts_are_loaded_with_the_text_that_holds_the_answer(tmp_path: Path) -> None:
    ships, tale, paper, tower = read_questions(write(tmp_path / "d.jsonl", SQUAD, FAIRY, PAPER, PASSAGE))
    assert ships.text == "The Heron sails on Monday.\n\nOdile Marchetti is the captain of the Heron."
    assert [told(ships, q) for q in ships.questions] == [SQUAD["paragraphs"][1], SQUAD["paragraphs"][0]]
    assert ships.questions[0].answers == ("Odile Marchetti", "Marchetti")
    assert tale.title == "tale" and told(tale, tale.questions[0]) == "One.\n\nThree."
    assert told(paper, paper.questions[0]) == "The dose was 5 mg."
    around = told(paper, paper.questions[1])
    assert "The end came late." in around and len(around) <= 1500
    assert (tower.text, tower.questions[0].text) == (PASSAGE["passage"], "How high?")


@pytest.mark.parametrize(
    "bad",
    [
        {"title": "T", "text": "No questions."},
        {"paragraphs": ["A."], "qas": [{"question": "?", "answers": ["a"], "paragraph": 7}]},
        {"paragraphs": ["A."], "qas": [{"question": "?", "answers": [], "paragraph": 0}]},
        {"paragraphs": ["A."], "qas": [{"question": "?", "answers": "a", "paragraph": 0}]},
        {"paragraphs": ["A."], "qas": 5},
        {"paragraphs": ["A."], "qas": [{"question": " ?! ", "answers": ["a"], "paragraph": 0}]},
        {"passage": "A.", "question": "", "answers": ["a"]},
        {"document": "A.", "questions": [{"question": "?", "options": ["a"], "gold": 0}]},
        {"document": "A.", "qas": [{"question": "?", "answers": ["a"]}]},
    ],
)
def test_other_layouts_are_refused_by_row(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSource, match="line 2"):
        read_questions(write(tmp_path / "d.jsonl", SQUAD, bad))


def test_a_document_without_a_title_is_called_by_its_number(tmp_path: Path) -> None:
    rows = [{**PASSAGE, "title": "  "}, {**PASSAGE, "title": None}, {**PASSAGE, "title": "", "id": "x7"}]
    assert [document.title for document in read_questions(write(tmp_path / "d.jsonl", *rows))] == ["1", "2", "x7"]


def test_a_limit_that_leaves_one_document_is_named(make_model: MakeModel) -> None:
    with pytest.raises(InvalidSetting, match="--limit 1 leaves 1 of 50 documents"):
        qa(make_model(), documents(*[1] * 50), limit=1)
    with pytest.raises(InvalidSetting, match="there are 1 documents"):
        qa(make_model(), documents(3), limit=1)


def test_files_without_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSource, match="no questions"):
        read_questions(write(tmp_path / "d.jsonl", {"paragraphs": ["A."], "qas": []}))
    with pytest.raises(SourceNotFound):
        read_questions(tmp_path / "missing.jsonl.gz")


@pytest.mark.parametrize(
    ("said", "answers", "expected_f1", "em"),
    [
        ("The Eiffel Tower.", ["Eiffel tower"], 1.0, 1.0),
        ("It is the Eiffel Tower", ["Eiffel Tower"], 2 * (2 / 4) * 1.0 / (2 / 4 + 1.0), 0.0),
        ("tower", ["Eiffel Tower", "tower of Paris"], 2 / 3, 0.0),
        ("no idea", ["Eiffel Tower"], 0.0, 0.0),
        ("", ["Eiffel Tower"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
        ("a b b", ["b b b"], 0.8, 0.0),  # "a" is an article: 2 shared of 2 and 3
        ("Marchetti", ["Odile Marchetti", "Marchetti"], 1.0, 1.0),
    ],
)
def test_answers_are_scored_as_squad_does(said: str, answers: list[str], expected_f1: float, em: float) -> None:
    assert f1(said, answers) == pytest.approx(expected_f1) and exact_match(said, answers) == em


@pytest.mark.parametrize(
    ("sizes", "limit", "taken"),
    [((5, 5, 5), 6, [2, 2, 2]), ((1, 9, 9), 9, [1, 4, 4]), ((2, 2), 50, [2, 2]), ((3, 4), None, [3, 4])],
)
def test_questions_are_drawn_evenly(sizes: tuple[int, ...], limit: int | None, taken: list[int]) -> None:
    chosen = choose_questions(documents(*sizes), limit, seed=0)
    assert [len(document.questions) for document in chosen] == taken
    for document, original in zip(chosen, documents(*sizes), strict=True):
        assert not Counter(document.questions) - Counter(original.questions)


def test_the_draw_depends_on_the_seed_alone() -> None:
    draws = [choose_questions(documents(9, 9, 9, 9), 2, seed) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1] and len({str(draw) for draw in draws}) > 2
    assert all(len(draw) == 2 for draw in draws)


def test_each_mode_asks_what_it_says(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, docs = make_model(), documents(2, 1, 3)
    read: list[str] = []
    original = DocumentMemory.from_text.__func__  # type: ignore[attr-defined]
    asked: list[tuple[str, str, str]] = []

    def from_text(cls: Any, text: str, **settings: Any) -> DocumentMemory:
        read.append(settings["name"])
        return original(cls, text, **settings)  # type: ignore[no-any-return]

    def ask_many(self: DocumentMemory, questions: list[str], **settings: Any) -> list[Any]:
        name = self.info()["sources"][0]["name"]
        mode = "recall" if settings["answer_from"] == "passages" else settings["answer_from"]
        asked.extend((question, mode, name) for question in questions)
        return [_Said(f"{mode} N{name[1:]}") for _ in questions]

    within: list[str] = []

    def ask_within(memory: DocumentMemory, search: Any, questions: list[Question], *settings: Any) -> list[str]:
        name = memory.info()["sources"][0]["name"]
        for question in questions:
            text = next(document.text for document in docs if document.title == name)
            assert question.text.endswith(f"of {name[1:]}?")
            within.extend(text[start:end] for start, end in question.spans)
        return ["N0" for _ in questions]

    prompts: list[list[dict[str, str]]] = []

    def from_prompts(model: Any, messages: Any, count: int) -> list[str]:
        prompts.extend(messages)
        return ["N0"] * len(messages)

    monkeypatch.setattr(DocumentMemory, "from_text", classmethod(from_text))
    monkeypatch.setattr(DocumentMemory, "ask_many", ask_many)
    monkeypatch.setattr(qa_module, "_ask_within", ask_within)
    monkeypatch.setattr(qa_module, "_from_prompts", from_prompts)
    result = qa(model, docs)
    assert read == ["D0", "D1", "D2"] and result["questions"] == 6 and result["documents"] == 3
    for i, document in enumerate(docs):
        for question in document.questions:
            memories = [(mode, name) for text, mode, name in asked if text == question.text]
            own, before = f"D{i}", f"D{(i - 1) % 3}"
            assert sorted(memories) == sorted((mode, name) for name in (own, before) for mode in ("memory", "recall"))
    told = instructions_for(model).memory[SHORT]
    assert prompts[0] in [memory_messages(f"Question {n} of 0?", instructions=told) for n in (0, 1)]
    assert (
        len(prompts) == len(within) == 6
        and sorted(within) == ["The name is N0."] * 2 + ["The name is N1."] + ["The name is N2."] * 3
    )
    scores = result["modes"]
    assert scores["memory"]["f1"] == scores["recall"]["f1"] == pytest.approx(2 / 3) and scores["memory"]["em"] == 0
    assert scores["other"]["f1"] == 0 and scores["none"]["em"] == scores["gold"]["em"] == pytest.approx(2 / 6)
    assert result["differences"]["memory-other"] == {
        "f1": pytest.approx(2 / 3),
        "interval": [pytest.approx(2 / 3), pytest.approx(2 / 3)],
    }
    # Of the six questions, none is right for the two of the first document: 2/3 - 1, and 2/3 - 0 four times.
    assert result["differences"]["memory-none"]["f1"] == pytest.approx((2 * (2 / 3 - 1) + 4 * 2 / 3) / 6)


class _Said:
    def __init__(self, text: str) -> None:
        self.text = text


def test_answers_are_those_of_the_public_api(make_model: MakeModel) -> None:
    model, docs = make_model(), documents(3, 2)
    result = qa(model, docs, max_new_tokens=6)
    chosen = choose_questions(docs, None, 0)
    memories = [DocumentMemory.from_text(d.text, name=d.title, model=model) for d in chosen]
    for mode, which in (("memory", (0, 1)), ("other", (1, 0)), ("recall", (0, 1)), ("absent", (1, 0))):
        said = [row["answer"] for row in result["answers"][mode]]
        expected = [
            memories[which[i]].ask(q.text, answer_from=ANSWER_FROM[ELSEWHERE.get(mode, mode)], max_new_tokens=6).text
            for i, document in enumerate(chosen)
            for q in document.questions
        ]
        assert said == expected
    assert [row["answer"] for row in result["answers"]["memory"]] != [r["answer"] for r in result["answers"]["other"]]


def test_the_share_of_answers_that_say_there_is_none_is_reported(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter([NOT_SAID, "N0", "the document does not say", f"{NOT_SAID} Perhaps N0."])
    monkeypatch.setattr(qa_module, "_from_prompts", lambda model, messages, count: [next(said) for _ in messages])
    result = qa(make_model(), documents(4), modes=["none"])
    assert [row["found"] for row in result["answers"]["none"]] == [False, True, False, False]
    scores = result["modes"]["none"]
    assert scores["not_found"] == 3 / 4 and scores["not_found_interval"] == pytest.approx(wilson(3, 4))


def test_none_asks_as_memory_does_and_gold_from_the_right_paragraph_alone(make_model: MakeModel) -> None:

    model, gold_text = make_model(), "The name is N0."
    text = TEXT * 8
    question = Question("What is the name?", ("N0",), ((len(text), len(text) + len(gold_text)),))
    docs = [Document("D0", text + gold_text, (question,)), *documents(1)]
    said = qa(model, docs, modes=["none", "gold"], max_new_tokens=5)["answers"]
    asked = memory_messages(question.text, instructions=instructions_for(model).memory[SHORT])
    (none,) = continue_texts(model, [encode_chat(model, asked)], None, Decoding(5))
    assert said["none"][0]["answer"] == none.strip()
    memory = DocumentMemory.from_text(docs[0].text, name=docs[0].title, model=model)
    search = Search([memory])
    ranked = search.within(question.text, question.spans, 4)
    plan = plan_from_passages(model, search, ranked, asked_after((), question.text), Decoding(5))
    assert said["gold"][0]["answer"] == "".join(stream_answer(model, plan, lambda: None, Decoding(5))).strip()
    assert len(memory.passages) > 1 and [p.text for p in plan.passages] == [memory.passages[-1].text]


def test_where_no_passage_fits_into_the_prompt_the_memory_is_not_asked_instead(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (document,) = make_model(), documents(1)
    (question,) = document.questions
    told = instructions_for(model).passages[SHORT]
    prompt = encode_chat(model, passage_messages(question.text, [], instructions=told))
    monkeypatch.setattr(model.model.config, "max_position_embeddings", len(prompt) + 40)
    with pytest.raises(InvalidSetting, match="no passage fits into the model's context"):
        qa(model, [document], modes=["gold"], max_new_tokens=40)


@pytest.mark.parametrize(
    "settings", [{"modes": ["magic"]}, {"modes": []}, {"limit": 0}, {"limit": 1}, {"documents": []}]
)
def test_impossible_settings_are_refused(make_model: MakeModel, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        qa(make_model(), **{"documents": documents(1, 1), **settings})


def test_documents_are_not_read_where_no_mode_needs_their_memory(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Question("Which ships passed on Monday?", ("seven",), ((0, len(TEXT)),))
    model, docs = make_model(), [Document(name, TEXT * 2, (asked,)) for name in ("D0", "D1")]
    lengths: list[int] = []
    read = model.read_batch

    def counted(segments: Any, caches: Any, weights: Any) -> None:
        lengths.extend(map(len, segments))
        read(segments, caches, weights)

    monkeypatch.setattr(model, "read_batch", counted)
    modes = ["recall", "absent", "gold"]
    unread = qa(model, docs, modes=modes, max_new_tokens=5)["answers"]
    assert not lengths
    with_memory = qa(model, docs, modes=[*modes, "memory"], max_new_tokens=5)["answers"]
    assert lengths and {mode: with_memory[mode] for mode in modes} == unread
