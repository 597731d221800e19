"""Passages: complete, well cut, exact in their places, and independent of how text arrives."""

from __future__ import annotations

import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import TEXT
from hypothesis import given, settings
from hypothesis import strategies as st

from infinimem.errors import DamagedMemoryFile
from infinimem.ingest.record import Record, SourceRecord
from infinimem.readers.page import Page
from infinimem.search.central import STRETCH, central_parts, central_passages
from infinimem.search.ranking import LexicalRanker
from infinimem.search.search import _best_row
from infinimem.storage.passage_table import pack, unpack
from infinimem.text.passages import LIMIT, Passage, PassageCutter
from infinimem.text.sentences import sentences

texts = st.lists(
    st.sampled_from(["Short one. ", TEXT, "word ", "\n\n", "x" * 900 + " ", "Wie geht es? ", "中文。"]), max_size=40
).map("".join)


@settings(max_examples=80, deadline=None)
@given(text=texts, cuts=st.lists(st.integers(0, 8000), max_size=5))
def test_any_split_gives_the_same_passages(text: str, cuts: list[int]) -> None:
    whole = PassageCutter(source="s")
    expected = whole.feed(text) + whole.rest()
    parts, got = PassageCutter(source="s"), []
    places = sorted({min(cut, len(text)) for cut in cuts})
    for start, end in zip([0, *places], [*places, len(text)], strict=True):
        got += parts.feed(text[start:end])
        parts.rest()
    assert got + parts.rest() == expected


@settings(max_examples=80, deadline=None)
@given(text=texts)
def test_passages_are_the_text_at_their_places_and_lose_nothing(text: str) -> None:
    cutter = PassageCutter(source="s")
    passages = cutter.feed(text) + cutter.end_page()
    assert all(text[p.start : p.end] == p.text and len(p.text) <= LIMIT for p in passages)
    assert "".join("".join(p.text.split()) for p in passages) == "".join(text.split())


def test_passages_end_at_sentences_where_there_are_some() -> None:
    cutter = PassageCutter(source="s")
    passages = cutter.feed(TEXT * 30) + cutter.end_page()
    assert len(passages) > 5 and all(p.text.endswith(".") for p in passages)
    assert min(len(p.text) for p in passages) > LIMIT // 4


def test_a_passage_never_crosses_a_page() -> None:
    cutter, passages = PassageCutter(source="s"), []
    for page in (1, 2):
        cutter.page = page
        passages += cutter.feed(f"Page {page} says little.\n\n") + cutter.end_page()
    assert [(p.page, p.text) for p in passages] == [(1, "Page 1 says little."), (2, "Page 2 says little.")]
    assert passages[1].start == len("Page 1 says little.\n\n")


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=LIMIT), max_size=8),
    titles=st.lists(st.sampled_from([None, "", "one", "two"]), min_size=8, max_size=8),
    changes=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_packed_passages_come_back_equal(texts: list[str], titles: list[str | None], changes: list[bool]) -> None:
    sources, passages, at = [("s", "text", 10_000)], [], 0
    for page, (text, title, change) in enumerate(zip(texts, titles, changes, strict=False)):
        if change:
            # Sources may follow one another under one name.
            sources, at = [*sources, ("s" if page % 2 else "t", "text", 10_000)], 0
        passages.append(Passage(text, sources[-1][0], page, at, at + len(text), title, label="ix" if change else None))
        at += len(text) + page
    assert unpack(pack(passages), sources) == passages


def test_a_table_longer_than_what_is_unpacked_at_once_comes_back_equal() -> None:
    texts = [f"{i * 7919 % 104729}é" * 90 for i in range(2000)]
    passages = [Passage(text, "s", i, 800 * i, 800 * i + len(text), f"title {i}") for i, text in enumerate(texts)]
    assert len(pack(passages)) > 1 << 15
    assert unpack(pack(passages), [("s", "text", 2_000_000)]) == passages


@pytest.mark.parametrize(
    "data",
    [b"", b"not zlib", pack([Passage("a", "s", 1, 0, 1)]).tobytes()[:-3], pack([]).tobytes() + b"x"],
)
def test_broken_passage_tables_are_refused(data: bytes) -> None:
    with pytest.raises(DamagedMemoryFile, match="passages"):
        unpack(np.frombuffer(data, np.uint8), [("s", "text", 100)])


