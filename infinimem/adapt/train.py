"""The training loop: samples in, an adapter out; it can be stopped at any time, and goes on with the next step."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..attention import GatedRule, MemoryRule, make_rule
from ..errors import InvalidSetting, RunExists, TargetNotWritable, TrainingDiverged
from ..model.adapter import (
    CONFIG_FILE,
    LORA_FILE,
    MEMORY_FILE,
    copy_adapter,
    load_adapter,
    write_adapter,
)
from ..model.catalogue import find_model
from ..model.directories import ANSWER, NO_ADAPTER
from ..model.infini_model import InfiniModel
from ..model.lora import set_gates
from ..model.settings import TRAINABLE
from ..storage.files import check_writable, make_directory, write_atomically
from .card import card, hardware
from .checkpoint import NAME as CHECKPOINT
from .checkpoint import Place, hash_file, load_checkpoint, save_checkpoint
from .config import AdaptConfig
from .log import Log, OnStep, draw_losses
from .lora import LoraLayers
from .objectives import Mixture
from .recurrence import backward, groups
from .samples import Bench

LOG, PLOT, CARD = "log.jsonl", "loss.png", "README.md"


class Stopped(Exception):
    """The run was asked to stop; the results of the unfinished step are dropped."""


class Trainer:
    """A run of a configuration on one model. The model is changed until `close` takes LoRA off again.

    `parameters`: the trained parameters by name, float32: `lora.{module}.A`, `.B`, and `gates.{layer}`.
    Raises InvalidSetting where the model has an adapter and lora.over names none, or the other way round.
    """

    def __init__(self, config: AdaptConfig, model: InfiniModel) -> None:
        if (model.adapter_hash != NO_ADAPTER) != (config.lora.over is not None):
            raise InvalidSetting(
                "the model that is trained must have an adapter if lora.over names one, and no adapter otherwise; to "
                "go on from an adapter, train the base model without it and name the adapter in lora.start"
            )
        self.config = config
        self.model = model
        self.mixture = Mixture(config, Bench(model, config.train.cuts))
        self._frozen = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
        model.model.requires_grad_(False)
        lora = config.lora
        self.lora = LoraLayers(model.model, lora.targets, rank=lora.rank, alpha=lora.alpha, seed=config.seed)
        self.gates: dict[int, nn.Parameter] = {}
        if isinstance(model.rule, GatedRule) and config.lora.over is None:
            for index in model.memory_heads:
                self.gates[index] = model.attachment.modules[index].memory_gate.beta.requires_grad_()
        if lora.start is not None:
            adapter = load_adapter(config.start())
            if adapter is not None:
                self.lora.start_from(adapter)
                set_gates(model.attachment.modules, adapter)
        halves = {f"lora.{path}.{half}": p for path, pair in self.lora.pairs.items() for half, p in zip("AB", pair)}  # noqa: B905
        self.parameters = {**halves, **{f"gates.{index}": beta for index, beta in self.gates.items()}}
        plans = [{"params": list(halves.values()), "lr": lora.lr, "weight_decay": lora.weight_decay}]
        if self.gates:
            # Weight decay would pull the share of every gate to a half.
            plans.append({"params": list(self.gates.values()), "lr": config.gates.lr, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(plans)
        self._rates = [lora.lr, config.gates.lr][: len(plans)]

    def close(self) -> None:
        """Take LoRA off the model and make its weights trainable again; the trained gates stay."""
        self.lora.remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def rate(self, step: int) -> float:
        """Factor of the learning rates at a step (from 0): linear warm-up, then a cosine to zero."""
        warmup = self.config.train.warmup
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.config.steps - warmup)))

    def step(self, step: int, stop: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Do one step; returns its row for the log.

        step: from 0.
        stop: is called before every segment and may raise; then no parameter has changed.
        Raises TrainingDiverged where the loss or the gradient is not a finite number.
        """
        started = time.perf_counter()
        train = self.config.train
        self.optimizer.zero_grad(set_to_none=True)
        samples = [self.mixture.sample(step, index) for index in range(train.batch)]
        weights = [sum(sum(segment.mask) for segment in sample.segments) ** train.token_weight for sample in samples]
        scales = [weight / sum(weights) for weight in weights]
        losses: dict[str, list[float]] = {}
        total = 0.0
        for group in groups(samples, train.rows):
            found = backward(
                self.model,
                [samples[index] for index in group],
                bptt=train.bptt,
                checkpointing=train.checkpointing,
                scales=[scales[index] for index in group],
                stop=stop,
            )
            for index, loss in zip(group, found, strict=True):
                losses.setdefault(samples[index].kind, []).append(loss)
                total += scales[index] * loss
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), train.clip))
        if not math.isfinite(total) or not math.isfinite(norm):
            rates = "lora.lr or gates.lr" if self.gates else "lora.lr"
            raise TrainingDiverged(
                f"the loss of step {step + 1} is {total}, its gradient {norm}; start anew in another output with "
                f"a lower {rates}, or from an adapter in lora.start"
            )
        factor = self.rate(step)
        for plan, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            plan["lr"] = rate * factor
        self.optimizer.step()
        seconds = time.perf_counter() - started
        tokens = sum(sample.tokens for sample in samples)
        row: dict[str, Any] = {
            "step": step + 1,
            "stage": self.config.stage(step) + 1,
            "loss": total,
            "losses": {kind: sum(values) / len(values) for kind, values in sorted(losses.items())},
            "lr": self._rates[0] * factor,
            "grad_norm": norm,
        }
        if self.gates:
            shares = torch.sigmoid(torch.stack(list(self.gates.values())).detach())
            row["gates"] = {"mean": float(shares.mean()), "min": float(shares.min()), "max": float(shares.max())}
        return row | {
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
        }

    def setup(self) -> dict[str, Any]:
        """The configuration, data and model that a resumed run must have in common with this one."""
        data = {name: hash_file(self.config.path(name)) for name in self.config.data_files()}
        return {"config": self.config.to_dict(), "data": data, "model": self.model.identity()}

    def write(self, directory: Path, run: dict[str, Any]) -> None:
        """Write the adapter as it is now, with its card."""
        model, over = self.model, self.config.over()
        if over is None:
            memory = {
                "rule": model.rule.name,
                "rule_settings": used_rule(self.config).settings(),
                "segment_length": model.segment_length,
                "memory_heads": {str(layer): heads for layer, heads in model.memory_heads.items()},
                "carry": model.carry,
            }
        else:
            copy_adapter(over, directory)
            directory, memory = directory / ANSWER, {}
        known = find_model(model.name)
        write_adapter(
            directory,
            lora=self.lora.pairs,
            alpha=self.config.lora.alpha,
            base=self.config.model.name or model.name if known is None else known.hub,
            gates=self.gates,
            memory=memory,
            dtype=torch.float32 if over is None else torch.float16,
        )
        write_atomically(directory / CARD, card(self.config, model, run).encode())


