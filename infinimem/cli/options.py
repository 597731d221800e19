"""Options that several commands share, and the memory or model that they stand for."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InfinimemError
from ..model.settings import WEIGHTS
from .output import plain

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel
    from ..readers import ReaderLimits

PACKINGS = ("float32", "float16", "int8")
RULE_NAMES = ("slots", "linear", "delta", "recent")
# The setting of the rule that --slots stands for. The memory of the other rules has a fixed size.
SIZE_SETTINGS = {"slots": "slots", "recent": "tokens"}

# Errors of writing to standard output, which has no file name.
_FULL = frozenset({errno.ENOSPC, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)})

Command = Callable[..., None]


class Group(click.Group):
    """Shows commands in the order of use, and turns errors of the library into one line and exit status 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of definition."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an InfinimemError becomes a ClickException, and so does a full standard output."""
        try:
            return super().invoke(ctx)
        except InfinimemError as error:
            # The message may quote a memory file from a stranger.
            raise click.ClickException(plain(" ".join(str(error).split()))) from error
        except OSError as error:
            if error.filename is not None or error.errno not in _FULL:
                raise
            # Else Python would try to write the rest once more at its end, and fail in several lines.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.ClickException(f"the output cannot be written: {os.strerror(error.errno or 0)}") from error


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
model_option = click.option(
    "--model",
    "-m",
    metavar="M",
    help="A name that `infinimem models` lists, a directory, a GGUF file, or a hub id; default: the model of the "
    "memory file, if one is given, else the default model.",
)
adapter_option = click.option("--adapter", metavar="A", help="Directory of an adapter; 'none': the bare model.")
weights_option = click.option(
    "--weights",
    type=click.Choice(WEIGHTS),
    help="The model's weights in memory; int8 takes half the room. Default: as in the memory file, else what suits the "
    "model.",
)
file_argument = click.argument("file", type=click.Path(path_type=Path))
_MEMORY_OPTIONS = (
    model_option,
    adapter_option,
    weights_option,
    click.option("--rule", type=click.Choice(RULE_NAMES), default=None, help="Memory rule; default: slots."),
    click.option("--slots", type=click.IntRange(min=2), help="Slots per KV head (rule recent: tokens kept)."),
    click.option("--packing", type=click.Choice(PACKINGS), help="How slots store numbers; default: int8."),
    click.option("--segment-length", type=click.IntRange(min=1), help="Tokens per segment; default: 512."),
    click.option(
        "--carry", type=click.IntRange(min=0), help="Last tokens kept as they are; default: 256; linear, delta: 0."
    ),
)


def _limits(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> ReaderLimits:
    """The limits that the given NAME=N stand for; N may have a unit for the limit memory."""
    from ..readers import ReaderLimits

    known, chosen = ReaderLimits().numbers(), {}
    for value in given:
        name, _, number = value.partition("=")
        if name not in known:
            raise click.BadParameter(f"there is no limit {name!r}; the limits are {', '.join(known)}.", ctx, param)
        unit = number[-2:] if name == "memory" and number[-2:] in UNITS else ""
        try:
            chosen[name] = type(known[name])(number.removesuffix(unit)) * UNITS.get(unit, 1)
            ReaderLimits(**chosen)
        except ValueError as error:
            problem = f"{value!r} is not a positive number, as in {name}={known[name]}."
            raise click.BadParameter(problem, ctx, param) from error
    return ReaderLimits(**chosen)


UNITS = {"MB": 10**6, "GB": 10**9}
limit_option = click.option(
    "--limit", "limits", multiple=True, callback=_limits, metavar="NAME=N",
    help="A limit for parsing a document: memory (as in memory=2GB), page_seconds, seconds, pages, page_characters or "
    "characters. May be given several times.",
)  # fmt: skip


def memory_options(command: Command) -> Command:
    """FILE and the model to use it with; the command gets `memory`, the DocumentMemory."""

    @functools.wraps(command)
    def run(
        *args: Any,
        file: Path,
        model: str | None,
        adapter: str | None,
        weights: str | None,
        force: bool,
        **kwargs: Any,
    ) -> None:
        from ..document_memory import DocumentMemory

        memory = DocumentMemory.load(file, model=model, adapter=adapter, weights=weights, force=force)
        command(*args, memory=memory, **kwargs)

    forced = click.option("--force", is_flag=True, help="Use the memory even with a model that did not make it.")
    for option in (forced, weights_option, adapter_option, model_option, file_argument):
        run = option(run)
    return run


def choice_option(name: str, choices: list[str], *, renamed: dict[str, str], help: str) -> Callable[[Command], Command]:
    """An option with fixed values that older releases call --mode.

    choices: the values; the first one is the default.
    renamed: values with another name in older releases, from the old name to the present name.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(*args: Any, mode: str | None, **kwargs: Any) -> None:
            if mode is not None:
                value = kwargs[name.replace("-", "_")] = renamed.get(mode, mode)
                click.echo(f"Warning: --mode {mode} is now called --{name} {value}.", err=True)
            command(*args, **kwargs)

        kept = [choice for choice in choices if choice not in renamed.values()]
        old = click.option("--mode", type=click.Choice([*renamed, *kept]), hidden=True)(run)
        return click.option(f"--{name}", type=click.Choice(choices), default=choices[0], show_default=True, help=help)(
            old
        )

    return decorate


def model_options(command: Command) -> Command:
    """Options for the model and its memory; the command gets `settings`, keyword arguments of `DocumentMemory.ingest`
    and `InfiniModel.from_pretrained`."""

    @functools.wraps(command)
    def run(
        *args: Any,
        model: str | None,
        adapter: str | None,
        weights: str | None,
        rule: str | None,
        slots: int | None,
        packing: str | None,
        segment_length: int | None,
        carry: int | None,
        **kwargs: Any,
    ) -> None:
        settings = {
            "model": model,
            "adapter": adapter,
            "weights": weights,
            "rule": rule,
            "rule_settings": _rule_settings(rule, slots, packing),
            "segment_length": segment_length,
            "carry": carry,
        }
        command(*args, settings=settings, **kwargs)

    for option in reversed(_MEMORY_OPTIONS):
        run = option(run)
    return run


def ingest_options(command: Command) -> Command:
    """`model_options`, and the other options that all commands which ingest documents share."""
    for option in (
        json_option,
        limit_option,
        click.option(
            "--skip-errors",
            is_flag=True,
            help="Leave out files and pages that are there but cannot be read, and say which.",
        ),
        click.option(
            "--ocr", is_flag=True, help="Recognize the text of images and scanned pages (needs the extra ocr)."
        ),
        click.option("--no-passages", is_flag=True, help="Keep the compressive memory alone, without the text."),
    ):
        command = option(command)
    return model_options(command)


def _rule_settings(rule: str | None, slots: int | None, packing: str | None) -> dict[str, Any]:
    # Without --rule, the adapter may decide the rule; the default rule is only assumed here.
    from ..model.settings import DEFAULT_RULE

    sized = rule or DEFAULT_RULE
    settings: dict[str, Any] = {}
    for option, value in (("--slots", slots), ("--packing", packing)):
        if value is not None:
            if sized not in SIZE_SETTINGS:
                raise click.UsageError(f"{option} works with the rules {' and '.join(SIZE_SETTINGS)}, not with {rule}.")
            settings[SIZE_SETTINGS[sized] if option == "--slots" else "packing"] = value
    return settings


def load_model(settings: dict[str, Any]) -> InfiniModel:
    """The model with the settings of `model_options`."""
    from ..model.infini_model import InfiniModel

    return InfiniModel.from_pretrained(**settings)
