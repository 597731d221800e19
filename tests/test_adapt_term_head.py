"""Training of the head that weighs words: what it learns from, how a run goes on, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import TEXT
from test_adapter import make_adapter
from training import write_rows

from infinimem import DocumentMemory
from infinimem.adapt import term_head as module
from infinimem.adapt.config import TermHeadRun
from infinimem.adapt.config_file import parse_config
from infinimem.adapt.term_head import adapt_term_head, bundle, documents, features, loss, scores
from infinimem.cli.main import main
from infinimem.errors import DamagedCheckpoint, InvalidConfig, RunChanged, RunExists, TrainingDataError
from infinimem.model.infini_model import InfiniModel
from infinimem.model.term_head import HeadSettings, TermHead, read_head
from infinimem.search.query import weigh
from infinimem.search.ranking import LearnedRanker
from infinimem.text.term_weights import to_bytes
from infinimem.text.words import spans

NAMES = ("Odile", "Bruno", "Carla", "Dario", "Elena", "Fabio", "Greta", "Hugo", "Irene", "Jonas", "Klara", "Lukas")


def article(number: int) -> dict[str, Any]:
    """Three long paragraphs that share most words; a question about the captain in one of them."""
    name = NAMES[number]
    filler = TEXT * 5
    return {
        "title": f"Ship {number}",
        "paragraphs": [f"{filler} captain", f"The captain was {name}. {filler}", filler],
        "qas": [
            {"question": f"Was {name} the captain?", "answers": [name], "paragraph": 1},
            {"question": f"Which ship had {name}?", "answers": [name], "paragraph": 1},
        ],
    }


@pytest.fixture
def directory(tmp_path: Path, tiny_directory: Path) -> Path:
    write_rows(tmp_path / "articles.jsonl.gz", *(article(number) for number in range(12)))
    single = [
        {"title": "t", "passage": f"{name} sailed. {TEXT}", "question": f"Did {name} sail?", "answers": [name]}
        for name in NAMES
    ]
    write_rows(tmp_path / "single.jsonl.gz", *single)
    make_adapter(tmp_path / "adapted", rule="slots", rule_settings={"slots": 24, "distance": 16}, segment_length=64)
    return tmp_path


def config(directory: Path, tiny_directory: Path, **changes: Any) -> dict[str, Any]:
    head = {"adapter": "adapted", "data": ["articles.jsonl.gz"], "layer": 2, "hidden": 8, "epochs": 3, "lr": 0.01}
    return {"output": "run", "model": str(tiny_directory), "term_weights": {**head, **changes}}


def run_of(directory: Path, tiny_directory: Path, **changes: Any) -> TermHeadRun:
    found = parse_config(config(directory, tiny_directory, **changes), directory)
    assert isinstance(found, TermHeadRun)
    return found


@pytest.fixture
def model(tiny_directory: Path, directory: Path) -> InfiniModel:
    return InfiniModel.from_pretrained(tiny_directory, adapter=directory / "adapted")


def test_scores_are_those_of_the_ranker(model: InfiniModel, directory: Path) -> None:
    (document, *_) = documents([directory / "articles.jsonl.gz"], 10**6, model, 0)
    one = bundle(document, features(model, document, 2, 9, random.Random(0)))
    torch.manual_seed(1)
    head = TermHead(HeadSettings(2, 64, 8)).requires_grad_(False)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found = scores(head, one, one.asked)
    weights, at, given = head.passage(one.words), 0, []
    for passage in document.passages:
        size = len(spans(passage.text))
        given.append(to_bytes(weights[at : at + size].tolist()))
        at += size
    weighed = {asked.text: head.question(asked.inputs).tolist() for asked in one.asked}
    ranker = LearnedRanker(document.passages, given, weighed.__getitem__)
    for row, asked in zip(found, one.asked, strict=True):
        assert np.allclose(row, ranker.scores(asked.text), atol=0.15)
    expected = -torch.stack(
        [row.log_softmax(-1)[asked.right].logsumexp(-1) for row, asked in zip(found, one.asked, strict=True)]
    ).mean()
    assert loss(head, one, one.asked) == pytest.approx(float(expected), rel=1e-5)


def test_features_are_what_reading_weighs(model: InfiniModel, directory: Path) -> None:
    """The head gives words the same weights in training and in use."""
    (document, *_) = documents([directory / "articles.jsonl.gz"], 10**6, model, 0)
    found = features(model, document, 2, 9, random.Random(0))
    torch.manual_seed(1)
    head = TermHead(HeadSettings(2, 64, 8)).requires_grad_(False)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.use_term_head(head)
    memory = DocumentMemory.from_text("\n\n".join(document.paragraphs), name=document.title, model=model)
    assert [p.text for p in memory.passages] == [p.text for p in document.passages]
    trained = head.passage(torch.from_numpy(found["words"]))
    used = np.frombuffer(b"".join(memory.term_weights() or []), np.uint8) / 32
    assert np.abs(trained.clamp(0, 255 / 32).numpy() - used).max() < 0.05
    (question, *_) = (document.questions[index] for index in found["asked"])
    size = len(spans(question.text))
    weights = head.question(torch.from_numpy(found["questions"][:size]))
    assert np.allclose(weights, weigh(model, question.text), atol=0.01)


def test_a_run_learns_and_leaves_the_adapter_as_it_was(directory: Path, tiny_directory: Path) -> None:
    result = adapt_term_head(run_of(directory, tiny_directory, data=["articles.jsonl.gz"], epochs=8))
    assert result["finished"] and result["documents"] == 12 and result["questions"] == 24
    assert result["losses"][-1] < result["losses"][0]
    for file in ("adapter_config.json", "adapter_model.safetensors", "memory.safetensors"):
        assert (directory / "run" / "adapter" / file).read_bytes() == (directory / "adapted" / file).read_bytes()
    head = read_head(directory / "run" / "adapter")
    assert head is not None and head.settings.layer == 2 and 0 <= head.settings.least < 9
    assert result["apart"]["refused"] <= 0.05 + 1 / result["apart"]["questions"]
    memory = DocumentMemory.from_text(
        "\n\n".join(article(3)["paragraphs"]), model=tiny_directory, adapter=directory / "run" / "adapter"
    )
    assert "Dario" in memory.retrieve("Was Dario the captain?", 1, rank_by="learned")[0].text


def test_a_stopped_run_goes_on_without_reading_again(
    directory: Path, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(directory, tiny_directory)
    assert adapt_term_head(run, minutes=0) == {"finished": False, "documents": 0, "output": str(directory / "run")}
    with pytest.raises(RunExists, match="--resume"):
        adapt_term_head(run)
    first = adapt_term_head(run, resume=True)

    def fail(*args: Any) -> Any:
        raise AssertionError("a document was read twice")

    monkeypatch.setattr(module, "features", fail)
    written = (directory / "run" / "adapter" / "term_weights.safetensors").read_bytes()
    again = adapt_term_head(run, resume=True)
    assert (directory / "run" / "adapter" / "term_weights.safetensors").read_bytes() == written
    assert again["losses"] == first["losses"]


def test_single_paragraphs_are_put_together(model: InfiniModel, directory: Path) -> None:
    paths = [directory / "single.jsonl.gz", directory / "articles.jsonl.gz"]
    found = documents(paths, 10**6, model, 0)
    assert [len(document.paragraphs) for document in found] == [12] + [3] * 12
    together = found[0]
    for question in together.questions:
        (paragraph,) = question.paragraphs
        assert question.answers[0] in together.paragraphs[paragraph]


def test_a_file_gives_no_more_tokens_than_asked_for(model: InfiniModel, directory: Path) -> None:
    sizes = [len(documents([directory / "articles.jsonl.gz"] * 12, tokens, model, 0)) for tokens in (1, 10**6)]
    assert sizes == [12, 144]
    with pytest.raises(TrainingDataError, match="at least 10"):
        documents([directory / "articles.jsonl.gz"], 1, model, 0)


@pytest.mark.parametrize(("changes", "named"), [({"layer": 1}, "layer"), ({"tokens": 9}, "tokens"), ({}, "data.0")])
def test_what_was_read_for_another_run_is_not_used(
    directory: Path, tiny_directory: Path, changes: dict[str, Any], named: str
) -> None:
    adapt_term_head(run_of(directory, tiny_directory), minutes=0)
    if not changes:
        write_rows(directory / "articles.jsonl.gz", *(article(number) for number in range(11, -1, -1)))
    with pytest.raises(RunChanged, match=named):
        adapt_term_head(run_of(directory, tiny_directory, **changes), resume=True)
    (directory / "run" / "features" / "setup.json").write_text("{")
    with pytest.raises(DamagedCheckpoint, match="begin anew"):
        adapt_term_head(run_of(directory, tiny_directory), resume=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": []}, "term_weights.data"),
        ({"layer": -1}, "term_weights.layer"),
        ({"lr": 0}, "term_weights.lr"),
        ({"layers": 3}, "term_weights.layers"),
        ({"adapter": 3}, "term_weights.adapter"),
        ({"adapter": "none"}, "term_weights.adapter"),
    ],
)
def test_a_wrong_configuration_names_the_field(
    directory: Path, tiny_directory: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidConfig, match=named.replace(".", r"\.")):
        adapt_term_head(run_of(directory, tiny_directory, **changes))
    with pytest.raises(InvalidConfig, match="stages"):
        parse_config({**config(directory, tiny_directory), "stages": []}, directory)


def test_the_command_trains_what_the_file_says(directory: Path, tiny_directory: Path) -> None:
    table = config(directory, tiny_directory)
    lines = [f"output = {json.dumps(table['output'])}", f"model = {json.dumps(table['model'])}", "[term_weights]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in table["term_weights"].items()]
    (directory / "run.toml").write_text("\n".join(lines))
    result = CliRunner().invoke(main, ["adapt", str(directory / "run.toml")])
    assert result.exit_code == 0 and "12 documents and 24 questions" in result.output
    stopped = CliRunner().invoke(main, ["adapt", str(directory / "run.toml"), "--resume", "--json"])
    assert json.loads(stopped.output)["finished"]
