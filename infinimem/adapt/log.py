"""What a run shows and leaves behind beside the adapter: its progress, log.jsonl and loss.png."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..storage.files import write_atomically

OnStep = Callable[[dict[str, Any], int], None]
LAST = 20  # number of steps that the final losses are means of


class Log:
    """log.jsonl of a run, one object a step. `rows`: these objects."""

    def __init__(self, path: Path, steps: int) -> None:
        """steps: steps to keep of an older log; later steps come after the checkpoint, and are computed again."""
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
            # A crash has cut this line off; its step is later than any checkpoint.
            break
    return rows


def draw_losses(path: Path, rows: Sequence[dict[str, Any]]) -> bool:
    """Write a plot of the losses, if there are any and matplotlib is installed; returns whether it was written."""
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


@contextlib.contextmanager
def training_progress() -> Iterator[OnStep | None]:
    """A function that shows each step in a bar on standard error; None where standard error is no terminal."""
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
