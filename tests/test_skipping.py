"""`--skip-errors`: the rest is read, and the memory file says what was left out, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nasty_pdfs
import nasty_texts
import pytest
from click.testing import CliRunner, Result

from infinimem import DocumentMemory, InfiniModel
from infinimem import document_memory as module
from infinimem.cli.main import main
from infinimem.errors import CheckpointMismatch, DamagedSource, EmptySource, SourceNotFound
from infinimem.ingest import checkpoint
from infinimem.readers.process import parent
from infinimem.readers.process.limits import ReaderLimits
from infinimem.readers.source import open_source, read_pages

if TYPE_CHECKING:
    from conftest import MakeModel

DEEP = b"BT /F1 12 Tf " + b"[" * 5000 + b"]" * 5000 + b" TJ ET"
IMPATIENT = ReaderLimits(page_seconds=1.5)


@pytest.fixture
def model(make_model: MakeModel) -> InfiniModel:
    return make_model(segment_length=64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "paper.pdf"


def words(number: int) -> bytes:
    """A page whose last word goes on on the next."""
    lines = b"".join(b"(Line %d of page %d has words of its own.) Tj 0 -14 Td " % (i, number) for i in range(30))
    return b"BT /F1 12 Tf 72 700 Td (The same head) Tj 0 -30 Td (all ) Tj " + lines + b"(and a long-) Tj ET"


def with_slow_page(count: int, slow: int) -> bytes:
    """So many pages, one of which takes longer than any test."""
    return nasty_pdfs.with_slow_pages(None if number == slow else words(number) for number in range(1, count + 1))


def skipped(memory: DocumentMemory) -> list[tuple[str, int | None]]:
    """(name, page) of what was left out."""
    return [(source["name"], row["page"]) for source in memory.info()["sources"] for row in source["skipped"]]


def test_without_the_option_a_damaged_page_ends_reading(path: Path, model: InfiniModel) -> None:
    path.write_bytes(nasty_pdfs.texts(words(1), DEEP, words(3)))
    with pytest.raises(DamagedSource, match="page 2"):
        DocumentMemory.ingest(path, model=model)


def test_a_damaged_page_is_left_out_and_the_file_says_which_and_why(
    path: Path, model: InfiniModel, tmp_path: Path
) -> None:
    path.write_bytes(nasty_pdfs.texts(words(1), DEEP, words(3)))
    memory = DocumentMemory.ingest(path, model=model, skip_errors=True)
    memory.save(tmp_path / "memory")
    (source,) = DocumentMemory.load(tmp_path / "memory").info()["sources"]
    (row,) = source["skipped"]
    assert row["page"] == 2 and "page 2 of 'paper.pdf' is damaged" in row["reason"]
    assert source["pages"] == 2 and {passage.page for passage in memory.passages} == {1, 3}


def test_a_page_that_takes_too_long_is_left_out_and_those_after_it_are_read(path: Path) -> None:
    path.write_bytes(with_slow_page(7, 4))
    lost: list[Any] = []
    pages = read_pages(open_source(path), limits=IMPATIENT, failed=lambda *what: lost.append(what))
    assert [page.number for page in pages] == [1, 2, 3, 5, 6, 7]
    ((number, reason),) = lost
    assert number == 4 and "page 4 of 'paper.pdf' was given up" in reason


def test_the_rest_reads_as_if_a_lost_page_had_been_left_out_from_the_beginning(path: Path) -> None:
    path.write_bytes(with_slow_page(9, 5))
    source = open_source(path)
    after_loss = list(read_pages(source, limits=IMPATIENT, failed=lambda *what: None))
    assert after_loss == list(read_pages(source, left_out=[5])) and len(after_loss) == 8


def test_a_page_that_is_too_long_is_left_out(path: Path) -> None:
    path.write_bytes(nasty_pdfs.texts(words(1), words(2) * 3, words(3)))
    lost: list[Any] = []
    limits = ReaderLimits(page_characters=2000)
    pages = list(read_pages(open_source(path), limits=limits, failed=lambda *what: lost.append(what)))
    assert [page.number for page in pages] == [1, 3] and [number for number, _ in lost] == [2]


def test_a_file_on_which_too_many_pages_are_lost_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(with_slow_page(6, 2))
    monkeypatch.setattr(parent, "MOST_LOST", 1)
    lost: list[Any] = []
    pages = list(read_pages(open_source(path), limits=IMPATIENT, failed=lambda *what: lost.append(what)))
    assert [number for number, _ in lost] == [2, None] and "the rest of 'paper.pdf' is left out" in lost[1][1]
    assert len(pages) < 5


def test_a_damaged_chapter_is_left_out(tmp_path: Path, model: InfiniModel) -> None:
    path = tmp_path / "book.epub"
    path.write_bytes(nasty_texts.epub(["<p>First words.", "<p>" + "word " * 2_100_000, "<p>Last words."], [0, 1, 2]))
    memory = DocumentMemory.ingest(path, model=model, skip_errors=True)
    assert skipped(memory) == [("book.epub", 2)] and [p.page for p in memory.passages] == [1, 3]


def test_a_file_that_cannot_be_read_is_left_out_and_the_others_are_read(tmp_path: Path, model: InfiniModel) -> None:
    for name, content in (("a.pdf", b"%PDF-1.7\n"), ("b.txt", b"Some words here."), ("c.txt", b""), ("d.html", b"<p>")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedSource):
        DocumentMemory.ingest(sorted(tmp_path.iterdir()), model=model)
    memory = DocumentMemory.ingest(sorted(tmp_path.iterdir()), model=model, skip_errors=True)
    assert skipped(memory) == [("a.pdf", None), ("c.txt", None), ("d.html", None)]
    assert [passage.source for passage in memory.passages] == ["b.txt"]


def test_of_a_directory_all_is_read_that_can_be_and_the_rest_is_named(tmp_path: Path, model: InfiniModel) -> None:
    for name, content in (("a.pdf", b"%PDF-1.7\n"), ("b.txt", b"Some words here."), ("c.png", b"\x89PNG\r\n")):
        (tmp_path / name).write_bytes(content)
    memory = DocumentMemory.ingest(tmp_path, model=model)
    assert skipped(memory) == [("a.pdf", None), ("c.png", None)]
    assert "'c.png' is a PNG image" in memory.info()["sources"][2]["skipped"][0]["reason"]
    (tmp_path / "b.txt").unlink()
    with pytest.raises(EmptySource, match="nothing could be read"):
        DocumentMemory.ingest(tmp_path, model=model)


def test_many_memories_of_a_directory_leave_out_what_cannot_be_read(tmp_path: Path, model: InfiniModel) -> None:
    for name, content in (("a.pdf", b"%PDF-1.7\n"), ("b.txt", b"Some words here."), ("c.png", b"\x89PNG\r\n")):
        (tmp_path / name).write_bytes(content)
    seen: list[str] = []
    memories = DocumentMemory.ingest_many(
        tmp_path, model=model, on_error=lambda path, error: seen.append(path.name), skip_errors=False
    )
    assert [memory.info()["sources"][0]["name"] for memory in memories] == ["b.txt"] and seen == ["a.pdf", "c.png"]
    with pytest.raises(DamagedSource):
        list(DocumentMemory.ingest_many([tmp_path / "a.pdf", tmp_path / "b.txt"], model=model))


def test_a_file_that_vanishes_meanwhile_is_left_out_and_nothing_tells_its_directory(
    tmp_path: Path, model: InfiniModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("Some words here.")
    (tmp_path / "b.txt").write_text("Some more words.")

    def vanishing(path: Path, limits: Any, **settings: Any) -> Any:
        source = open_source(path, limits, **settings)
        if path.name == "b.txt":
            path.unlink()
        return source

    monkeypatch.setattr("infinimem.ingest.stream.open_source", vanishing)
    memory = DocumentMemory.ingest(tmp_path, model=model, skip_errors=True)
    assert skipped(memory) == [("b.txt", None)]
    assert "no file at 'b.txt'" in json.dumps(memory.info()) and str(tmp_path) not in json.dumps(memory.info())


def test_a_name_that_leads_nowhere_is_an_error_all_the_same(tmp_path: Path, model: InfiniModel) -> None:
    with pytest.raises(SourceNotFound):
        DocumentMemory.ingest(tmp_path / "none.pdf", model=model, skip_errors=True)


def test_nothing_but_what_was_left_out_is_an_error(path: Path, model: InfiniModel) -> None:
    path.write_bytes(nasty_pdfs.texts(DEEP, DEEP))
    with pytest.raises(EmptySource, match=r"all of it was skipped: page 1 of 'paper\.pdf' is damaged"):
        DocumentMemory.ingest(path, model=model, skip_errors=True)


def test_a_failed_append_leaves_the_memory_as_it_was(path: Path, model: InfiniModel, tmp_path: Path) -> None:
    path.write_bytes(nasty_pdfs.texts(DEEP))
    memory = DocumentMemory.from_text("Some words here.", model=model)
    memory.save(tmp_path / "before")
    with pytest.raises(EmptySource):
        memory.append(path, skip_errors=True)
    memory.save(tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every piece of text."""
    monkeypatch.setattr(module, "Checkpoint", lambda path: checkpoint.Checkpoint(path, segments=1))
    monkeypatch.setattr(
        "infinimem.ingest.stream.pieces", lambda text: (text[i : i + 120] for i in range(0, len(text), 120))
    )


