"""What a document says about itself, what was left out of it, and the pages that its passages name."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from reportlab.pdfgen.canvas import Canvas

from infinimem import DocumentMemory
from infinimem.cli.main import main
from infinimem.ingest.ingestion import Ingestion
from infinimem.ingest.stream import read_passages, take_source
from infinimem.readers import open_source
from infinimem.readers.about import about
from infinimem.search.search import Search

if TYPE_CHECKING:
    from conftest import MakeModel

    from infinimem.model.infini_model import InfiniModel

SUBJECTS = ("lighthouse", "harbour", "windmill", "bakery", "quarry")


@pytest.fixture
def model(make_model: MakeModel) -> InfiniModel:
    return make_model()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book whose second page is the first that has a number."""
    canvas = Canvas(str(tmp_path / "book.pdf"))
    canvas.setTitle("The Five Trades")
    canvas.setAuthor("Ada Quill")
    for number, subject in enumerate(SUBJECTS):
        canvas.bookmarkHorizontal(subject, 0, 720)
        canvas.addOutlineEntry(f"Of the {subject}", subject)
        canvas.drawString(72, 700, f"The {subject} was built in {1850 + 7 * number}, of stone and oak.")
        if number:
            canvas.drawString(290, 30, f"The Five Trades  {number}")
        canvas.showPage()
    for line in range(9):
        canvas.drawString(72, 700 - 20 * line, "M i n i m u m   d e p t h   o f   w a t e r")
    canvas.save()
    return tmp_path / "book.pdf"


@pytest.fixture
def saved(book: Path, model: InfiniModel, tmp_path: Path) -> Path:
    DocumentMemory.ingest(book, model=model, progress=False).save(tmp_path / "book.safetensors")
    return tmp_path / "book.safetensors"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"title": "Microsoft Word - Harbour Rules"}, {"title": "Harbour Rules"}),
        ({"title": "report_final.docx", "author": "(anonymous)"}, {}),
        ({"author": ["Ada", "Ada", "", "Per"]}, {"author": "Ada; Per"}),
        ({"date": "D:20190301120000+01'00'"}, {"date": "2019-03-01"}),
        ({"date": "2019"}, {"date": "2019"}),
        ({"date": "spring of 1911"}, {"date": "spring of 1911"}),
        ({"title": None, "language": "en\n"}, {"language": "en"}),
    ],
)
def test_what_programs_write_is_no_title_and_dates_are_iso(found: dict[str, Any], expected: dict[str, str]) -> None:
    assert about(**found) == expected


def test_a_memory_file_keeps_what_a_document_says_and_what_was_left_out(saved: Path) -> None:
    (source,) = DocumentMemory.load(saved).info()["sources"]
    assert source["about"]["title"] == "The Five Trades" and source["about"]["author"] == "Ada Quill"
    assert source["left_out"] == {"running lines": 3}
    assert source["doubtful"] == [{"page": 6, "reason": "its letters stand apart"}]


def test_inspect_shows_what_a_document_says_and_what_was_left_out(saved: Path) -> None:
    shown = CliRunner().invoke(main, ["inspect", str(saved)]).stdout
    assert "author: Ada Quill" in shown and "3 running lines of book.pdf" in shown
    assert "page 6 of book.pdf: its letters stand apart" in shown
    described = json.loads(CliRunner().invoke(main, ["inspect", str(saved), "--json"]).stdout)
    assert described["sources"][0]["about"]["author"] == "Ada Quill"


def test_what_a_document_says_about_itself_is_found(saved: Path, model: InfiniModel) -> None:
    (best, *_) = DocumentMemory.load(saved, model=model).retrieve("Who is the author?", 1)
    assert "Author: Ada Quill" in best.text and best.page == 1


def test_a_page_is_found_by_the_number_that_is_printed_on_it(saved: Path, model: InfiniModel) -> None:
    memory = DocumentMemory.load(saved, model=model)
    (printed, *_) = memory.retrieve("What is on page 2?")
    assert (printed.label, printed.page, printed.title) == ("2", 3, "Of the windmill")
    assert printed.place == "page 3 (printed 2), Of the windmill" and "windmill" in printed.text
    (physical, *_) = memory.retrieve("What does page 6 say?")
    assert physical.page == 6, "no page has this number printed on it"
    assert memory.retrieve("Who wrote page 77?") == memory.retrieve("Who wrote page77?")


def test_a_question_about_a_page_that_is_there_has_an_answer(saved: Path, model: InfiniModel) -> None:
    assert Search([DocumentMemory.load(saved, model=model)]).has_answer("What is on page 2?")


def test_passages_read_without_a_model_are_those_of_the_memory(book: Path, saved: Path) -> None:
    assert list(read_passages(open_source(book))) == DocumentMemory.load(saved).passages


def test_an_interruption_between_sections_of_a_page_changes_nothing(model: InfiniModel, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("---\ntitle: Rules\nauthor: Ida\nkind: harbour\n---\n\n# One\n\nFirst.\n\n# Two\n\nSecond.\n")
    source = open_source(path)

    def ingestion(steps: int) -> Ingestion:
        begun = Ingestion.empty(model, keep_passages=True)
        for _ in islice(take_source(begun, source), steps):
            begun.read_whole()
        return begun

    whole = ingestion(99)
    assert [passage.title for passage in whole.record.passages] == [None, None, "One", "Two"]
    assert whole.record.sources[0].about == {"title": "Rules", "author": "Ida"}
    for steps in range(1, 6):
        resumed = ingestion(steps).copy()
        for _ in take_source(resumed, source, resumed=True):
            resumed.read_whole()
        assert resumed.record.passages == whole.record.passages
        assert resumed.record.sources == whole.record.sources
