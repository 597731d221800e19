"""`infinimem`: the group of all commands."""

from __future__ import annotations

import atexit
import gc
import warnings

import click

from .. import __version__
from .adapt import adapt
from .ask import ask, retrieve, summarize
from .bench import bench
from .chat import chat
from .evaluate import evaluate
from .files import inspect, merge, verify
from .ingest import ingest, ingest_many
from .models import models
from .options import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="infinimem")
@click.pass_context
def main(context: click.Context) -> None:
    """Read a document once, keep one small memory file, ask it later.

    \b
    infinimem ingest book.pdf -o book.safetensors
    infinimem ask book.safetensors "Who is Ishmael?"
    """
    collect_rarely()
    # Warnings in one line each; also those of old names, which Python hides from all but programmers.
    context.with_resource(warnings.catch_warnings())
    warnings.showwarning = lambda message, *_: click.echo(f"Warning: {message}", err=True)
    warnings.filterwarnings("default", ".* is now called ", DeprecationWarning)


def collect_rarely() -> None:
    """From here on, let Python's garbage collector run once in 100,000 new objects, and not at the process's end.

    Importing torch and transformers makes a million objects that stay. Going through them again and again takes a fifth
    of the time that a command needs to start, and going through them once more at the end takes another second.
    """
    gc.set_threshold(100_000, *gc.get_threshold()[1:])
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


# In the order in which a user meets them.
for command in (
    ingest,
    ask,
    chat,
    summarize,
    retrieve,
    inspect,
    verify,
    merge,
    models,
    adapt,
    evaluate,
    bench,
    ingest_many,
):
    main.add_command(command)
