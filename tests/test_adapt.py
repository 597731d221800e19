"""Training of an adapter: configuration, data, samples, gradients through the memory, the loop and its resumption."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import TEXT, MakeModel, random_tokens
from safetensors.torch import load_file

from infinimem.adapt import train as train_module
from infinimem.adapt.config import OBJECTIVES, AdaptConfig, parse_config, read_config
from infinimem.adapt.data import Books, read_questions, read_stories
from infinimem.adapt.facts import FAMILIES, invent
from infinimem.adapt.lora import LoraLayers
from infinimem.adapt.objectives import Mixture
from infinimem.adapt.recurrence import backward, blocks, groups, read_block
from infinimem.adapt.samples import Bench, Sample, Segment
from infinimem.adapt.train import Trainer, adapt
from infinimem.cli import main
from infinimem.errors import (
    DamagedCheckpoint,
    InvalidConfig,
    NothingToResume,
    RunChanged,
    RunExists,
    TrainingDataError,
    TrainingDiverged,
)
from infinimem.model import InfiniModel
from infinimem.prompts import encode_chat, memory_messages

WORDS = (TEXT * 2).replace(",", "").replace(".", "").split()
BOOK = "\n\n".join(
    " ".join(random.Random(f"{p}.{s}").choices(WORDS, k=9)).capitalize() + "." + (" " if s % 4 else "\n\n")
    for p in range(60)
    for s in range(4)
)
QA = {
    "title": "Ships",
    "paragraphs": [TEXT, "The captain of the Heron was Odile. " + TEXT, TEXT * 2],
    "qas": [{"id": "1", "question": "Who was the captain of the Heron?", "answers": ["Odile"], "paragraph": 1}],
}
TALE = {
    "title": "A tale",
    "paragraphs": ["The fox ran home.", "It slept all day."],
    "qas": [{"question": "What did the fox do?", "answers": ["It went to sleep at home"], "paragraphs": [0, 1]}],
}
SINGLE = {
    "title": "Fog",
    "passage": "The fog came on Tuesday.",
    "question": "when came the fog",
    "answers": ["Tuesday"],
}
PAPER = {
    "title": "Paper",
    "document": "First part.\n\nThe virus is old.\n\nLast part.",
    "qas": [{"question": "How is the virus?", "answers": ["old"], "answer_start": [26]}],
}
STORY = {
    "task": "qa1",
    "sentences": ["Mary went home.", "John went out.", "Mary went out."],
    "qas": [{"question": "Where is Mary?", "answer": "home", "after": 2}],
}


def write_rows(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("training")
    write_rows(directory / "books.jsonl.gz", {"text": BOOK}, {"text": BOOK[::-1].replace(".", ". ")})
    write_rows(directory / "squad.jsonl.gz", QA)
    write_rows(directory / "tales.jsonl.gz", TALE)
    singles = [{**SINGLE, "passage": f"The fog came on day {n}.", "answers": [f"day {n}"]} for n in range(12)]
    write_rows(directory / "singles.jsonl.gz", *singles)
    write_rows(directory / "papers.jsonl.gz", PAPER)
    write_rows(directory / "babi.jsonl.gz", STORY, {**STORY, "task": "qa2"})
    return directory


ALL = [
    {"kind": "lm", "books": "books.jsonl.gz"},
    {"kind": "repeat", "books": "books.jsonl.gz", "words": 8},
    {"kind": "needles", "books": "books.jsonl.gz", "most": 2},
    {"kind": "qa", "data": ["squad.jsonl.gz", "tales.jsonl.gz", "singles.jsonl.gz", "papers.jsonl.gz"], "beside": 0.3},
    {"kind": "babi", "books": "books.jsonl.gz", "data": "babi.jsonl.gz"},
]


def table(**changes: Any) -> dict[str, Any]:
    """A small configuration for the tiny model; `train__batch=1` and the like change a setting of a table."""
    made: dict[str, Any] = {
        "output": "run",
        "seed": 3,
        "model": {"rule": "slots", "rule_settings": {"slots": 24, "distance": 16}, "segment_length": 160},
        "lora": {"rank": 4, "alpha": 8.0, "lr": 0.01},
        "train": {"batch": 2, "warmup": 2, "save_steps": 3},
        "stages": [{"segments": 2, "steps": 5}, {"segments": 3, "steps": 3}],
        "objectives": ALL,
    }
    for name, value in changes.items():
        where, _, inner = name.partition("__")
        made[where] = {**made.get(where, {}), inner: value} if inner else value
    return made


@pytest.fixture
def configured(data: Path, tmp_path: Path, tiny_directory: Path) -> Callable[..., AdaptConfig]:
    """Builds a configuration with its data and a place of its own for the output."""

    def make(**changes: Any) -> AdaptConfig:
        settings = {"output": str(tmp_path / "run"), "model__name": str(tiny_directory), **changes}
        return parse_config(table(**settings), data)

    return make


# Configuration


def test_a_configuration_has_the_values_of_its_file_and_defaults_for_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        'output = "out"\n[lora]\nrank = 8\nlr = 1\n[[stages]]\nsegments = 2\nsteps = 10\n[[stages]]\nsegments = 4\n'
        'steps = 5\n[[objectives]]\nkind = "lm"\nbooks = "b.jsonl"\nweight = 2\n'
    )
    config = read_config(tmp_path / "a.toml")
    assert (config.lora.rank, config.lora.lr, config.lora.alpha, config.gates.lr) == (8, 1.0, 32.0, 0.01)
    assert config.steps == 15 and [config.stage(step) for step in (0, 9, 10, 14)] == [0, 0, 1, 1]
    assert config.path("b.jsonl") == tmp_path / "b.jsonl" and config.data_files() == ["b.jsonl"]
    assert type(config.objectives[0]) is OBJECTIVES["lm"] and config.objectives[0].weight == 2.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora__rnk": 3}, "lora.rnk; did you mean rank"),
        ({"colour": 3}, "no setting colour"),
        ({"lora__rank": 0}, "lora.rank is 0, but must be at least 1"),
        ({"lora__rank": 1.5}, "lora.rank is 1.5, but must be a whole number"),
        ({"lora__rank": True}, "lora.rank is True"),
        ({"lora__lr": 0.0}, "lora.lr is 0.0, but must be more than 0"),
        ({"lora__lr": float("nan")}, "lora.lr is nan, but must be finite"),
        ({"lora__targets": "q_proj"}, "lora.targets is 'q_proj', but must be a list"),
        ({"lora__targets": []}, "lora.targets is empty"),
        ({"lora__targets": [1]}, r"lora.targets\[0\] is 1, but must be a text"),
        ({"train__checkpointing": 1}, "train.checkpointing is 1, but must be true or false"),
        ({"model__rule": "magic"}, "model.rule is 'magic'; choose one of slots"),
        ({"model": 3}, "model is 3, but must be a table"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"output": None}, "output is None"),
        ({"stages": []}, "no stages"),
        ({"stages": [{"segments": 2}]}, r"stages\[0\].steps is missing"),
        ({"stages": [{"segments": 1, "steps": 1}]}, r"stages\[0\].segments is 1"),
        ({"objectives": [{"kind": "magic"}]}, r"objectives\[0\].kind is 'magic'; choose one of lm"),
        ({"objectives": [{"kind": "lm"}]}, r"objectives\[0\].books is missing"),
        ({"objectives": [{"kind": "lm", "books": "b", "weight": 0}]}, r"objectives\[0\].weight is 0"),
        ({"objectives": [{"kind": "lm", "books": "b", "words": 3}]}, r"no setting objectives\[0\].words"),
        ({"objectives": [{"kind": "qa", "data": ["b"], "reading": 1.2}]}, "reading is 1.2, but must be at most 1"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidConfig, match=says) as caught:
        parse_config(table(**changes), Path())
    assert "\n" not in str(caught.value)


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("output = ")
    for path, says in ((tmp_path / "a.toml", "not TOML"), (tmp_path / "none", "no configuration"), (tmp_path, "read")):
        with pytest.raises(InvalidConfig, match=says):
            read_config(path)


def test_the_example_configuration_is_valid() -> None:
    config = read_config(Path(__file__).parents[1] / "examples" / "adapt.toml")
    assert [stage.segments for stage in config.stages] == [2, 4, 8, 16]
    assert {objective.kind for objective in config.objectives} == set(OBJECTIVES)


# Data


def test_every_layout_of_questions_points_at_the_right_paragraph(data: Path) -> None:
    for name, expected in (("squad", [1]), ("tales", [0, 1]), ("papers", [1])):
        (document,) = read_questions(data / f"{name}.jsonl.gz")
        (question,) = document.questions
        assert question.paragraphs == expected
        right = [document.passages()[0][i].text for i in document.right(question)]
        assert right and all(document.paragraphs[expected[0]][:9] in text for text in right)
    assert len(read_questions(data / "singles.jsonl.gz")) == 12


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no rows"),
        ([[1]], "line 1 of .* no JSON object"),
        ([{"paragraphs": ["a"]}], "'qas'"),
        ([{"paragraphs": "a", "qas": []}], "'paragraphs'"),
        ([{"paragraphs": [1], "qas": [{}]}], r"'paragraphs' \(list of str\)"),
        ([QA, {**QA, "qas": [{"question": "Who?", "answers": []}]}], "line 2 of .* 'answers'"),
        ([{**QA, "qas": [{"question": "Who?", "answers": ["x"], "paragraph": 7}]}], "not there: 'Who"),
        ([{**PAPER, "qas": [{"question": "Who?", "answers": ["x"], "answer_start": [999]}]}], "not there"),
    ],
)
def test_questions_in_no_known_layout_are_refused(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(TrainingDataError, match=says):
        read_questions(write_rows(tmp_path / "q.jsonl.gz", *rows))


def test_data_files_that_cannot_be_read_are_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": \n')
    (tmp_path / "cut.jsonl.gz").write_bytes((data / "books.jsonl.gz").read_bytes()[:200])
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, says in (("none", "no data file"), ("broken", "JSON Lines"), ("cut", "restore"), ("empty", "no rows")):
        with pytest.raises(TrainingDataError, match=says):
            Books(next(tmp_path.glob(f"{name}*"), tmp_path / name))
    with pytest.raises(TrainingDataError, match="'text'"):
        Books(data / "squad.jsonl.gz")
    with pytest.raises(TrainingDataError, match="tasks qa1, qa2"):
        read_stories(data / "babi.jsonl.gz", ("qa1", "qa3"))
    late = {**STORY, "qas": [{"question": "Who?", "answer": "x", "after": 9}]}
    with pytest.raises(TrainingDataError, match="after 9 of 3"):
        read_stories(write_rows(tmp_path / "late.jsonl.gz", late), ())


def test_prose_has_as_many_tokens_as_asked_for_also_beyond_a_books_end(make_model: MakeModel, data: Path) -> None:
    bench, books = Bench(make_model()), Books(data / "books.jsonl.gz")
    for count in (1, 100, 30_000):
        tokens = books.tokens(bench, random.Random(count), count)
        assert len(tokens) == count
    text = bench.decode(books.tokens(bench, random.Random(1), 200))
    assert any(text in whole for whole in books.texts)


# Samples


def mixture(model: InfiniModel, data: Path, *objectives: dict[str, Any], segments: int = 3, **changes: Any) -> Mixture:
    settings = {"objectives": list(objectives), "stages": [{"segments": segments, "steps": 10}], **changes}
    config = parse_config(table(**settings), data)
    return Mixture(config, Bench(model, config.train.cuts))


def asked(sample: Sample, bench: Bench) -> tuple[str, str, str]:
    """The document, the prompt and the answer of a sample, decoded; the loss is on the answer alone."""
    *document, last = sample.segments
    assert last.prompt and not any(any(segment.mask) or segment.prompt for segment in document)
    start = last.mask.index(True)
    assert all(last.mask[start:])
    text = "".join(bench.decode(segment.tokens) for segment in document)
    return text, bench.decode(last.tokens[:start]), bench.decode(last.tokens[start:])


def test_lm_has_loss_from_the_second_segment_on_and_never_at_a_first_token(make_model: MakeModel, data: Path) -> None:
    model = make_model(segment_length=64)
    sample = mixture(model, data, ALL[0]).sample(0, 0)
    first, *rest = sample.segments
    assert len(rest) == 2 and not any(first.mask) and not any(segment.prompt for segment in sample.segments)
    assert all(segment.mask == [False] + [True] * (len(segment.tokens) - 1) for segment in rest)
    tokens = [token for segment in sample.segments for token in segment.tokens]
    assert [segment.tokens for segment in sample.segments] == list(model.segmenter.split(tokens))[:3]
    fixed = mixture(model, data, ALL[0], train__cuts="fixed").sample(0, 0)
    assert [len(segment.tokens) for segment in fixed.segments] == [64, 64, 64]


@pytest.mark.parametrize("raw", [0.0, 1.0])
def test_repeat_asks_for_what_the_document_says(make_model: MakeModel, data: Path, raw: float) -> None:
    model = make_model(segment_length=160)
    drawn = mixture(model, data, {**ALL[1], "raw": raw})
    for step in range(5):
        document, prompt, answer = asked(drawn.sample(step, 0), Bench(model))
        answer = answer.removesuffix("<|im_end|>").strip()
        said = " ".join(document.split())
        assert answer and said.count(answer) >= 1
        cue = prompt if raw else prompt.split('"')[1]
        assert f"{cue} {answer}" in said


@pytest.mark.parametrize("raw", [0.0, 1.0])
def test_needles_stand_whole_in_one_segment_and_are_asked_for(make_model: MakeModel, data: Path, raw: float) -> None:
    model = make_model(segment_length=200)
    bench = Bench(model)
    drawn = mixture(model, data, {**ALL[2], "most": 3, "raw": raw})
    for step in range(6):
        sample = drawn.sample(step, 0)
        document, prompt, answer = asked(sample, bench)
        assert len(sample.segments) == 4
        wanted = answer.removesuffix("<|im_end|>").strip()
        parts = [bench.decode(segment.tokens) for segment in sample.segments[:-1]]
        assert sum(wanted in part for part in parts) >= 1 and wanted in document
        assert prompt.startswith("<|im_start|>system") is (raw == 0.0)
        if raw == 0.0:
            question = prompt.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
            assert sample.segments[-1].tokens[: sample.segments[-1].mask.index(True)] == encode_chat(
                model, memory_messages(question)
            )
            assert answer.endswith("<|im_end|>")


def test_facts_of_a_document_cannot_be_confused() -> None:
    for seed in range(200):
        facts = invent(random.Random(seed), 4)
        assert len({fact.cue for fact in facts}) == len({fact.question for fact in facts}) == 4
        assert all(fact.answer in fact.statement and fact.answer not in fact.question for fact in facts)
    assert all("{value}" in statement for _, statements, _, _ in FAMILIES for statement in statements)


def test_hidden_pieces_keep_their_order_and_the_lengths_of_the_segments(make_model: MakeModel) -> None:
    bench = Bench(make_model(segment_length=64))
    parts = bench.cut(bench.encode(TEXT * 2))
    pieces = [[400 + n] * 9 for n in range(7)]
    hidden = bench.hide(parts, pieces, random.Random(0))
    assert hidden is not None and [len(part) for part in hidden] == [len(part) for part in parts]
    assert [t for part in hidden for t in part if t in range(400, 407)] == [t for piece in pieces for t in piece]
    assert bench.hide(parts, [[1] * 65], random.Random(0)) is None
    full = bench.hide([[7] * 20] * 3, [[n] * 10 for n in range(100, 106)], random.Random(0))
    assert full == [[100] * 10 + [101] * 10, [102] * 10 + [103] * 10, [104] * 10 + [105] * 10]


def test_babi_tells_the_facts_in_order_up_to_the_question(make_model: MakeModel, data: Path) -> None:
    model = make_model(segment_length=160)
    for step in range(4):
        document, prompt, answer = asked(mixture(model, data, ALL[4]).sample(step, 0), Bench(model))
        assert document.index("Mary went home.") < document.index("John went out.") and "Mary went out" not in document
        assert "Where is Mary?" in prompt and answer == "home<|im_end|>"


def test_questions_to_the_memory_come_after_a_document_with_the_answer(make_model: MakeModel, data: Path) -> None:
    model = make_model(segment_length=160)
    for file, answer in (("squad", "Odile"), ("singles", "day "), ("papers", "old"), ("tales", "It went to sleep")):
        drawn = mixture(model, data, {"kind": "qa", "data": [f"{file}.jsonl.gz"], "reading": 0.0})
        for step in range(4):
            sample = drawn.sample(step, 0)
            document, prompt, said = asked(sample, Bench(model))
            assert sample.kind == "qa.memory" and said.startswith(answer) and "Excerpts" not in prompt
            assert file == "tales" or said.removesuffix("<|im_end|>") in document
            assert 1 <= len(sample.segments) - 1 <= 4


def test_questions_for_reading_show_the_right_passage_and_no_memory(make_model: MakeModel, data: Path) -> None:
    model = make_model(segment_length=160)
    for file in ("squad", "singles", "papers"):
        drawn = mixture(model, data, {"kind": "qa", "data": [f"{file}.jsonl.gz"], "reading": 1.0})
        shown = []
        for step in range(8):
            sample = drawn.sample(step, 0)
            document, prompt, said = asked(sample, Bench(model))
            assert sample.kind == "qa.reading" and document == "" and said.removesuffix("<|im_end|>") in prompt
            shown.append(prompt.count("(page 1)"))
        assert max(shown) <= 4 and (max(shown) > 1 or file == "papers")
    both = mixture(model, data, {"kind": "qa", "data": ["squad.jsonl.gz"], "reading": 1.0, "beside": 1.0}).sample(0, 0)
    assert len(both.segments) > 1 and "Odile" in asked(both, Bench(model))[0]


def test_samples_depend_on_seed_step_and_index_alone(make_model: MakeModel, data: Path) -> None:
    model = make_model(segment_length=160)
    one, two, other = (mixture(model, data, *ALL, seed=seed) for seed in (3, 3, 4))
    places = [(step, index) for step in range(3) for index in range(4)]
    drawn = [one.sample(*place) for place in places]
    assert [two.sample(*place) for place in reversed(places)] == drawn[::-1]
    assert [other.sample(*place) for place in places] != drawn
    assert len({str(sample) for sample in drawn}) == len(places)
    kinds = {one.sample(step, 0).kind for step in range(60)}
    assert kinds == {"lm", "repeat", "needles", "qa.memory", "qa.reading", "babi"}


def test_weights_decide_how_often_an_objective_comes(make_model: MakeModel, data: Path) -> None:
    drawn = mixture(make_model(segment_length=64), data, {**ALL[0], "weight": 9.0}, ALL[4])
    kinds = [drawn.sample(step, 0).kind for step in range(200)]
    assert 0.84 < kinds.count("lm") / len(kinds) < 0.96


# Gradients


def sample_of(*lengths: int, seed: int = 0, loss: str = "last", prompt: bool = True) -> Sample:
    """Segments of random tokens; loss on the last four tokens of the last segment, or of all."""
    made = []
    for number, length in enumerate(lengths):
        last = number == len(lengths) - 1
        tokens = random_tokens(1, length, seed=seed * 100 + number)[0].tolist()
        on = last or loss == "all"
        made.append(Segment(tokens, [on and place >= length - 4 for place in range(length)], prompt=prompt and last))
    return Sample("test", made)


def trained(model: InfiniModel, rank: int = 4) -> dict[str, torch.nn.Parameter]:
    """LoRA with a B that is not zero, and the gates."""
    model.model.requires_grad_(False)
    lora = LoraLayers(model.model, ("q_proj", "k_proj", "v_proj", "down_proj"), rank=rank, alpha=8.0)
    found = {}
    random = torch.Generator().manual_seed(5)
    for path, (a, b) in lora.pairs.items():
        b.data.copy_(torch.randn(b.shape, generator=random) * 0.1)
        found |= {f"{path}.A": a, f"{path}.B": b}
    if model.rule.gated:
        for index in model.memory_layers:
            found[f"gate.{index}"] = model.attachment.modules[index].memory_gate.beta.requires_grad_()
    return found


def gradients(
    model: InfiniModel, parameters: dict[str, Any], samples: list[Sample], **settings: Any
) -> tuple[list[float], dict[str, torch.Tensor]]:
    for parameter in parameters.values():
        parameter.grad = None
    losses = backward(model, samples, **settings)
    return losses, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in parameters.items()}


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 2e-4) -> None:
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=tolerance, atol=tolerance * float(a[name].abs().max()), msg=name
        )


@pytest.mark.parametrize("rule", ["slots", "linear", "delta"])
def test_the_loss_is_that_of_the_whole_logits_at_the_masked_places(make_model: MakeModel, rule: str) -> None:
    model = make_model("Gemma2", rule)
    sample = sample_of(14, 12, 9, loss="all", prompt=False)
    cache, total, count = model.new_cache(), 0.0, 0
    with torch.no_grad():
        for segment in sample.segments:
            logits = model.read_segment(torch.tensor([segment.tokens]), cache, logits=True)
            assert logits is not None
            for place, on in enumerate(segment.mask):
                if on:
                    total -= logits[0, place - 1].double().log_softmax(-1)[segment.tokens[place]].item()
                    count += 1
    trained(model)
    for module in model.model.modules():
        module._forward_hooks = {k: h for k, h in module._forward_hooks.items() if type(h).__name__ != "_Sum"}
    with torch.no_grad():
        states, seen, ours = {}, None, 0.0
        for block in blocks(model, [sample]):
            loss, states, seen = read_block(model, block, states, seen)
            ours += float(loss.sum()) if loss is not None else 0.0
    assert count == 12 and abs(ours - total / count) < 1e-4


@pytest.mark.parametrize("rule", ["slots", "linear", "delta"])
def test_gradients_flow_from_an_answer_through_the_memory_into_an_earlier_segment(
    make_model: MakeModel, rule: str
) -> None:
    model = make_model(rule=rule, memory_layers=[1, 2, 3])
    model.model.requires_grad_(False)
    lora = LoraLayers(model.model, ("k_proj", "v_proj"), rank=4, alpha=8.0)
    first, middle, last = blocks(model, [sample_of(20, 20, 8)])
    _, states, seen = read_block(model, first, {}, None)
    # From here on LoRA is off: its gradients can come from what the first segment wrote alone.
    lora.remove()
    _, states, seen = read_block(model, middle, states, seen)
    loss, _, _ = read_block(model, last, states, seen)
    assert loss is not None
    loss.sum().backward()
    reached = {path: float(b.grad.abs().max()) for path, (_, b) in lora.pairs.items() if b.grad is not None}
    assert all(reached[f"model.layers.{layer}.self_attn.v_proj"] > 1e-7 for layer in (1, 2, 3))
    assert all(reached[f"model.layers.{layer}.self_attn.k_proj"] > 1e-7 for layer in (1, 2, 3))


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_gradients_reach_every_gate_of_a_layer_with_memory(make_model: MakeModel, rule: str) -> None:
    model = make_model(rule=rule, memory_layers=[1, 3])
    _, found = gradients(model, trained(model), [sample_of(16, 16, 8)])
    gates = {name: gradient for name, gradient in found.items() if name.startswith("gate")}
    assert set(gates) == {"gate.1", "gate.3"} and all(bool((g != 0).all()) for g in gates.values())
    _, alone = gradients(model, trained(model), [sample_of(8)])
    assert all(not alone[name].any() for name in gates)


def test_a_gradient_through_the_memory_is_the_slope_of_the_loss(make_model: MakeModel) -> None:
    model = make_model(rule="delta", gate=-1.0)
    parameters = trained(model)
    samples = [sample_of(16, 16, 12, loss="all")]
    _, found = gradients(model, parameters, samples)
    for name in ("gate.2", "model.layers.1.self_attn.k_proj.B"):
        parameter, step = parameters[name], 2e-2
        direction = found[name] / found[name].norm()
        ends = []
        for sign in (1, -1):
            parameter.data += sign * step * direction
            ends.append(backward(model, samples)[0])
            parameter.data -= sign * step * direction
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(float(found[name].norm()), rel=0.05), name


@pytest.mark.parametrize("rule", ["slots", "delta"])
@pytest.mark.parametrize("bptt", [0, 2])
def test_checkpointing_changes_neither_losses_nor_gradients(make_model: MakeModel, rule: str, bptt: int) -> None:
    model = make_model(rule=rule)
    parameters = trained(model)
    samples = [sample_of(16, 14, 16, 12, loss="all")]
    plain = gradients(model, parameters, samples, checkpointing=False, bptt=bptt)
    saved = gradients(model, parameters, samples, checkpointing=True, bptt=bptt)
    assert plain[0] == saved[0] and all(gradient.any() for gradient in plain[1].values())
    for name, gradient in plain[1].items():
        assert torch.equal(gradient, saved[1][name]), name


def test_truncation_cuts_gradients_but_not_the_loss(make_model: MakeModel) -> None:
    model = make_model()
    parameters = trained(model)
    samples = [sample_of(16, 16, 16, 8)]
    whole = gradients(model, parameters, samples)
    cut = gradients(model, parameters, samples, bptt=2)
    assert cut[0] == pytest.approx(whole[0]) and cut[0] == gradients(model, parameters, samples, bptt=4)[0]
    assert any(not torch.allclose(whole[1][name], cut[1][name], rtol=1e-3) for name in parameters)
    # By hand: the first two segments without gradients, the last two with.
    made = blocks(model, samples)
    states, seen = {}, None
    with torch.no_grad():
        for block in made[:2]:
            _, states, seen = read_block(model, block, states, seen)
    for parameter in parameters.values():
        parameter.grad = None
    loss = None
    for block in made[2:]:
        loss, states, seen = read_block(model, block, states, seen)
    assert loss is not None
    loss.sum().backward()
    close({n: p.grad for n, p in parameters.items() if p.grad is not None}, cut[1])


@pytest.mark.parametrize("rule", ["slots", "linear"])
@pytest.mark.parametrize("prompt", [True, False])
def test_rows_side_by_side_are_worth_as_much_as_one_by_one(make_model: MakeModel, rule: str, prompt: bool) -> None:
    model = make_model(rule=rule)
    parameters = trained(model)
    loss = "last" if prompt else "all"
    samples = [
        sample_of(16, 11, 9, seed=1, loss=loss, prompt=prompt),
        sample_of(12, 16, 14, seed=2, loss=loss, prompt=prompt),
    ]
    together = gradients(model, parameters, samples, scale=0.5)
    alone = [gradients(model, parameters, [sample], scale=0.5) for sample in samples]
    assert together[0] == pytest.approx([losses[0] for losses, _ in alone], rel=1e-5)
    close(together[1], {name: alone[0][1][name] + alone[1][1][name] for name in parameters})


def test_groups_hold_samples_of_one_shape() -> None:
    samples = [sample_of(5, 9), sample_of(9), sample_of(4, 4), sample_of(6, 6, prompt=False), sample_of(3, 7)]
    assert groups(samples, 2) == [[2, 4], [0], [1], [3]]
    assert sorted(i for group in groups(samples, 8) for i in group) == list(range(5))


def test_lora_can_be_taken_off_and_its_sum_is_what_merging_gives(make_model: MakeModel) -> None:
    model = make_model()
    tokens = random_tokens(1, 12)
    with torch.no_grad():
        before = model.model(input_ids=tokens).logits
        lora = LoraLayers(model.model, ("q_proj", "up_proj"), rank=4, alpha=8.0)
        assert torch.equal(model.model(input_ids=tokens).logits, before)
        for _, b in lora.pairs.values():
            b.normal_(0, 0.1)
        beside = model.model(input_ids=tokens).logits
        lora.remove()
        assert torch.equal(model.model(input_ids=tokens).logits, before)
        for path, (a, b) in lora.pairs.items():
            module = model.model.get_submodule(path)
            module.weight += 2.0 * b @ a
        assert not torch.allclose(beside, before, atol=1e-2)
        torch.testing.assert_close(model.model(input_ids=tokens).logits, beside, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidConfig, match=r"magic_proj, but the model has down_proj"):
        LoraLayers(model.model, ("q_proj", "magic_proj"), rank=4, alpha=8.0)


# The loop


def losses_of(config: AdaptConfig) -> list[dict[str, float]]:
    lines = (config.path(config.output) / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["losses"] for row in rows]


def tensors_of(config: AdaptConfig) -> dict[str, torch.Tensor]:
    directory = config.path(config.output) / "adapter"
    return load_file(directory / "adapter_model.safetensors") | load_file(directory / "memory.safetensors")


def interrupt_after(step: int, number: int = signal.SIGINT) -> Callable[[dict[str, Any], int], None]:
    def watch(row: dict[str, Any], steps: int) -> None:
        if row["step"] == step:
            os.kill(os.getpid(), number)

    return watch


def test_training_on_two_samples_lowers_their_loss(configured: Callable[..., AdaptConfig], data: Path) -> None:
    question = {**QA["qas"][0], "question": "What did the keeper count?", "answers": ["ships"], "paragraph": 0}
    write_rows(data / "two.jsonl.gz", {**QA, "qas": [*QA["qas"], question]})
    config = configured(
        objectives=[{"kind": "qa", "data": ["two.jsonl.gz"], "reading": 0.0}],
        stages=[{"segments": 2, "steps": 30}],
        lora__lr=0.02,
    )
    result = adapt(config)
    losses = [row["qa.memory"] for row in losses_of(config)]
    assert result["finished"] and sum(losses[:3]) / 3 > 4 and sum(losses[-5:]) / 5 < 1


def test_training_moves_the_gates_alone_when_the_rule_has_them(configured: Callable[..., AdaptConfig]) -> None:
    changes = {"model__rule": "linear", "model__rule_settings": {"gate": -2.0}, "objectives": ALL[:1]}
    config = configured(**changes, gates__lr=0.1, train__warmup=0)
    adapt(config)
    found = tensors_of(config)
    moved = [float((found[f"layers.{layer}.gate"] + 2).abs().max()) for layer in range(4)]
    assert min(moved) > 0.2
    rows = [json.loads(line) for line in (config.path(config.output) / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["gates"]["min"] < rows[-1]["gates"]["mean"] < rows[-1]["gates"]["max"]


def test_gates_have_a_rate_of_their_own_and_never_decay(
    configured: Callable[..., AdaptConfig], make_model: MakeModel
) -> None:
    trainer = Trainer(configured(lora__weight_decay=0.1), make_model(rule="linear", segment_length=160))
    lora, gates = trainer.optimizer.param_groups
    assert (lora["weight_decay"], gates["weight_decay"]) == (0.1, 0.0) and len(gates["params"]) == 4
    trainer.step(0)
    assert (lora["lr"], gates["lr"]) == (0.005, 0.005)
    assert [trainer.rate(step) for step in (0, 1, 2, 5)] == [0.5, 1.0, 1.0, 0.5] and trainer.rate(7) < 0.1
    assert {parameter.dtype for parameter in trainer.parameters.values()} == {torch.float32}
    trainer.close()
    assert all(parameter.requires_grad for parameter in trainer.model.model.parameters())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    configured: Callable[..., AdaptConfig], tmp_path: Path, number: int
) -> None:
    changes = {"model__rule": "delta", "model__rule_settings": {}, "train__batch": 1}
    whole = configured(**changes, output=str(tmp_path / "whole"))
    assert adapt(whole)["finished"]
    config = configured(**changes)
    before = signal.getsignal(number)
    stopped = adapt(config, on_step=interrupt_after(4, number))
    assert (stopped["steps"], stopped["finished"]) == (4, False) and len(losses_of(config)) == 4
    assert signal.getsignal(number) is before
    assert adapt(config, resume=True)["finished"]
    assert losses_of(config) == losses_of(whole)
    one, two = tensors_of(config), tensors_of(whole)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_that_died_goes_on_from_its_last_checkpoint(
    configured: Callable[..., AdaptConfig], tmp_path: Path
) -> None:
    class Died(Exception):
        pass

    def die(row: dict[str, Any], steps: int) -> None:
        if row["step"] == 5:
            raise Died

    changes = {"train__batch": 1, "objectives": ALL[:1]}
    whole = configured(**changes, output=str(tmp_path / "whole"))
    adapt(whole)
    config = configured(**changes)
    with pytest.raises(Died):
        adapt(config, on_step=die)
    assert len(losses_of(config)) == 5
    adapt(config, resume=True)
    assert losses_of(config) == losses_of(whole)


def test_a_step_that_is_broken_off_changes_nothing(
    configured: Callable[..., AdaptConfig], make_model: MakeModel
) -> None:
    trainer = Trainer(configured(), make_model(segment_length=160))
    trainer.step(0)
    before = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise train_module.Stopped

    with pytest.raises(train_module.Stopped):
        trainer.step(1, stop)
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.parameters.items())
    other = Trainer(configured(), make_model(segment_length=160))
    other.step(0)
    assert trainer.step(1)["losses"] == other.step(1)["losses"]


def test_the_limit_of_minutes_leaves_a_checkpoint_and_an_adapter(configured: Callable[..., AdaptConfig]) -> None:
    config = configured(stages=[{"segments": 2, "steps": 10_000}])
    result = adapt(config, minutes=0.02)
    assert not result["finished"] and result["steps"] < 10_000
    output = config.path(config.output)
    assert (output / "checkpoint.safetensors").is_file() and (output / "adapter" / "adapter_config.json").is_file()
    assert "stopped early" in (output / "adapter" / "README.md").read_text()


def test_a_run_goes_on_only_as_it_was_begun(configured: Callable[..., AdaptConfig], data: Path, tmp_path: Path) -> None:
    write_rows(data / "own.jsonl.gz", {"text": BOOK})
    small: dict[str, Any] = {"stages": [{"segments": 2, "steps": 1}], "train__batch": 1}
    small["objectives"] = [{"kind": "lm", "books": "own.jsonl.gz"}]
    with pytest.raises(NothingToResume, match="without --resume"):
        adapt(configured(**small), resume=True)
    assert not (tmp_path / "run").exists()
    adapt(configured(**small))
    with pytest.raises(RunExists, match="--resume"):
        adapt(configured(**small))
    for change, field in (
        ({"lora__rank": 2}, r"config.lora.rank: 4 in the file, 2 here"),
        ({"seed": 9}, "config.seed"),
        ({"stages": [{"segments": 2, "steps": 2}]}, "config.stages.0.steps: 1 in the file, 2 here"),
        ({"model__segment_length": 128}, "config.model.segment_length"),
    ):
        with pytest.raises(RunChanged, match=field):
            adapt(configured(**{**small, **change}), resume=True)
    write_rows(data / "own.jsonl.gz", {"text": BOOK + "More."})
    with pytest.raises(RunChanged, match=r"data.own\.jsonl\.gz"):
        adapt(configured(**small), resume=True)
    write_rows(data / "own.jsonl.gz", {"text": BOOK})
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    content = checkpoint.read_bytes()
    for damaged in (content[:-9], b"\x80\x04", content[:8] + b" " * 40):
        checkpoint.write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint, match="damaged"):
            adapt(configured(**small), resume=True)


def test_a_loss_that_is_no_number_ends_the_run(configured: Callable[..., AdaptConfig], make_model: MakeModel) -> None:
    model = make_model(segment_length=160)
    model.model.model.norm.weight.data.fill_(float("inf"))
    trainer = Trainer(configured(), model)
    with pytest.raises(TrainingDiverged, match="step 1"):
        trainer.step(0)


def test_what_was_trained_is_what_an_adapter_gives(
    configured: Callable[..., AdaptConfig], tiny_directory: Path, make_model: MakeModel
) -> None:
    config = configured(model__rule="linear", model__rule_settings={}, model__memory_layers=[1, 2], lora__lr=0.03)
    model = train_module.load_model(config)
    trainer = Trainer(config, model)
    for step in range(3):
        trainer.step(step)
    run = {"losses": {"lm": 1.0}, "steps": 3, "tokens": 1, "seconds": 1.0, "finished": False}
    output = config.path(config.output) / "adapter"
    trainer.write(output, {**run, "hardware": "test", "dtype": "float32"})
    tokens = [random_tokens(1, 40, seed=seed) for seed in (0, 1)]

    def last_logits(of: InfiniModel) -> torch.Tensor:
        cache = of.new_cache()
        with torch.no_grad():
            of.read_segment(tokens[0], cache)
            found = of.read_segment(tokens[1], cache, logits=True)
        assert found is not None
        return found

    beside = last_logits(model)
    worn = InfiniModel.from_pretrained(tiny_directory, adapter=output)
    assert (worn.rule.name, worn.memory_layers, worn.segment_length) == ("linear", [1, 2], 160)
    torch.testing.assert_close(last_logits(worn), beside, rtol=1e-4, atol=1e-4)
    bare = InfiniModel.from_pretrained(tiny_directory, adapter="none", rule="linear", memory_layers=[1, 2])
    assert not torch.allclose(last_logits(bare), beside, atol=1e-2)
    # And a second run can start from it.
    again = Trainer(configured(model__rule="linear", lora__start=str(output)), make_model(rule="linear"))
    for name, parameter in trainer.parameters.items():
        assert torch.equal(parameter, again.parameters[name]), name


def test_the_card_names_data_steps_and_losses_and_no_places(configured: Callable[..., AdaptConfig], data: Path) -> None:
    config = configured(stages=[{"segments": 2, "steps": 2}])
    result = adapt(config)
    text = (config.path(config.output) / "adapter" / "README.md").read_text()
    assert "2 of 2 steps" in text and f"{result['tokens']:,} tokens" in text and "CPU" in text
    assert all(f"- {name}\n" in text for name in config.data_files())
    assert all(f"| {kind} | {loss} |" in text for kind, loss in result["losses"].items())
    assert str(data) not in text and str(config.path(config.output)) not in text and '"rank": 4' in text


def test_the_log_has_a_full_row_a_step(configured: Callable[..., AdaptConfig]) -> None:
    config = configured()
    result = adapt(config)
    rows = [json.loads(line) for line in (config.path(config.output) / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == [1] * 5 + [2] * 3 and result["steps"] == 8
    expected = {"step", "stage", "loss", "losses", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second"}
    assert all(set(row) == expected for row in rows) and result["tokens"] == sum(row["tokens"] for row in rows)


def test_the_command_trains_and_resumes(data: Path, tiny_directory: Path, tmp_path: Path) -> None:
    config = tmp_path / "adapt.toml"
    config.write_text(
        f'output = "out"\n[model]\nname = "{tiny_directory}"\nsegment_length = 64\n[lora]\nrank = 2\n'
        "[train]\nbatch = 1\n[[stages]]\nsegments = 2\nsteps = 2\n"
        f'[[objectives]]\nkind = "lm"\nbooks = "{data / "books.jsonl.gz"}"\n'
    )

    def run(*arguments: str, expect: int = 0) -> Any:
        result = CliRunner().invoke(main, ["adapt", *arguments])
        assert result.exit_code == expect, (result.output, result.exception)
        return result

    shown = json.loads(run(str(config), "--device", "cpu", "--json").stdout)
    assert {"steps", "finished", "tokens", "seconds", "losses", "output", "adapter"} <= set(shown) and shown["finished"]
    assert "after 2 steps" in run(str(config), "--resume").stdout
    for arguments, says in (
        ([str(config)], "holds a run"),
        ([str(tmp_path / "none.toml")], "no configuration"),
        ([str(config), "--resume", "--device", "magic"], "device 'magic'"),
    ):
        error = run(*arguments, expect=1).stderr
        assert error.startswith("Error: ") and error.count("\n") == 1 and says in error
    run(str(config), "--minutes", "0", expect=2)


def test_an_interrupted_command_says_how_to_go_on(data: Path, tiny_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "adapt.toml").write_text(
        f'output = "out"\n[model]\nname = "{tiny_directory}"\nsegment_length = 64\n[train]\nbatch = 1\n[[stages]]\n'
        f'segments = 2\nsteps = 100000\n[[objectives]]\nkind = "lm"\nbooks = "{data / "books.jsonl.gz"}"\n'
    )
    command = [sys.executable, "-m", "infinimem", "adapt", str(tmp_path / "adapt.toml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "log.jsonl"
    while process.poll() is None and not (log.is_file() and log.stat().st_size):
        pass
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and "--resume" in out and error == ""
    assert (tmp_path / "out" / "checkpoint.safetensors").is_file()


def test_help_and_configuration_errors_import_no_torch(tmp_path: Path) -> None:
    for arguments in (["adapt", "--help"], ["adapt", str(tmp_path / "none.toml")]):
        code = (
            "import sys; from infinimem.cli import main\n"
            f"try: main({arguments!r}, standalone_mode=False)\n"
            "except Exception as error: assert 'no configuration' in str(error), error\n"
            "sys.exit('torch' in sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
