"""`infinimem adapt`: training."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import json_option
from .output import count, counter, print_json

if TYPE_CHECKING:
    from ..adapt.config import TermHeadRun


@click.command()
@click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG.toml")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the output directory.")
@click.option("--device", metavar="D", help="Where to train, such as cpu or cuda:1; default: a GPU if there is one.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after this many minutes, with a checkpoint."
)
@json_option
def adapt(config: Path, resume: bool, device: str | None, minutes: float | None, as_json: bool) -> None:
    """Train an adapter: LoRA and memory gates, or a term head, as the configuration says.

    Ctrl-C drops the unfinished step, and leaves a checkpoint and the adapter as trained so far.

    \b
    infinimem adapt adapt.toml --minutes 60
    infinimem adapt adapt.toml --resume
    infinimem ask book.safetensors "Who is Ishmael?" --adapter runs/first/adapter
    """
    from ..adapt.config import TermHeadRun
    from ..adapt.config_file import read_config

    parsed = read_config(config)
    if isinstance(parsed, TermHeadRun):
        _adapt_term_head(parsed, config, resume, device, minutes, as_json)
        return
    from ..adapt.log import training_progress
    from ..adapt.train import adapt as train

    with contextlib.nullcontext() if as_json else training_progress() as on_step:
        result = train(parsed, resume=resume, device=device, minutes=minutes, on_step=on_step)
    if as_json:
        print_json(result)
        return
    state = "finished" if result["finished"] else f"stopped; go on with: infinimem adapt {config} --resume"
    losses = ", ".join(f"{kind} {loss:.3f}" for kind, loss in result["losses"].items())
    click.echo(
        f"Wrote {result['adapter']} after {count(result['steps'], 'step')}, {result['tokens']:,} tokens, "
        f"{result['seconds'] / 60:,.1f} minutes ({losses or 'no losses yet'}); {state}."
    )


def _adapt_term_head(
    run: TermHeadRun, config: Path, resume: bool, device: str | None, minutes: float | None, as_json: bool
) -> None:
    from ..adapt.term_head import adapt_term_head

    with counter("documents", as_json) as count:
        result = adapt_term_head(run, resume=resume, device=device, minutes=minutes, on_document=count)
    if as_json:
        print_json(result)
    elif result["finished"]:
        apart = result["apart"]
        click.echo(
            f"Wrote {result['adapter']} after {result['documents']:,} documents and {result['questions']:,} questions, "
            f"{result['seconds'] / 60:,.1f} minutes (losses {', '.join(map(str, result['losses']))}; on documents not "
            f"trained on: MRR {apart['mrr'][str(result['settings']['lexical'])]}, refused "
            f"{apart['strangers_refused']:.0%} of the questions about another document and {apart['refused']:.0%} of "
            "the questions about the document itself)."
        )
    else:
        click.echo(f"Stopped after {result['documents']:,} documents; go on with: infinimem adapt {config} --resume")
