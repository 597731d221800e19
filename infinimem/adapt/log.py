"""What a run shows and leaves behind beside the adapter: progress, log.jsonl, loss.png, and the adapter's card."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..attention import make_rule
from ..memory_file import write_atomically
from .config import AdaptConfig

if TYPE_CHECKING:
    from ..model import InfiniModel

OnStep = Callable[[dict[str, Any], int], None]
LAST = 20  # steps that the final losses are means over


class Log:
    """log.jsonl of a run, one object a step. `rows` is what is in it."""

    def __init__(self, path: Path, steps: int) -> None:
        """steps: rows to keep of an older log; later ones were computed after the checkpoint and will be again."""
        self._path = path
        self.rows: list[dict[str, Any]] = []
        if steps and path.is_file():
            self.rows = [row for row in _rows(path) if row["step"] <= steps]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def add(self, row: dict[str, Any]) -> None:
        """Append the row of a step."""
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def final_losses(self) -> dict[str, float]:
        """Mean loss of each kind over the last steps that had it."""
        recent: dict[str, list[float]] = {}
        for row in self.rows[-LAST:]:
            for kind, loss in row["losses"].items():
                recent.setdefault(kind, []).append(loss)
        return {kind: round(sum(values) / len(values), 4) for kind, values in sorted(recent.items())}


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            # A line that a crash cut off; it is later than any checkpoint.
            break
    return rows


def draw_losses(path: Path, rows: Sequence[dict[str, Any]]) -> bool:
    """A plot of the losses, if there are any and matplotlib is installed; whether it was written."""
    if not rows:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    import io

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for kind in sorted({kind for row in rows for kind in row["losses"]}):
        points = [(row["step"], row["losses"][kind]) for row in rows if kind in row["losses"]]
        axes.plot(*zip(*points, strict=True), label=kind, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_atomically(path, image.getvalue())
    return True


def hardware(device: torch.device) -> str:
    """The processor that computed, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = f"{os.cpu_count()} cores"
    return f"CPU ({platform.machine()}, {cores}, {torch.get_num_threads()} used)"


def card(config: AdaptConfig, model: InfiniModel, run: dict[str, Any]) -> str:
    """The adapter's README.md. run: the result of `adapt`."""
    losses = "\n".join(f"| {kind} | {loss} |" for kind, loss in run["losses"].items())
    settings = _named(config.to_dict())
    files = "\n".join(f"- {Path(name).name}" for name in config.data_files())
    state = "" if run["finished"] else " (stopped early)"
    # A place on this machine is nobody's business.
    base = Path(model.name).name if Path(model.name).is_dir() else model.name
    settings["model"]["name"] = base
    if config.lora.over is None:
        rule = make_rule(config.model.rule, **config.model.rule_settings)
        what = f"""# Adapter for {base}

An adapter of infinimem: LoRA in PEFT's layout, and what belongs to the memory in `memory.safetensors`.

    infinimem ingest book.pdf -o book.safetensors --adapter THIS_DIRECTORY

- base model: {base}
- memory: rule `{rule.name}`, settings `{json.dumps(rule.settings())}`, {model.segment_length} tokens a segment,
  {model.carry} carried over, {len(model.memory_heads)} of {model.num_layers} layers"""
    else:
        what = f"""# Reader for {base}

LoRA in PEFT's layout for {base} with the adapter in the directory above merged into it: infinimem answers with both
where passages stand in the prompt.

- base model: {base}, adapter {Path(model.adapter_name).name}"""
    return f"""{what}
- trained: {run["steps"]} of {config.steps} steps{state}, {run["tokens"]:,} tokens, {run["seconds"] / 60:,.1f} minutes
- hardware: {run["hardware"]}, base weights in {run["dtype"]}

## Data

{files}

## Final losses

Means over the last {LAST} steps, nats a token.

| objective | loss |
|---|---|
{losses}

## Configuration

```json
{json.dumps(settings, indent=1)}
```
"""


def _named(value: Any) -> Any:
    """The same settings with the names of files instead of their places."""
    if isinstance(value, dict):
        return {
            key: _base_name(item) if key in ("books", "data", "start", "over") else _named(item)
            for key, item in value.items()
        }
    return value


def _base_name(value: Any) -> Any:
    if isinstance(value, list):
        return [_base_name(item) for item in value]
    return Path(value).name if isinstance(value, str) else value


@contextlib.contextmanager
def training_progress() -> Iterator[OnStep | None]:
    """A bar on standard error; None where no one watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("steps", total=None, status="")

        def show(row: dict[str, Any], steps: int) -> None:
            losses = "  ".join(f"{kind} {loss:.3f}" for kind, loss in row["losses"].items())
            status = f"stage {row['stage']}  {losses}  {row['tokens_per_second']:,.0f} tokens/s"
            bar.update(task, total=steps, completed=row["step"], status=status)

        yield show
