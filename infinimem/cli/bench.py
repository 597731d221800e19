"""The `bench` command. All measuring is done in `bench/`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..bench import LENGTHS, REPEATS, SHORTEST, SYSTEMS, TOKENS
from .options import adapter_option, json_option, model_option
from .output import plain, print_json


@click.command("bench")
@click.option("--tokens", type=click.IntRange(min=SHORTEST), default=TOKENS, show_default=True,
              help="Tokens to read, with all systems but full attention.")  # fmt: skip
@click.option(
    "--lengths", default=",".join(map(str, LENGTHS)), show_default=True, help="Tokens that full attention reads."
)
@click.option(
    "--long", type=click.IntRange(min=SHORTEST), help="Also read so many tokens with infinimem, such as 200000."
)
@click.option("--systems", default=",".join(SYSTEMS), show_default=True,
              help="infinimem: a DocumentMemory; transformers: full attention with its cache in a file; "
              "langchain-minilm: MiniLM embeddings in LangChain's vector store; llama.cpp: its state.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(min=1), default=REPEATS, show_default=True,
              help="Processes of each row; what takes over a minute to read is measured once.")  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
              help="A document to read; default: Python's language reference.")  # fmt: skip
@click.option("--question", metavar="Q", help="What is asked; default: about words of the text.")
@model_option
@adapter_option
@click.option("--device", metavar="D", help="Where to compute, such as cpu or cuda:1; default: a GPU if there is one.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Also draw a plot (.png, .svg or .pdf).")
@json_option
def bench(
    tokens: int,
    lengths: str,
    long: int | None,
    systems: str,
    repeats: int,
    text: Path | None,
    question: str | None,
    model: str | None,
    adapter: str | None,
    device: str | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure speed, memory and file size on this machine, beside what else could be used.

    Each row is measured in processes of its own, one after the other; times are medians. It takes a while, most of it
    for the longest of --lengths. Leave other work alone meanwhile.

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
        tokens=tokens,
        lengths=counts,
        long=long,
        repeats=repeats,
        text=text,
        question=question,
        model=model,
        adapter=adapter,
        device=device,
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
