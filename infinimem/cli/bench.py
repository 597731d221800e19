"""The `bench` command. All measuring is done in `bench/`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..bench import LENGTHS, REPEATS, SHORTEST, SYSTEMS, TOKENS
from .options import adapter_option, json_option, model_option, weights_option
from .output import plain, print_json


@click.command("bench")
@click.option("--tokens", type=click.IntRange(min=SHORTEST), default=TOKENS, show_default=True,
              help="Tokens to read; full attention reads --lengths instead.")  # fmt: skip
@click.option(
    "--lengths", default=",".join(map(str, LENGTHS)), show_default=True, help="Tokens for full attention, a row each."
)
@click.option(
    "--long", type=click.IntRange(min=SHORTEST), help="Also read this many tokens with infinimem, such as 200000."
)
@click.option("--systems", default=",".join(SYSTEMS), show_default=True,
              help="infinimem: a DocumentMemory; transformers: full attention with its cache in a file; "
              "langchain-minilm: MiniLM embeddings in LangChain's vector store; llama.cpp: "
              "its state in a file.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(min=1), default=REPEATS, show_default=True,
              help="Processes per row; a row that takes over a minute to read is measured once.")  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
              help="A document to read; default: Python's language reference.")  # fmt: skip
@click.option("--question", metavar="Q", help="The question to ask; default: a question about words of the text.")
@model_option
@adapter_option
@weights_option
@click.option("--device", metavar="D", help="Where to compute, such as cpu or cuda:1; default: a GPU if there is one.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Also draw a plot (.png, .svg or .pdf).")
@json_option
def bench(lengths: str, systems: str, plot: Path | None, as_json: bool, **asked: Any) -> None:
    """Measure speed, memory and file size on this machine, for infinimem and other systems.

    Each row is measured in separate processes, one after the other; times are medians. This takes a while, most of it
    for the longest of --lengths. Run nothing else on the machine meanwhile.

    \b
    infinimem bench
    infinimem bench --systems infinimem --long 200000
    infinimem bench --json --plot bench.png > bench.json
    """
    from ..bench.run import bench as measure

    try:
        counts = [int(length) for length in lengths.split(",")]
    except ValueError:
        raise click.BadParameter("give numbers of tokens, such as 2048,8192", param_hint="--lengths") from None
    if plot is not None:
        from ..bench.report import PLOTS, need_matplotlib
        from ..storage.files import check_writable

        if plot.suffix not in PLOTS:
            raise click.BadParameter(f"give a name that ends with {', '.join(PLOTS)}", param_hint="--plot")
        need_matplotlib()
        check_writable(plot)
    watched = not as_json and sys.stderr.isatty()
    result = measure(
        systems=[name.strip() for name in systems.split(",") if name.strip()],
        lengths=counts,
        **asked,
        on_run=(lambda line: click.echo(f"... {line}", err=True)) if watched else None,
    )
    if as_json:
        print_json(result)
    else:
        from ..bench.report import as_text

        for line in as_text(result).splitlines():
            click.echo(plain(line))
    if plot is not None:
        from ..bench.report import plot as draw

        draw(result, plot)
