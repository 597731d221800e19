"""Documents of strangers: whatever they are, reading them ends soon, with pages or with one line, in little memory."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import nasty_pdfs
import nasty_texts
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading_costs import Cost, cost_of

from infinimem.errors import SourceError
from infinimem.readers.source import open_source, read_pages

# Those that take more than a second or two.
SLOW = {
    "deep dictionaries in the catalog",
    "drawing that never ends",
    "forms that multiply",
    "hundred thousand pages",
    "no table and a million objects",
    "text of a gigabyte",
    "inline image without end",
    "only a header",
}


def check(cost: Cost, name: str) -> None:
    assert cost.seconds < 60 and cost.child < 10**9 and cost.own < 3 * 10**8
    assert "\n" not in cost.line
    assert " characters" in cost.line or name in cost.line
    assert "Traceback" not in cost.line


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in nasty_pdfs.NASTIES],
)
def test_a_nasty_pdf_ends_soon_in_pages_or_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "nasty.pdf"
    path.write_bytes(nasty_pdfs.NASTIES[name]())
    check(cost_of(path), "nasty.pdf")


@pytest.mark.parametrize("size", [0.01, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", nasty_texts.NASTIES)
def test_a_nasty_text_ends_soon_in_pages_or_one_line(name: str, size: float, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(nasty_texts.NASTIES[name](size))
    check(cost_of(path), name)


def ends_in_pages_or_a_source_error(path: Path) -> None:
    try:
        for page in read_pages(open_source(path)):
            page.text.encode()
            assert page.text.strip() and (page.title is None or len(page.title) <= 301)
    except SourceError as error:
        assert path.name in str(error) and "\n" not in str(error)


@functools.cache
def whole_pdf() -> bytes:
    return nasty_pdfs.texts(*[nasty_pdfs.WORDS] * 3)


@functools.cache
def whole_epub() -> bytes:
    return nasty_texts.epub(["<h1>One</h1><p>Words.", "<p>More words."], [0, 1])


quick: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
documents = pytest.mark.parametrize(("name", "whole"), [("a.pdf", whole_pdf), ("a.epub", whole_epub)])


@st.composite
def damage(draw: st.DrawFn) -> Any:
    """A function that cuts, turns and inserts bytes at a few places."""
    steps = draw(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("cbid"), st.binary(max_size=8)), max_size=6))
    cut = draw(st.one_of(st.none(), st.floats(0, 1)))

    def apply(data: bytes) -> bytes:
        content = bytearray(data)
        for place, kind, new in steps:
            at = int(place * max(0, len(content) - 1))
            if kind == "c":
                content[at : at + len(new)] = new
            elif kind == "b" and content:
                content[at] ^= 1 + len(new)
            elif kind == "i":
                content[at:at] = new
            else:
                del content[at : at + 1 + len(new)]
        return bytes(content if cut is None else content[: int(cut * len(content))])

    return apply


@documents
@settings(max_examples=15, **quick)
@given(damage=damage())
def test_a_damaged_document_is_read_or_refused(name: str, whole: Any, damage: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(damage(whole()) or b"%PDF-")
    ends_in_pages_or_a_source_error(path)


@documents
@pytest.mark.slow
@settings(max_examples=1000, **quick)
@given(damage=damage())
def test_a_damaged_document_is_read_or_refused_at_length(name: str, whole: Any, damage: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(damage(whole()) or b"%PDF-")
    ends_in_pages_or_a_source_error(path)


@documents
@pytest.mark.slow
def test_every_truncation_of_a_document_is_read_or_refused(name: str, whole: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    for end in range(1, len(whole()), 3):
        path.write_bytes(whole()[:end])
        ends_in_pages_or_a_source_error(path)


@pytest.mark.parametrize("name", ["a.html", "a.md", "a.epub", "a.pdf"])
def test_random_bytes_after_the_right_beginning_are_read_or_refused(name: str, tmp_path: Path) -> None:
    begins = {"a.html": b"<html><p>", "a.md": b"# A\n", "a.epub": b"PK\x03\x04", "a.pdf": b"%PDF-1.7\n"}
    for seed in range(3):
        path = tmp_path / name
        path.write_bytes(begins[name] + random.Random(seed).randbytes(20_000))
        ends_in_pages_or_a_source_error(path)