def used_rule(config: AdaptConfig) -> MemoryRule:
    """The rule that the adapter is for."""
    return make_rule(config.model.rule, **config.model.rule_settings)


def trained_settings(config: AdaptConfig) -> dict[str, Any]:
    """Settings of the rule during training: those of `used_rule`, but states are never packed.

    Rounding to int8 lets no gradient through, and small gradients vanish in float16.
    """
    settings = used_rule(config).settings()
    return settings | ({"packing": "float32"} if "packing" in settings else {})


def load_model(config: AdaptConfig, device: str | None = None) -> InfiniModel:
    """The base model of a configuration with its memory; for an answer adapter, also with the adapter in lora.over."""
    wanted = config.model
    name: str | Path | None = wanted.name
    if wanted.name is not None and config.path(wanted.name).is_dir():
        name = config.path(wanted.name)
    dtype = None if wanted.dtype == "auto" else getattr(torch, wanted.dtype)
    memory: dict[str, Any] = {"adapter": config.over()}
    if config.lora.over is None:
        memory = {
            "rule": wanted.rule,
            "rule_settings": trained_settings(config),
            "segment_length": wanted.segment_length,
            "memory_heads": wanted.heads,
            "carry": wanted.carry,
            "adapter": NO_ADAPTER,
        }
    return InfiniModel.from_pretrained(name, device=device, dtype=dtype, weights=TRAINABLE, **memory)


