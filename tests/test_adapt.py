"""Training of an adapter: the loop, its checkpoints, what it leaves behind, and the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import MakeModel, random_tokens, tiny_network
from safetensors.torch import load_file
from training import ALL, BOOK, QA, table, write_rows, write_training_data

from infinimem.adapt import train as train_module
from infinimem.adapt.config import AdaptConfig
from infinimem.adapt.config_file import parse_config
from infinimem.adapt.log import draw_losses
from infinimem.adapt.recurrence import backward
from infinimem.adapt.train import Trainer, adapt
from infinimem.cli.main import main
from infinimem.errors import (
    DamagedCheckpoint,
    InvalidConfig,
    NothingToResume,
    RunChanged,
    RunExists,
    TargetNotWritable,
    TrainingDiverged,
)
from infinimem.model.adapter import load_adapter
from infinimem.model.infini_model import InfiniModel


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_data(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def small_directory(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Two layers, as these tests take many steps."""
    directory = tmp_path_factory.mktemp("models") / "small"
    tiny_network("Llama", num_hidden_layers=2).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def configured(data: Path, tmp_path: Path, small_directory: Path) -> Callable[..., AdaptConfig]:
    """Builds a configuration with its data and a place of its own for the output."""

    def make(**changes: Any) -> AdaptConfig:
        settings = {"output": str(tmp_path / "run"), "model__name": str(small_directory), **changes}
        return parse_config(table(**settings), data)

    return make


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


@pytest.mark.parametrize("token_weight", [0.0, 0.5, 1.0])
def test_a_sample_weighs_by_its_tokens_as_much_as_is_asked(
    configured: Callable[..., AdaptConfig], make_model: MakeModel, token_weight: float
) -> None:
    trainer = Trainer(configured(train__token_weight=token_weight), make_model(segment_length=160))
    samples = [trainer.mixture.sample(0, index) for index in range(trainer.config.train.batch)]
    sizes = [sum(sum(segment.mask) for segment in sample.segments) for sample in samples]
    assert len(set(sizes)) > 1
    losses = [backward(trainer.model, [sample])[0] for sample in samples]
    row = trainer.step(0)
    weights = [size**token_weight for size in sizes]
    expected = sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)
    assert row["loss"] == pytest.approx(expected, rel=1e-4)
    trainer.close()


def test_training_moves_the_gates_alone_when_the_rule_has_them(configured: Callable[..., AdaptConfig]) -> None:
    changes = {"model__rule": "linear", "model__rule_settings": {"gate": -2.0}, "objectives": ALL[:1]}
    config = configured(**changes, gates__lr=0.1, train__warmup=0)
    adapt(config)
    found = tensors_of(config)
    moved = [float((found[f"layers.{layer}.gate"] + 2).abs().max()) for layer in range(2)]
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


@pytest.mark.parametrize(
    "taken", ["run", "run/adapter", "run/log.jsonl/x", "run/loss.png/x", "run/adapter/README.md/x", "run/below"]
)
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    configured: Callable[..., AdaptConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    def loaded(*_: Any) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr(train_module, "load_model", loaded)
    place = tmp_path / taken
    if taken == "run/below":
        (tmp_path / "run").write_text("a file")
        config = configured(output=str(place))
    else:
        config = configured()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("a file")
    with pytest.raises(TargetNotWritable) as caught:
        adapt(config)
    assert "\n" not in str(caught.value)


def test_how_often_a_run_is_saved_may_change_when_it_goes_on(
    configured: Callable[..., AdaptConfig], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"objectives": ALL[:1], "stages": [{"segments": 2, "steps": 2}]}
    assert not adapt(configured(**changes), on_step=interrupt_after(1))["finished"]
    later = configured(**changes, train__save_steps=1)
    assert adapt(later, resume=True)["finished"]
    with pytest.raises(RunChanged, match=r"config\.train\.clip"):
        adapt(configured(**changes, train__clip=2.0), resume=True)


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
    own = (data / "own.jsonl.gz").read_bytes()
    write_rows(data / "own.jsonl.gz", {"text": BOOK + "More."})
    with pytest.raises(RunChanged, match=r"data.own\.jsonl\.gz"):
        adapt(configured(**small), resume=True)
    (data / "own.jsonl.gz").write_bytes(own)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    content = checkpoint.read_bytes()
    for damaged in (content[:-9], b"\x80\x04", content[:8] + b" " * 40):
        checkpoint.write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint, match="damaged"):
            adapt(configured(**small), resume=True)