class Stopped(Exception):
    pass


def read_until(calls: int, monkeypatch: pytest.MonkeyPatch, *sources: Path, **settings: Any) -> bool:
    """Read, and stop after so many pieces; whether it came to that."""
    left, original = calls, checkpoint.Checkpoint.keep

    def keep(self: checkpoint.Checkpoint, *args: Any) -> None:
        nonlocal left
        original(self, *args)
        left -= 1
        if left == 0:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "keep", keep)
        try:
            DocumentMemory.ingest(sources, skip_errors=True, **settings)
        except Stopped:
            return True
    return False


def test_going_on_after_something_was_left_out_gives_the_bytes_of_reading_without_a_break(
    path: Path, tmp_path: Path, model: InfiniModel, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(nasty_pdfs.texts(*map(words, range(1, 4)), DEEP, *map(words, range(5, 9))))
    (tmp_path / "z.pdf").write_bytes(b"%PDF-1.7\n")
    (tmp_path / "zz.txt").write_text("Some words at the end.")
    sources = [path, tmp_path / "z.pdf", tmp_path / "zz.txt"]
    whole, resumed, partial = (tmp_path / name for name in ("whole", "resumed", "partial"))
    DocumentMemory.ingest(sources, model=model, skip_errors=True).save(whole)
    stops = 0
    while read_until(stops + 1, monkeypatch, *sources, model=model, checkpoint=partial):
        stops += 29
        memory = DocumentMemory.ingest(sources, model=model, checkpoint=partial, resume=True, skip_errors=True)
        memory.save(resumed)
        assert resumed.read_bytes() == whole.read_bytes()
    assert stops > 50 and skipped(memory) == [("paper.pdf", 4), ("z.pdf", None)]


def test_going_on_after_a_page_was_lost_with_its_process_gives_the_same_bytes(
    path: Path, tmp_path: Path, model: InfiniModel, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(with_slow_page(8, 4))
    whole, resumed, partial = (tmp_path / name for name in ("whole", "resumed", "partial"))
    DocumentMemory.ingest(path, model=model, skip_errors=True, limits=IMPATIENT).save(whole)
    assert read_until(14, monkeypatch, path, model=model, checkpoint=partial, limits=IMPATIENT)
    # It is not tried again.
    memory = DocumentMemory.ingest(path, model=model, checkpoint=partial, resume=True, skip_errors=True)
    memory.save(resumed)
    assert skipped(memory) == [("paper.pdf", 4)] and resumed.read_bytes() == whole.read_bytes()


def test_going_on_is_refused_where_less_can_be_read_than_before(
    path: Path, tmp_path: Path, model: InfiniModel, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(nasty_pdfs.texts(*map(words, range(1, 9))))
    partial = tmp_path / "partial"
    assert read_until(12, monkeypatch, path, model=model, checkpoint=partial)
    with pytest.raises(CheckpointMismatch, match=r"cannot go on in 'paper\.pdf'"):
        DocumentMemory.ingest(
            path, model=model, checkpoint=partial, resume=True, skip_errors=True,
            limits=ReaderLimits(page_characters=100),
        )  # fmt: skip


# The command line


@pytest.fixture
def ingest(tiny_directory: Path, tmp_path: Path) -> Any:
    """infinimem ingest SOURCE... -o FILE"""

    def run(*arguments: str) -> Result:
        command = ["ingest", *arguments, "-o", str(tmp_path / "memory"), "-m", str(tiny_directory)]
        return CliRunner().invoke(main, command)

    return run


def test_ingest_warns_of_what_it_left_out_and_inspect_shows_it(path: Path, tmp_path: Path, ingest: Any) -> None:
    path.write_bytes(nasty_pdfs.texts(words(1), DEEP, words(3)))
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.7\n")
    refused = ingest(str(path))
    assert refused.exit_code == 1 and "page 2 of 'paper.pdf' is damaged" in refused.stderr
    done = ingest(str(path), str(tmp_path / "b.pdf"), "--skip-errors")
    assert done.exit_code == 0
    assert "Warning: left out page 2 of paper.pdf: " in done.stderr
    assert "Warning: left out what could not be read of b.pdf: " in done.stderr
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "memory")]).stdout
    assert "left out     page 2 of paper.pdf: page 2 of 'paper.pdf' is damaged" in shown
    html = tmp_path / "report.html"
    CliRunner().invoke(main, ["inspect", str(tmp_path / "memory"), "--html", str(html)])
    assert "page 2 of &#x27;paper.pdf&#x27; is damaged" in html.read_text()


