"""The whole job with the embedded model, as a user sees it: the sample handbook in, answers with pages out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infinimem import DocumentMemory
from infinimem.evaluate.passkey import passkey
from infinimem.model.infini_model import InfiniModel
from infinimem.readers import open_source, read_pages

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def handbook(embedded: InfiniModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of the whole handbook."""
    path = tmp_path_factory.mktemp("memory") / "handbook.safetensors"
    DocumentMemory.ingest(EXAMPLES / "handbook.pdf", model=embedded).save(path)
    return path


def questions() -> list[dict]:
    return [json.loads(line) for line in (EXAMPLES / "handbook_questions.jsonl").read_text("utf-8").splitlines()]


def test_the_page_that_answers_is_among_four_passages_for_most_questions(handbook: Path) -> None:
    memory = DocumentMemory.load(handbook)
    found = [q["page"] in [p.page for p in memory.retrieve(q["question"], 4)] for q in questions()]
    assert sum(found) >= 22, sum(found)


def test_a_new_process_answers_from_the_file_with_the_right_page(handbook: Path) -> None:
    command = [sys.executable, "-m", "infinimem", "ask", str(handbook), "What is the violet ink made of?", "--json"]
    result = subprocess.run([*command, "--max-new-tokens", "24"], capture_output=True, text=True, check=True)
    answer = json.loads(result.stdout)
    assert result.stderr == "" and "glycerine" in answer["answer"].lower() and answer["found"]
    page = next(q["page"] for q in questions() if "violet ink" in q["question"])
    assert page in [p["page"] for p in answer["passages"]]


def test_none_is_the_bare_model_for_every_way_of_making_a_memory() -> None:
    bare = DocumentMemory.from_text("A short tale of the sea.", adapter="none")
    assert bare.model.adapter_name == "none" and bare.model.term_head is None
    assert bare.model.answering_model is bare.model
    assert DocumentMemory.from_text("A short tale.").model.adapter_name != "none"


def test_the_reloaded_memory_continues_with_the_same_tokens(handbook: Path, embedded: InfiniModel) -> None:
    first = DocumentMemory.load(handbook, model=embedded)
    again = DocumentMemory.load(handbook, model=embedded)
    texts = {m.ask("Where is the tide gauge?", answer_from="memory", max_new_tokens=12).text for m in (first, again)}
    assert len(texts) == 1 and texts != {""}


def test_the_memory_has_the_same_size_as_that_of_a_short_text(handbook: Path, embedded: InfiniModel) -> None:
    # With its passages, a document as short as this is kept as its tokens.
    short = DocumentMemory.from_text("A short tale of the sea. " * 400, model=embedded, passages=False)
    assert short.info()["memory_bytes"] == DocumentMemory.load(handbook).info()["memory_bytes"] > 0


def test_a_document_of_three_pages_takes_no_more_room_than_its_text(embedded: InfiniModel, tmp_path: Path) -> None:
    pages = [page.text for page in read_pages(open_source(EXAMPLES / "handbook.pdf"))]
    text = "\n\n".join(pages[12:15])
    size = DocumentMemory.from_text(text, model=embedded).save(tmp_path / "m")
    assert len(text) > 7000 and size < 50_000
    loaded = DocumentMemory.load(tmp_path / "m", model=embedded)
    assert loaded.complete_memory().states().keys() == set(range(embedded.num_layers))


@pytest.mark.slow
def test_twenty_documents_of_some_kilobytes_take_at_most_six_megabytes(embedded: InfiniModel, tmp_path: Path) -> None:
    text = "\n\n".join(page.text for page in read_pages(open_source(EXAMPLES / "handbook.pdf")))
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(text[number * 2500 : (number + 1) * 2500], encoding="utf-8")
    made = list(DocumentMemory.ingest_many(tmp_path, model=embedded, output=tmp_path / "memories"))
    sizes = [path.stat().st_size for path in (tmp_path / "memories").iterdir()]
    # Of more than one segment each: a single unfinished segment takes no room in any case.
    assert len(sizes) == 20 and sum(sizes) <= 6e6 and min(memory.info()["tokens"] for memory in made) > 512


def test_passkeys_in_repeated_filler_come_back_without_training(embedded: InfiniModel) -> None:
    result = passkey(embedded, 2048)
    assert result["accuracy"] == {"0.0": 1.0, "0.5": 1.0, "1.0": 1.0}, result["answers"]


@pytest.mark.slow
@pytest.mark.parametrize("slots", [256, 512])
@pytest.mark.parametrize("tokens", [4096, 32768])
def test_passkeys_come_back_from_all_depths(slots: int, tokens: int) -> None:
    result = passkey(InfiniModel.from_pretrained(rule_settings={"slots": slots}), tokens)
    assert set(result["accuracy"].values()) == {1.0}, result["answers"]


def test_the_questions_of_the_handbook_fit_its_pages() -> None:
    script = EXAMPLES / "make_handbook.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