@pytest.mark.parametrize("packing", ["float16", "int8"])
def test_states_are_not_packed_in_training_but_as_asked_in_use(
    configured: Callable[..., AdaptConfig], small_directory: Path, packing: str
) -> None:
    settings = {"slots": 24, "distance": 16, "packing": packing}
    config = configured(model__rule_settings=settings, stages=[{"segments": 2, "steps": 1}], train__batch=1)
    model = train_module.load_model(config)
    assert model.rule.settings()["packing"] == "float32"
    adapt(config, model=model)
    adapted = InfiniModel.from_pretrained(small_directory, adapter=config.path(config.output) / "adapter")
    assert adapted.rule.settings() == {**adapted.rule.settings(), **settings}


def test_a_loss_that_is_no_number_ends_the_run(configured: Callable[..., AdaptConfig], make_model: MakeModel) -> None:
    model = make_model(segment_length=160)
    model.model.model.norm.weight.data.fill_(float("inf"))
    trainer = Trainer(configured(), model)
    with pytest.raises(TrainingDiverged, match=r"step 1 .* start anew in another output with a lower lora\.lr"):
        trainer.step(0)


def test_what_was_trained_is_what_an_adapter_gives(
    configured: Callable[..., AdaptConfig], small_directory: Path
) -> None:
    config = configured(
        model__rule="linear",
        model__rule_settings={},
        model__memory_layers=[1],
        model__carry=24,
        lora__lr=0.03,
    )
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
    adapted = InfiniModel.from_pretrained(small_directory, adapter=output, dtype=torch.float32)
    assert (adapted.rule.name, adapted.memory_heads, adapted.segment_length, adapted.carry) == (
        "linear",
        {1: [0, 1]},
        160,
        24,
    )
    torch.testing.assert_close(last_logits(adapted), beside, rtol=1e-4, atol=1e-4)
    bare = InfiniModel.from_pretrained(small_directory, adapter="none", rule="linear", dtype=torch.float32)
    assert not torch.allclose(last_logits(bare), beside, atol=1e-2)
    # And a second run can start from it.
    start = configured(model__rule="linear", model__rule_settings={}, model__memory_layers=[1], lora__start=str(output))
    again = Trainer(start, train_module.load_model(start))
    for name, parameter in trainer.parameters.items():
        assert torch.equal(parameter, again.parameters[name]), name


READING = [
    {"kind": "qa", "data": ["squad.jsonl.gz", "tales.jsonl.gz"], "reading": 1.0},
    {"kind": "summary", "data": ["plots.jsonl.gz"]},
]


@pytest.fixture
def adapted(configured: Callable[..., AdaptConfig], tmp_path: Path) -> Path:
    """An adapter with a memory of its own settings."""
    settings = {"model__rule": "linear", "model__rule_settings": {}, "model__memory_layers": [1], "lora__lr": 0.03}
    config = configured(output=str(tmp_path / "first"), stages=[{"segments": 2, "steps": 2}], **settings)
    adapt(config)
    return config.path(config.output) / "adapter"


def test_an_answer_adapter_is_trained_over_an_adapter_that_stays_as_it_is(
    configured: Callable[..., AdaptConfig], small_directory: Path, adapted: Path
) -> None:
    config = configured(objectives=READING, lora__over=str(adapted), lora__rank=2, stages=[{"segments": 2, "steps": 3}])
    adapt(config)
    output = config.path(config.output) / "adapter"
    for file in ("adapter_config.json", "adapter_model.safetensors", "memory.safetensors"):
        assert (output / file).read_bytes() == (adapted / file).read_bytes()
    halves = load_file(output / "answer" / "adapter_model.safetensors")
    assert {half.dtype for half in halves.values()} == {torch.float16}
    assert all(bool(half.any()) for half in halves.values())
    card = (output / "answer" / "README.md").read_text()
    assert card.startswith("# Answer adapter for small\n") and str(adapted.parent) not in card
    model = InfiniModel.from_pretrained(small_directory, adapter=output)
    assert model.identity() == InfiniModel.from_pretrained(small_directory, adapter=adapted).identity()


def test_what_an_answer_adapter_was_trained_as_is_what_it_answers_as(
    configured: Callable[..., AdaptConfig], small_directory: Path, adapted: Path
) -> None:
    config = configured(objectives=READING, lora__over=str(adapted), lora__rank=2, lora__lr=0.03)
    trainer = Trainer(config, train_module.load_model(config))
    for step in range(3):
        trainer.step(step)
    run = {"losses": {}, "steps": 3, "tokens": 1, "seconds": 1.0, "finished": False}
    output = config.path(config.output) / "adapter"
    trainer.write(output, {**run, "hardware": "test", "dtype": "float32"})
    tokens = random_tokens(1, 30)
    answering = InfiniModel.from_pretrained(small_directory, adapter=output, dtype=torch.float32).answering_model
    with torch.no_grad():
        beside, merged = trainer.model.model(tokens).logits, answering.model(tokens).logits
        bare = InfiniModel.from_pretrained(small_directory, adapter=adapted, dtype=torch.float32).model(tokens).logits
    torch.testing.assert_close(merged, beside, rtol=1e-2, atol=1e-2)
    assert not torch.allclose(bare, beside, atol=0.1)