def test_a_passage_table_that_explodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack([Passage(f"{i:0800}", "s", 1, 800 * i, 800 * (i + 1)) for i in range(200)])
    monkeypatch.setattr("infinimem.storage.passage_table.MAX_PASSAGE_BYTES", 100_000)
    with pytest.raises(DamagedMemoryFile, match="too large"):
        unpack(packed, [("s", "text", 1_000_000)])


ONE, TWO = Passage("one", "s", 1, 0, 3, "A title"), Passage("two", "s", 1, 5, 8)


def test_the_kind_of_a_source_says_what_its_numbers_count() -> None:
    (passage,) = unpack(pack([ONE]), [("s", "html", 100)])
    assert (passage.unit, passage.place) == ("section", "section 'A title'")


def test_a_place_names_the_number_that_is_printed() -> None:
    assert Passage("one", "s", 9, 0, 3, "Inks", label="3").place == "page 9 (printed 3), Inks"
    assert Passage("one", "s", 9, 0, 3).place == "page 9"


def test_a_passage_never_crosses_a_heading_and_has_its_title() -> None:
    page = Page(1, "First.\n\nTwo\n\nSecond.", "One", headings=[(8, "Two")])
    record = Record()
    record.open(SourceRecord("s", "pdf"))
    record.begin_page(page)
    for title, text in page.sections():
        record.begin_section(title)
        record.feed(text)
    assert [(p.title, p.text, p.start) for p in record.passages] == [("One", "First.", 0), ("Two", "Two\n\nSecond.", 8)]


@pytest.mark.parametrize(
    ("sources", "passages"),
    [
        ([], [ONE]),
        ([("t", "text", 100)], [ONE]),
        ([("s", "text", 7)], [TWO]),
        ([("s", "text", 100)], [ONE, TWO, TWO]),
        ([("s", "text", 100)], [TWO, ONE]),
        ([("s", "text", 100), ("t", "text", 100)], [replace(ONE, source="t"), ONE]),
    ],
    ids=["no source", "another source", "beyond its end", "twice", "backwards", "sources backwards"],
)
def test_passages_of_something_that_was_not_read_are_refused(
    sources: list[tuple[str, str, int]], passages: list[Passage]
) -> None:
    with pytest.raises(DamagedMemoryFile, match="no passage of what was read"):
        unpack(pack(passages), sources)


def test_titles_of_more_room_than_any_reading_gives_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Passage("a", "s", 1, i, i + 1, f"{i:09}" * 60_000) for i in range(3)]
    monkeypatch.setattr("infinimem.storage.passage_table.MAX_TITLES", 1_000_000)
    with pytest.raises(DamagedMemoryFile, match="too long titles"):
        unpack(pack(rows), [("s", "text", 100)])


def test_more_passages_than_any_reading_makes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Passage("a", "s", 1, i, i + 1) for i in range(101)]
    monkeypatch.setattr("infinimem.storage.passage_table.MAX_PASSAGES", 100)
    assert unpack(pack(rows[:100]), [("s", "text", 1000)]) == rows[:100]
    with pytest.raises(DamagedMemoryFile, match="too many"):
        unpack(pack(rows), [("s", "text", 1000)])


@pytest.mark.parametrize(
    "table", ['[["s",1,null,0,3,"one"]', '["s"]', "{}", "[[]]", "[1,2]", "[ ]", '[["s",1,null,0,3,"one"]]]']
)
def test_a_table_of_another_form_is_refused(table: str) -> None:
    with pytest.raises(DamagedMemoryFile, match="passages"):
        unpack(np.frombuffer(zlib.compress(table.encode()), np.uint8), [("s", "text", 100)])


LIBRARY = [
    Passage("The anchor weighs forty tons and was cast in Bristol.", "ships", 1, 0, 1),
    Passage("Bread was baked on Thursdays by the cook.", "ships", 2, 0, 1, title="Kitchen"),
    Passage("The captain kept parrots; the parrots kept quiet.", "ships", 3, 0, 1),
]