def adapt(
    config: AdaptConfig,
    *,
    resume: bool = False,
    device: str | None = None,
    minutes: float | None = None,
    model: InfiniModel | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Train an adapter; returns what was done.

    Writes into `config.output`: `adapter/`, `log.jsonl`, `checkpoint.safetensors`, and `loss.png` with matplotlib.
    SIGINT, SIGTERM and the limit of `minutes` end the run between two segments; all whole steps are kept.

    resume: go on from the checkpoint in the output.
    minutes: time limit of this call; None for no limit.
    model: train this model instead of loading the model of the configuration.
    on_step: is called with each row of the log and the number of all steps.
    Raises the TrainingErrors, ModelErrors and AdapterErrors, and TargetNotWritable before anything is loaded.
    """
    limit = math.inf if minutes is None else time.monotonic() + 60 * minutes
    output = config.path(config.output)
    begun = _is_there(output / CHECKPOINT)
    if begun and not resume:
        raise RunExists(f"'{output}' holds a run already; go on with --resume, or name another output")
    # Where there is nothing to resume, no directory is made; load_checkpoint then raises the error.
    if begun or not resume:
        _prepare(output)
    with _signals() as asked_to_stop:
        trainer = Trainer(config, model or load_model(config, device))
        try:
            return _train(trainer, output, resume, limit, asked_to_stop, on_step)
        finally:
            trainer.close()


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise TargetNotWritable(f"'{path}' cannot be reached ({error.strerror}); choose another output") from error


def _prepare(output: Path) -> None:
    """Make the directories of a run, and check that every file of it can be written. Raises TargetNotWritable."""
    make_directory(output / "adapter")
    for name in (CHECKPOINT, LOG, PLOT):
        check_writable(output / name)
    for name in (CONFIG_FILE, LORA_FILE, MEMORY_FILE, CARD):
        check_writable(output / "adapter" / name)


def _train(
    trainer: Trainer,
    output: Path,
    resume: bool,
    limit: float,
    asked_to_stop: Callable[[], bool],
    on_step: OnStep | None,
) -> dict[str, Any]:
    config = trainer.config
    place = Place(0, 0, 0.0, trainer.setup())
    if resume:
        place = load_checkpoint(output, place.setup, trainer.parameters, trainer.optimizer)
    log = Log(output / LOG, place.step)

    def stop() -> None:
        if asked_to_stop() or time.monotonic() >= limit:
            raise Stopped

    def save() -> None:
        save_checkpoint(output, place, trainer.parameters, trainer.optimizer)

    saved = (place.step, time.monotonic())
    with contextlib.suppress(Stopped):
        while place.step < config.steps:
            stop()
            row = trainer.step(place.step, stop)
            place.step, place.tokens = place.step + 1, place.tokens + row["tokens"]
            place.seconds += row["seconds"]
            log.add(row)
            if on_step is not None:
                on_step(row, config.steps)
            since = place.step - saved[0], time.monotonic() - saved[1]
            if since[0] >= config.train.save_steps or since[1] >= config.train.save_seconds:
                save()
                saved = (place.step, time.monotonic())
    save()
    weight = next(trainer.model.model.parameters())
    result: dict[str, Any] = {
        "steps": place.step,
        "finished": place.step == config.steps,
        "tokens": place.tokens,
        "seconds": round(place.seconds, 1),
        "losses": log.final_losses(),
        "hardware": hardware(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "output": str(output),
        "adapter": str(output / "adapter"),
    }
    trainer.write(output / "adapter", result)
    draw_losses(output / PLOT, log.rows)
    return result


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGINT or SIGTERM has come; a second such signal ends the process as usual."""
    came: list[int] = []
    before: dict[int, Any] = {}
    watched: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in watched:
            before[number] = signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