@pytest.mark.parametrize("objective", [ALL[0], {**READING[0], "reading": 0.5}, {**READING[0], "beside": 0.5}])
def test_an_answer_adapter_is_trained_on_passages_alone(
    configured: Callable[..., AdaptConfig], objective: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfig, match=r"objectives\[1\].*answer adapter"):
        configured(objectives=[READING[0], objective], lora__over=str(tmp_path))


def test_an_answer_adapter_goes_on_from_another(
    configured: Callable[..., AdaptConfig], adapted: Path, tmp_path: Path
) -> None:
    settings = {"objectives": READING, "lora__over": str(adapted), "lora__rank": 2}
    adapt(configured(**settings, output=str(tmp_path / "once"), stages=[{"segments": 2, "steps": 3}]))
    answering = load_adapter(tmp_path / "once" / "adapter" / "answer")
    config = configured(**settings, lora__start=answering.name if answering else "")
    trainer = Trainer(config, train_module.load_model(config))
    assert answering is not None
    for path, pair in trainer.lora.pairs.items():
        assert all(torch.equal(mine, given) for mine, given in zip(pair, answering.lora[path], strict=True))


def test_the_card_names_data_steps_and_losses_and_no_places(configured: Callable[..., AdaptConfig], data: Path) -> None:
    config = configured(stages=[{"segments": 2, "steps": 2}])
    result = adapt(config)
    text = (config.path(config.output) / "adapter" / "README.md").read_text()
    assert "2 of 2 steps" in text and f"{result['tokens']:,} tokens" in text and "CPU" in text
    assert all(f"- {name}\n" in text for name in config.data_files())
    assert all(f"| {kind} | {loss} |" in text for kind, loss in result["losses"].items())
    assert (
        "# Adapter for small\n" in text
        and str(data) not in text
        and str(config.path(config.output)) not in text
        and '"rank": 4' in text
    )


def test_the_log_has_a_full_row_a_step(configured: Callable[..., AdaptConfig]) -> None:
    config = configured()
    result = adapt(config)
    rows = [json.loads(line) for line in (config.path(config.output) / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == [1] * 5 + [2] * 3 and result["steps"] == 8
    expected = {"step", "stage", "loss", "losses", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second"}
    assert all(set(row) == expected for row in rows) and result["tokens"] == sum(row["tokens"] for row in rows)


def test_the_losses_are_drawn_where_matplotlib_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"step": 1, "losses": {"lm": 4.0}}, {"step": 2, "losses": {"lm": 3.0, "qa.memory": 6.0}}]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        assert not draw_losses(tmp_path / "loss.png", rows) and not list(tmp_path.iterdir())
    assert not draw_losses(tmp_path / "loss.png", []) and not list(tmp_path.iterdir())
    assert draw_losses(tmp_path / "loss.png", rows)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_trains_and_resumes(data: Path, small_directory: Path, tmp_path: Path) -> None:
    config = tmp_path / "adapt.toml"
    config.write_text(
        f'output = "out"\n[model]\nname = "{small_directory}"\nsegment_length = 64\n[lora]\nrank = 2\n'
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


def test_an_interrupted_command_says_how_to_go_on(data: Path, small_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "adapt.toml").write_text(
        f'output = "out"\n[model]\nname = "{small_directory}"\nsegment_length = 64\n[train]\nbatch = 1\n[[stages]]\n'
        f'segments = 2\nsteps = 100000\n[[objectives]]\nkind = "lm"\nbooks = "{data / "books.jsonl.gz"}"\n'
    )
    command = [sys.executable, "-m", "infinimem", "adapt", str(tmp_path / "adapt.toml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "log.jsonl"
    while process.poll() is None and not (log.is_file() and log.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and "--resume" in out and error == ""
    assert (tmp_path / "out" / "checkpoint.safetensors").is_file()


def test_help_and_configuration_errors_import_no_torch(tmp_path: Path) -> None:
    for arguments in (["adapt", "--help"], ["adapt", str(tmp_path / "none.toml")]):
        code = (
            "import sys; from infinimem.cli.main import main\n"
            f"try: main({arguments!r}, standalone_mode=False)\n"
            "except Exception as error: assert 'no configuration' in str(error), error\n"
            "sys.exit('torch' in sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