@pytest.mark.parametrize(
    ("query", "page"), [("How heavy are anchors?", 1), ("baking bread", 2), ("parrot", 3), ("the kitchen", 2)]
)
def test_the_lexical_ranker_finds_words_stems_and_titles(query: str, page: int) -> None:
    found = LexicalRanker(LIBRARY).rank(query, 3)
    assert LIBRARY[found[0][0]].page == page and found[0][1] > 0


@pytest.mark.parametrize(
    ("query", "page"), [("面包店", 1), ("谁建造了灯塔？", 2), ("パン屋", 3), ("Heron", 2), ("鯨", None)]
)
def test_words_are_found_in_writing_without_spaces(query: str, page: int | None) -> None:
    texts = [
        "村里的面包店早上五点开门。",
        "灯塔建造于一八七二年，船名Heron又名鹭。",
        "このパン屋は朝五時に開きます。",
    ]
    ranked = LexicalRanker([Passage(text, "s", n, 0, len(text)) for n, text in enumerate(texts, 1)]).rank(query, 3)
    assert (ranked[0][0] + 1 if ranked else None) == page


@pytest.mark.parametrize("query", ["zeppelin", "the of and", "?!", "中文"])
def test_a_query_without_known_words_finds_nothing(query: str) -> None:
    assert LexicalRanker(LIBRARY).rank(query, 3) == []


def test_ranking_no_passages_finds_nothing() -> None:
    assert LexicalRanker([]).rank("anchor", 3) == []
    assert LexicalRanker([Passage("the of", "s", 1, 0, 1)]).rank("the", 3) == []


def test_central_passages_come_in_reading_order_from_all_parts() -> None:
    passages = [Passage(f"{TEXT} number {i}", "s", i + 1, 0, 1) for i in range(12)]
    chosen = central_passages(passages, 4)
    assert [p.page for p in chosen] == sorted({p.page for p in chosen})
    assert [(p.page - 1) // 3 for p in chosen] == [0, 1, 2, 3]
    assert central_passages(passages[:3], 4) == passages[:3]


def test_a_long_document_is_cut_into_parts_with_central_passages_each() -> None:
    passages = [Passage(f"{TEXT} number {i}", "s", i + 1, 0, 1) for i in range(3 * STRETCH)]
    parts = central_parts(passages, 4, 9)
    assert [len(part) for part in parts] == [4, 4, 4]
    assert [{(p.page - 1) // STRETCH for p in part} for part in parts] == [{0}, {1}, {2}]
    assert central_parts(passages, 4, 1) == central_parts(passages, 4, 0) == [central_passages(passages, 4)]
    assert central_parts(passages[: 2 * STRETCH - 1], 4, 9) == [central_passages(passages[: 2 * STRETCH - 1], 4)]


TABLE = "Mark | Where | Height\nD. | Cairn Head | 88\nE | Winch House. Plinth | 53"


def test_the_rows_of_a_table_are_one_sentence() -> None:
    text = f"It rained. It\n\n{TABLE}\n\nMark | Where\nF | Slip\n\nAfter it. End"
    found = [text[start:end] for start, end in sentences(text)]
    assert found == ["It rained.", "It", TABLE, "Mark | Where\nF | Slip", "After it.", "End"]


def test_a_stroke_in_a_formula_makes_no_row() -> None:
    text = "P(A | B) is small. It is less than P(A)."
    assert [text[start:end] for start, end in sentences(text)] == ["P(A | B) is small.", "It is less than P(A)."]


@given(st.text("ab. |\n", max_size=60))
def test_sentences_are_the_text_without_the_white_space_between(text: str) -> None:
    found = sentences(text)
    assert "".join("".join(text[start:end] for start, end in found).split()) == "".join(text.split())
    assert all(one[1] <= other[0] for one, other in pairwise(found))


def test_the_row_that_fits_a_question_is_shown_with_the_names_of_the_columns() -> None:
    table = Passage(TABLE, "a.pdf", 1, 0, len(TABLE))
    asked = "What is the height of the plinth of the Winch House?"
    assert _best_row(table, asked).text == "Mark | Where | Height\nE | Winch House. Plinth | 53"
    # Where two rows fit as well, or there is no table, all of it is shown.
    assert _best_row(table, "What is the height?") == table
    prose = replace(table, text="It rained.\nIt snowed.\nIt hailed.")
    assert _best_row(prose, "Did it hail?") == prose