def test_ingest_does_not_warn_without_end(path: Path, ingest: Any) -> None:
    path.write_bytes(nasty_pdfs.texts(words(1), *[DEEP] * 30))
    done = ingest(str(path), "--skip-errors")
    assert done.stderr.count("Warning: left out page") == 20
    assert "Warning: left out 10 more; `infinimem inspect` shows all of it." in done.stderr


def test_the_json_of_ingest_and_inspect_has_what_was_left_out(path: Path, tmp_path: Path, ingest: Any) -> None:
    path.write_bytes(nasty_pdfs.texts(words(1), DEEP, words(3)))
    done = json.loads(ingest(str(path), "--skip-errors", "--json").stdout)
    (row,) = done["skipped"]
    assert (row["source"], row["page"]) == ("paper.pdf", 2) and "damaged" in row["reason"]
    shown = json.loads(CliRunner().invoke(main, ["inspect", str(tmp_path / "memory"), "--json"]).stdout)
    assert shown["sources"][0]["skipped"] == [{"page": 2, "reason": row["reason"]}]


def test_limits_can_be_given(path: Path, ingest: Any) -> None:
    path.write_bytes(nasty_pdfs.texts(words(1), words(2), words(3)))
    refused = ingest(str(path), "--limit", "pages=2", "--limit", "memory=2GB")
    assert refused.exit_code == 1 and "has 3 pages, more than the 2" in refused.stderr


@pytest.mark.parametrize("limit", ["pages", "pages=", "pages=x", "pages=0", "pages=1.5", "memory=2XB", "colour=2"])
def test_a_limit_that_is_none_is_wrong_usage(path: Path, ingest: Any, limit: str) -> None:
    path.write_bytes(nasty_pdfs.texts(words(1)))
    wrong = ingest(str(path), "--limit", limit)
    assert wrong.exit_code == 2 and ("not a positive number" in wrong.stderr or "no limit 'colour'" in wrong.stderr)
