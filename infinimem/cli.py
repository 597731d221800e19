"""The command line: prints, exit codes, progress bars. All work is done elsewhere."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .errors import InfinimemError

if TYPE_CHECKING:
    from .model import InfiniModel
    from .passages import Passage

RULE_NAMES = ("slots", "linear", "delta")


class _Group(click.Group):
    """Shows commands in the order of use, and turns errors of the library into one line and exit status 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InfinimemError as error:
            raise click.ClickException(" ".join(str(error).split())) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="infinimem")
def main() -> None:
    """Read a document once, keep one small memory file, ask it later.

    \b
    infinimem ingest book.pdf -o book.safetensors
    infinimem ask book.safetensors "Who is Ishmael?"
    """


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
model_option = click.option("--model", "-m", metavar="M", help="Directory or hub id of the model; default: embedded.")
adapter_option = click.option("--adapter", metavar="A", help="Directory of an adapter; 'none': the bare model.")
rule_option = click.option("--rule", type=click.Choice(RULE_NAMES), default=None, help="Memory rule; default: slots.")
slots_option = click.option("--slots", type=click.IntRange(min=2), help="Slots per KV head (rule slots).")
segment_option = click.option("--segment-length", type=click.IntRange(min=1), help="Tokens per segment; default: 512.")
k_option = click.option("-k", type=click.IntRange(min=1), default=4, show_default=True, help="Passages to use.")
file_argument = click.argument("file", type=click.Path(path_type=Path))


@main.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The memory file to write.")
@model_option
@adapter_option
@rule_option
@slots_option
@segment_option
@click.option("--no-passages", is_flag=True, help="Keep the compressive memory alone, no text.")
@json_option
def ingest(
    sources: tuple[str, ...],
    output: Path,
    model: str | None,
    rule: str | None,
    slots: int | None,
    segment_length: int | None,
    adapter: str | None,
    no_passages: bool,
    as_json: bool,
) -> None:
    """Read documents into a memory file.

    SOURCE is a PDF, EPUB, HTML, Markdown or text file, a directory, or a quoted glob pattern.

    \b
    infinimem ingest book.pdf -o book.safetensors
    infinimem ingest 'papers/**/*.pdf' notes.md -o library.safetensors
    """
    from .document_memory import DocumentMemory
    from .memory_file import check_writable
    from .readers import find_sources, open_source

    check_writable(output)
    for path in find_sources(sources):
        open_source(path)
    loaded = _load_model(model, rule, slots, segment_length, adapter)
    started = time.perf_counter()
    memory = DocumentMemory.ingest(sources, model=loaded, passages=not no_passages, progress=not as_json)
    seconds = time.perf_counter() - started
    file_bytes = memory.save(output)
    info = memory.info()
    result = {
        "tokens": info["tokens"],
        "seconds": round(seconds, 3),
        "tokens_per_second": round(info["tokens"] / seconds, 1),
        "pages": info["pages"],
        "passages": info["passages"],
        "memory_bytes": info["memory_bytes"],
        "file_bytes": file_bytes,
        "rule": info["rule"],
        "model": info["model"],
    }
    if as_json:
        _print_json(result)
        return
    click.echo(
        f"Read {result['tokens']:,} tokens of {_count(result['pages'], 'page')} in {seconds:,.1f} s "
        f"({result['tokens_per_second']:,.0f} tokens/s).\n"
        f"Wrote {output}: {_size(file_bytes)}, of which {_size(result['memory_bytes'])} are memory "
        f"(rule {result['rule']}, model {result['model']})."
    )


