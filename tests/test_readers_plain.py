"""Plain text: encodings, wrapped lines, pages."""

from __future__ import annotations

import re
import textwrap
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinimem.readers.page import Page
from infinimem.readers.prose import PAGE_LIMIT, cut, tidy
from infinimem.readers.source import open_source, read_pages
from infinimem.text.sentences import sentences

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

PROSE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of light, it was the season of "
    "darkness, it was the spring of hope, it was the winter of despair."
)


def pages_of(path: Path, content: str | bytes) -> list[Page]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return list(read_pages(open_source(path)))


def text_of(path: Path, content: str | bytes) -> str:
    return "\n\n".join(page.text for page in pages_of(path, content))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.txt"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "Über die Straße — naïve “quotes”"),
        ("utf-8-sig", "Über die Straße"),
        ("utf-16", "Über die Straße"),
        ("utf-16-le", "Über die breite Straße ging er"),
        ("utf-16-be", "Über die breite Straße ging er"),
        ("utf-32", "Über die Straße"),
        ("cp1252", "Über die Straße ging der Bär, “müde” und übel gelaunt, zu den Bäumen."),
        ("cp1251", "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. " * 4),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 5),
    ],
)
def test_the_encoding_is_detected(path: Path, encoding: str, text: str) -> None:
    assert text_of(path, text.encode(encoding)) == text.strip()


def test_a_broken_byte_does_not_spoil_a_utf8_file(path: Path) -> None:
    found = text_of(path, "Die Bären mögen süße Äpfel".encode() + b" \xff " + "und Öl".encode())
    assert found == "Die Bären mögen süße Äpfel \ufffd und Öl"


def test_a_letter_above_ascii_far_into_the_file_is_decoded(path: Path) -> None:
    assert text_of(path, b"plain words\n\n" * 30_000 + "Bär".encode()).endswith("Bär")


def test_a_character_across_two_blocks_is_decoded(path: Path) -> None:
    text = "ä" * 200_000
    assert text_of(path, "x" + text).replace("\n", "") == "x" + text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_line_ends_separate_lines(path: Path, end: str) -> None:
    assert text_of(path, f"one{end}two{end}{end}three{end}") == "one\ntwo\n\nthree"


