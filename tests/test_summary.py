"""Scores of summaries: which layouts are read, what is compared, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from conftest import TEXT
from rouge_score.rouge_scorer import RougeScorer

from infinimem import DocumentMemory
from infinimem.answering.rows import generate
from infinimem.cli.main import main
from infinimem.datasets.documents import Document
from infinimem.datasets.summaries import Request, read_summaries
from infinimem.errors import InvalidSetting, RougeMissing, SourceNotFound, UnsupportedSource
from infinimem.evaluate import summary as module
from infinimem.evaluate.summary import ROUGE, summary

if TYPE_CHECKING:
    from conftest import MakeModel

STORY = {
    "id": "s1",
    "document": TEXT * 6,
    "questions": [
        {"question": "What is the plot?", "summaries": ["A keeper counts ships.", "Fog comes."]},
        {"question": "What about the fog?", "summary": "The fog came from the north."},
    ],
}
MEETING = {
    "document": "Ann: we begin.\nBob: we shall buy a boat.",
    "general": [{"question": "Summarize the meeting.", "summary": "A boat will be bought."}],
    "specific": [{"question": "What did Bob say?", "summary": "He wants a boat."}],
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_both_layouts_are_read(tmp_path: Path) -> None:
    story, meeting = read_summaries(write(tmp_path / "d.jsonl", STORY, MEETING))
    assert story.title == "s1" and [request.focus for request in story.questions] == [None, "What about the fog?"]
    assert story.questions[0].summaries == ("A keeper counts ships.", "Fog comes.")
    assert [(r.focus, r.summaries) for r in meeting.questions] == [
        (None, ("A boat will be bought.",)),
        ("What did Bob say?", ("He wants a boat.",)),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"document": TEXT},
        {"document": " ", "questions": STORY["questions"]},
        {"document": TEXT, "questions": [{"question": "What?", "summaries": []}]},
        {"document": TEXT, "questions": [{"question": "What?", "summary": " "}]},
        {"questions": STORY["questions"]},
        {"document": TEXT, "questions": []},
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSource, match="line 1"):
        read_summaries(write(tmp_path / "d.jsonl", row))
    with pytest.raises(SourceNotFound):
        read_summaries(tmp_path / "nowhere.jsonl")


def test_every_system_writes_what_it_says(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(segment_length=64)
    documents = read_summaries(write(tmp_path / "d.jsonl", STORY))
    result = summary(model, documents, max_new_tokens=12)
    assert result["documents"] == 1 and result["summaries"] == 2
    texts = {(row["system"], row["focus"]): row["summary"] for row in result["written"]}
    lead = model.tokenizer.decode(model.encoder.encode(STORY["document"])[:12])  # type: ignore[arg-type]
    assert texts["lead", None] == texts["lead", "What about the fog?"] == lead
    memory = DocumentMemory.from_text(str(STORY["document"]), name="s1", model=model)
    for request in documents[0].questions:
        assert texts["infinimem", request.focus] == memory.summarize(request.focus, max_new_tokens=12).text
    for row in result["written"]:
        references = next(r.summaries for r in documents[0].questions if r.focus == row["focus"])
        expected = RougeScorer(list(ROUGE), use_stemmer=True).score_multi(list(references), row["summary"])
        assert {kind: row[kind] for kind in ROUGE} == {kind: expected[kind].fmeasure for kind in ROUGE}
    for name, scores in result["systems"].items():
        rows = [row for row in result["written"] if row["system"] == name]
        assert all(scores[kind] == pytest.approx(sum(row[kind] for row in rows) / 2) for kind in ROUGE)
    gain = result["systems"]["infinimem"]["rouge1"] - result["systems"]["lead"]["rouge1"]
    assert result["differences"]["infinimem-lead"]["rouge1"] == pytest.approx(gain)


def test_a_long_document_is_truncated_to_the_context(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    seen: list[int] = []

    def watch(model: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(map(len, prompts))
        return generate(model, prompts, *args, **kwargs)

    monkeypatch.setattr("infinimem.answering.rows.generate", watch)
    documents = [Document("long", TEXT * 200, (Request(None, ("Ships.",)),))]
    summary(model, documents, systems=["truncated"], max_new_tokens=8)
    assert len(seen) == 1 and model.context_length - 8 - 80 <= seen[0] <= model.context_length - 8


def test_the_bare_model_is_the_base_without_its_adapter(tiny_directory: Path, tmp_path: Path) -> None:
    from test_adapter import make_adapter

    from infinimem.model.infini_model import InfiniModel

    adapted = InfiniModel.from_pretrained(tiny_directory, adapter=make_adapter(tmp_path / "a"))
    bare = module._bare(adapted)
    assert bare.adapter_hash == "none" and bare.name == adapted.name
    assert module._bare(bare) is bare


@pytest.mark.parametrize("changes", [{"systems": ["magic"]}, {"systems": []}, {"limit": 0}])
def test_impossible_settings_are_refused(make_model: MakeModel, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        summary(make_model(), [Document("d", TEXT, (Request(None, ("Ships.",)),))], **changes)


def test_a_missing_scorer_is_named(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(RougeMissing, match=r"pip install 'infinimem\[eval\]'"):
        summary(make_model(), [Document("d", TEXT, (Request(None, ("Ships.",)),))])


def test_the_command_prints_scores(tiny_directory: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", STORY, MEETING)
    options = ["eval", "summary", str(data), "--model", str(tiny_directory), "--max-new-tokens", "6", "--limit", "2"]
    plain = CliRunner().invoke(main, options)
    assert plain.exit_code == 0 and "lead      ROUGE-1" in plain.output
    found = json.loads(CliRunner().invoke(main, [*options, "--json", "--systems", "lead"]).output)
    assert found["documents"] == 2 and set(found["systems"]["lead"]) >= set(ROUGE)