@main.command()
@file_argument
@click.argument("question")
@k_option
@click.option("--mode", type=click.Choice(["recall", "memory"]), default="recall", show_default=True,
              help="recall: from the best passages; memory: from the compressive memory alone.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@model_option
@adapter_option
@json_option
def ask(
    file: Path,
    question: str,
    k: int,
    mode: str,
    max_new_tokens: int,
    model: str | None,
    adapter: str | None,
    as_json: bool,
) -> None:
    """Answer a question from a memory file.

    \b
    infinimem ask book.safetensors "Who is Ishmael?"
    infinimem ask book.safetensors "Who is Ishmael?" --mode memory
    """
    from .document_memory import DocumentMemory

    memory = DocumentMemory.load(file, model=model, adapter=adapter)
    answer = memory.ask(question, k=k, mode=mode, max_new_tokens=max_new_tokens)
    if as_json:
        _print_json(answer.to_dict())
        return
    click.echo(answer.text)
    _print_citations(answer.passages)


@main.command()
@file_argument
@k_option
@model_option
@adapter_option
def chat(file: Path, k: int, model: str | None, adapter: str | None) -> None:
    """Talk about a document; earlier questions are remembered. An empty line or Ctrl-D ends."""
    from .document_memory import DocumentMemory

    memory = DocumentMemory.load(file, model=model, adapter=adapter)
    history: list[tuple[str, str]] = []
    while True:
        try:
            question = click.prompt("you", prompt_suffix="> ", default="", show_default=False)
        except click.Abort:
            click.echo()
            return
        if not question.strip():
            return
        try:
            said = ""
            for piece in memory.stream(question, k=k, history=history):
                click.echo(piece, nl=False)
                said += piece
        except InfinimemError as error:
            click.echo(f"Error: {error}", err=True)
            continue
        click.echo()
        # A small model loses the thread in a long history.
        history = [*history, (question, said.strip())][-3:]


@main.command()
@file_argument
@click.option("--focus", help="What the summary should be about.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=300, show_default=True)
@model_option
@adapter_option
@json_option
def summarize(
    file: Path, focus: str | None, max_new_tokens: int, model: str | None, adapter: str | None, as_json: bool
) -> None:
    """Summarize a document, or what it says about something (--focus)."""
    from .document_memory import DocumentMemory

    answer = DocumentMemory.load(file, model=model, adapter=adapter).summarize(focus, max_new_tokens=max_new_tokens)
    if as_json:
        shown = answer.to_dict()
        _print_json({"summary": shown.pop("answer"), "focus": focus, **shown})
        return
    click.echo(answer.text)
    _print_citations(answer.passages)


@main.command()
@file_argument
@click.argument("query")
@k_option
@json_option
def retrieve(file: Path, query: str, k: int, as_json: bool) -> None:
    """Find the passages that fit a query best. Needs no model."""
    from .document_memory import DocumentMemory

    found = DocumentMemory.load(file).retrieve(query, k)
    if as_json:
        _print_json({"query": query, "passages": [passage.to_dict() for passage in found]})
        return
    if not found:
        click.echo("No passage has any of these words.")
    for passage in found:
        click.secho(f"{_place(passage)}  score {passage.score:.2f}", bold=True)
        click.echo(passage.text + "\n")


@main.command()
@file_argument
@json_option
@click.option("--html", type=click.Path(path_type=Path), metavar="REPORT", help="Also write a report to this file.")
def inspect(file: Path, as_json: bool, html: Path | None) -> None:
    """Show what is in a memory file, without its model."""
    from .inspect_file import describe, html_report

    described = describe(file)
    if html is not None:
        from .memory_file import write_atomically

        write_atomically(html, html_report(described).encode())
    if as_json:
        _print_json(described)
        return
    for key in ("file", "file_bytes", "format", "model", "adapter", "rule", "settings", "tokens", "pages", "passages"):
        click.echo(f"{key.replace('_', ' '):<12} {_plain(described[key])}")
    click.echo(f"{'memory':<12} {_size(described['memory_bytes'])} in {len(described['layers'])} layers")
    for source in described["sources"]:
        click.echo(f"{'source':<12} {_plain(source['name'])} ({source['kind']}, {_count(source['pages'], 'page')})")
    click.echo(f"{'fingerprint':<12} {described['fingerprint']}")


@main.command()
@file_argument
@click.option("--model", "-m", metavar="M", help="Also load this model ('default' for the one named in the file).")
@adapter_option
@json_option
def verify(file: Path, model: str | None, adapter: str | None, as_json: bool) -> None:
    """Check a memory file: checksums, finite values, structure; with --model also that this model made it."""
    from .document_memory import DocumentMemory

    memory = DocumentMemory.load(file)
    checks = ["structure", "checksums", "finite values", "passages"]
    if model is not None:
        memory = DocumentMemory.load(file, model=None if model == "default" else model, adapter=adapter)
        memory.open()
        checks.append("model")
    if as_json:
        _print_json({"file": str(file), "ok": True, "checked": checks})
    else:
        click.echo(f"{file} is sound: {', '.join(checks)}.")


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE FILE...", type=click.Path(path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The memory file to write.")
@json_option
def merge(files: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Make one memory file of several that were read with the same model and settings."""
    from .document_memory import DocumentMemory
    from .memory_file import check_writable

    if len(files) < 2:
        raise click.UsageError("merge needs at least two files.")
    check_writable(output)
    merged = DocumentMemory.merge([DocumentMemory.load(file) for file in files])
    file_bytes = merged.save(output)
    info = merged.info()
    if as_json:
        _print_json({"file": str(output), "file_bytes": file_bytes, **info})
    else:
        click.echo(
            f"Wrote {output}: {_count(len(info['sources']), 'source')}, {info['tokens']:,} tokens, {_size(file_bytes)}."
        )


@main.group("eval", cls=_Group)
def evaluate() -> None:
    """Measure the memory."""


@evaluate.command("passkey")
@click.option("--tokens", type=click.IntRange(min=128), default=4096, show_default=True, help="Document length.")
@click.option("--depths", default="0,0.5,1", show_default=True, help="Where the key hides: 0 start, 1 end.")
@click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Keys per depth.")
@click.option("--filler", type=click.Path(exists=True, path_type=Path), help="A document to hide the keys in.")
@click.option("--seed", type=int, default=0, show_default=True)
@rule_option
@slots_option
@segment_option
@model_option
@adapter_option
@json_option
def eval_passkey(
    tokens: int,
    depths: str,
    samples: int,
    filler: Path | None,
    seed: int,
    rule: str | None,
    slots: int | None,
    segment_length: int | None,
    model: str | None,
    adapter: str | None,
    as_json: bool,
) -> None:
    """Hide five digits in a long text, read it into the memory, and ask for them.

    \b
    infinimem eval passkey --tokens 32768
    infinimem eval passkey --tokens 8192 --filler novel.txt --slots 1024
    """
    from .evaluate.passkey import passkey

    try:
        places = [float(depth) for depth in depths.split(",")]
    except ValueError:
        raise click.BadParameter("give numbers between 0 and 1, such as 0,0.5,1", param_hint="--depths") from None
    text = None if filler is None else _text_of(filler)
    loaded = _load_model(model, rule, slots, segment_length, adapter)
    with _counter("keys", as_json) as count:
        result = passkey(loaded, tokens, depths=places, samples=samples, filler=text, seed=seed, on_sample=count)
    if as_json:
        _print_json(result)
        return
    click.echo(
        f"{result['rule']} {result['rule_settings']}: {tokens:,} tokens, {result['segments']} segments, "
        f"{_size(result['memory_bytes'])} of memory"
    )
    for depth, share in result["accuracy"].items():
        click.echo(f"depth {depth}: {share:.0%} of digits, {result['exact'][depth]:.0%} of keys")


@evaluate.command("perplexity")
@click.argument("textfile", type=click.Path(path_type=Path))
@click.option("--limit", type=click.IntRange(min=1), help="Tokens of the text to use.")
@rule_option
@slots_option
@segment_option
@model_option
@adapter_option
@json_option
def eval_perplexity(
    textfile: Path,
    limit: int | None,
    rule: str | None,
    slots: int | None,
    segment_length: int | None,
    model: str | None,
    adapter: str | None,
    as_json: bool,
) -> None:
    """Perplexity of a document with the memory, and with the local window alone (lower is better)."""
    from .evaluate.perplexity import perplexity

    text = _text_of(textfile)
    loaded = _load_model(model, rule, slots, segment_length, adapter)
    with _counter("segments", as_json) as count:
        result = perplexity(loaded, text, limit=limit, on_segment=count)
    if as_json:
        _print_json(result)
        return
    change = result["memory"] / result["window"] - 1
    click.echo(
        f"{result['rule']}: {result['scored_tokens']:,} tokens scored; perplexity {result['memory']:.3f} with the "
        f"memory, {result['window']:.3f} with the window alone ({change:+.1%})"
    )


@main.command()
@click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG.toml")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the output directory.")
@click.option("--device", metavar="D", help="Where to train, such as cpu or cuda:1; default: a GPU if there is one.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after so long, with a checkpoint.")
@json_option
def adapt(config: Path, resume: bool, device: str | None, minutes: float | None, as_json: bool) -> None:
    """Train an adapter: LoRA and memory gates, as the configuration says.

    Ctrl-C stops after the last whole step and leaves a checkpoint and the adapter as it is.

    \b
    infinimem adapt adapt.toml --minutes 60
    infinimem adapt adapt.toml --resume
    infinimem ask book.safetensors "Who is Ishmael?" --adapter runs/first/adapter
    """
    from .adapt.config import read_config

    parsed = read_config(config)
    from .adapt.log import training_progress
    from .adapt.train import adapt as train

    with contextlib.nullcontext() if as_json else training_progress() as on_step:
        result = train(parsed, resume=resume, device=device, minutes=minutes, on_step=on_step)
    if as_json:
        _print_json(result)
        return
    state = "finished" if result["finished"] else f"stopped; go on with: infinimem adapt {config} --resume"
    losses = ", ".join(f"{kind} {loss:.3f}" for kind, loss in result["losses"].items())
    click.echo(
        f"Wrote {result['adapter']} after {_count(result['steps'], 'step')}, {result['tokens']:,} tokens, "
        f"{result['seconds'] / 60:,.1f} minutes ({losses or 'no losses yet'}); {state}."
    )


def _load_model(
    model: str | None, rule: str | None, slots: int | None, segment_length: int | None, adapter: str | None = None
) -> InfiniModel:
    from .model import InfiniModel

    if slots is not None and rule not in (None, "slots"):
        raise click.UsageError(f"--slots belongs to the rule slots, not {rule}.")
    return InfiniModel.from_pretrained(
        model,
        rule=rule,
        rule_settings=None if slots is None else {"slots": slots},
        segment_length=segment_length,
        adapter=adapter,
    )


def _text_of(path: Path) -> str:
    from .readers import open_source, read_pages

    return "\n\n".join(page.text for page in read_pages(open_source(path)))


@contextlib.contextmanager
def _counter(what: str, silent: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error for things that are counted; None where no one watches."""
    if silent or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def _plain(value: Any) -> str:
    """Text for a terminal: no control characters, whatever a document's name holds."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _place(passage: Passage) -> str:
    title = f", {_plain(passage.title)}" if passage.title else ""
    return f"{_plain(passage.source)}, page {passage.page}{title}"


def _print_citations(passages: list[Passage]) -> None:
    if passages:
        click.echo()
    for number, passage in enumerate(passages, start=1):
        click.secho(f"[{number}] {_place(passage)}", dim=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} KB"