def test_a_line_end_across_two_blocks_is_one_line_end(path: Path) -> None:
    block = 1 << 18
    assert text_of(path, "abc\n" * (block // 4 - 1) + "abc\r\nb").endswith("abc\nabc\nb")


def test_wrapped_lines_are_joined_to_paragraphs(path: Path) -> None:
    wrapped = "\n\n".join(textwrap.fill(PROSE, 70) for _ in range(4))
    assert text_of(path, wrapped) == "\n\n".join([PROSE] * 4)


def test_paragraphs_marked_by_an_indent_are_separated(path: Path) -> None:
    wrapped = "\n".join(textwrap.fill(PROSE, 70, initial_indent="   ") for _ in range(4))
    assert text_of(path, wrapped) == "\n\n".join([PROSE] * 4)


def test_a_word_with_a_hyphen_at_the_line_end_keeps_it_without_a_space(path: Path) -> None:
    line = "He lived for many years in a house of stone beside the state-of-the-"
    found = text_of(path, f"{line}\nart factory, and he never once complained of its noise or of its smell\nor smoke.")
    assert "state-of-the-art factory" in found


def test_verse_stays_line_by_line_among_wrapped_prose(path: Path) -> None:
    verse = (
        "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\nRough winds do shake\nAnd"
    )
    wrapped = textwrap.fill(PROSE, 70)
    assert text_of(path, f"{wrapped}\n\n{verse}\n\n{wrapped}") == f"{PROSE}\n\n{verse}\n\n{PROSE}"


def test_list_items_stay_on_their_lines(path: Path) -> None:
    items = "- apples and pears from the old garden behind the house of my uncle\n- plums\n- cherries"
    wrapped = textwrap.fill(PROSE, 70)
    assert items in text_of(path, f"{wrapped}\n\n{items}\n\n{wrapped}")


def test_code_keeps_its_lines_and_indents(path: Path) -> None:
    code = "def f(x):\n    if x:\n        return 1\n    return 0"
    assert text_of(path, code) == code


def test_lines_of_a_transcript_are_kept(path: Path) -> None:
    turns = "\n".join(f"Speaker {number}: {'words and ' * number}so on" for number in range(1, 30))
    assert text_of(path, turns) == turns


def test_wrapped_chinese_is_joined_without_spaces(path: Path) -> None:
    line = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜"
    assert text_of(path, f"{line}\n{line}\n{line}") == line * 3


def test_form_feeds_separate_pages_by_number(path: Path) -> None:
    pages = pages_of(path, "first\f\fthird\n\fx\n")
    assert [(page.number, page.text) for page in pages] == [(1, "first"), (3, "third"), (4, "x")]


def test_a_stray_form_feed_does_not_number_the_pages(path: Path) -> None:
    pages = pages_of(path, "Title\f" + f"{PROSE}\n\n" * 100)
    assert [page.number for page in pages] == list(range(1, len(pages) + 1))
    assert len(pages) > 5


def test_pages_are_cut_between_paragraphs(path: Path) -> None:
    pages = pages_of(path, f"{PROSE}\n\n" * 100)
    assert all(set(page.text.split("\n\n")) == {PROSE} for page in pages)
    assert all(2_000 < len(page.text) <= 3_000 for page in pages[:-1])


def test_a_giant_line_is_cut_between_sentences(path: Path) -> None:
    pages = pages_of(path, f"{PROSE} " * 300)
    assert all(page.text.endswith("despair.") for page in pages)
    assert " ".join(page.text.replace("\n\n", " ") for page in pages) == " ".join([PROSE] * 300)


def test_a_line_without_spaces_is_cut_too(path: Path) -> None:
    pages = pages_of(path, "x" * 100_000)
    assert max(len(page.text) for page in pages) <= PAGE_LIMIT
    assert sum(page.text.count("x") for page in pages) == 100_000


@pytest.mark.parametrize("separator", [" ", "\n", "\n\n"])
def test_memory_does_not_grow_with_the_file(path: Path, separator: str) -> None:
    path.write_text(f"{PROSE}{separator}" * 40_000, encoding="utf-8")
    source = open_source(path)
    tracemalloc.start()
    try:
        for _ in read_pages(source):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.size > 10_000_000
    assert peak < 6_000_000


def test_the_first_page_comes_before_the_file_is_split(path: Path) -> None:
    path.write_text(f"{PROSE}\n\n" * 50_000, encoding="utf-8")
    source = open_source(path)
    tracemalloc.start()
    try:
        page = next(read_pages(source))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert page.number == 1
    assert peak < 6_000_000


@quick
@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Cs", "Cn"])))
def test_no_letter_is_lost_or_moved(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    content = f"start {text}"
    assert re.sub(r"\s+", "", text_of(path, content)) == re.sub(r"\s+", "", tidy(content))


@quick
@given(
    words=st.lists(st.text(alphabet="abcdeäß,.", min_size=1, max_size=12), min_size=1, max_size=300),
    ends=st.lists(st.sampled_from([" ", "\n", "\n\n", "\r\n"]), min_size=300, max_size=300),
)
def test_the_words_come_out_in_order(tmp_path: Path, words: list[str], ends: list[str]) -> None:
    content = "".join(word + end for word, end in zip(words, ends, strict=False))
    assert text_of(tmp_path / "a.txt", content).split() == words


@quick
@given(text=st.text(alphabet="ab .!?\n", max_size=500), limit=st.integers(min_value=2, max_value=50))
def test_pieces_are_short_and_lose_nothing(text: str, limit: int) -> None:
    pieces = list(cut(text, limit))
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


@quick
@given(text=st.text(alphabet=st.characters()))
def test_tidy_text_is_tidy_already(text: str) -> None:
    once = tidy(text)
    assert tidy(once) == once
    assert not any("\ud800" <= letter <= "\udfff" for letter in once)


@given(st.text(st.sampled_from('aB .!?"\n。」')))
def test_sentences_follow_each_other_and_leave_out_white_space_alone(text: str) -> None:
    found = sentences(text)
    assert found and found[0][0] == 0
    for (start, end), (following, _) in zip(found, [*found[1:], (len(text), 0)], strict=True):
        assert start <= end <= following and not text[end:following].strip()


def test_sentences_end_with_their_marks_and_quotes() -> None:
    text = 'He asked: "Why?" She left (at noon.) Then 雨が降る。風も。'
    assert [text[start:end] for start, end in sentences(text)] == [
        'He asked: "Why?"',
        "She left (at noon.)",
        "Then 雨が降る。",
        "風も。",
    ]
