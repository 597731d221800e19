"""The command line: prints, exit codes, progress bars. All work is done elsewhere."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import __version__
from .cli_bench import bench
from .cli_eval import evaluate
from .cli_many import ingest_many
from .cli_options import (
    MOST_WARNINGS,
    Group,
    LoadModel,
    adapter_option,
    counter,
    file_argument,
    json_option,
    memory_options,
    model_option,
    plain,
    print_json,
    prose,
    reading_options,
    size,
    skipped,
)
from .errors import CheckpointMismatch, InfinimemError, MemoryFileError, NotReplaced
from .heap import collect_rarely

if TYPE_CHECKING:
    from .adapt.config import AddressRun
    from .document_memory import DocumentMemory
    from .passages import Passage
    from .readers import ReaderLimits


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="infinimem")
def main() -> None:
    """Read a document once, keep one small memory file, ask it later.

    \b
    infinimem ingest book.pdf -o book.safetensors
    infinimem ask book.safetensors "Who is Ishmael?"
    """
    collect_rarely()


k_option = click.option("-k", type=click.IntRange(min=1), default=4, show_default=True, help="Passages to use.")


@main.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The memory file to write.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted ingest into the same file stopped.")
@reading_options
def ingest(
    sources: tuple[str, ...],
    output: Path,
    load_model: LoadModel,
    no_passages: bool,
    resume: bool,
    skip_errors: bool,
    limits: ReaderLimits,
    as_json: bool,
) -> None:
    """Read documents into a memory file.

    While reading goes on, FILE.partial keeps what was read so far.

    SOURCE is a PDF, EPUB, HTML, Markdown or text file, a directory, or a quoted glob pattern.

    \b
    infinimem ingest book.pdf -o book.safetensors
    infinimem ingest 'papers/**/*.pdf' notes.md -o library.safetensors
    """
    from .document_memory import DocumentMemory
    from .memory_file import check_memory_target, locked, read_memory_file
    from .readers import find_sources, open_source

    with locked(output):
        check_memory_target(output)
        found = find_sources(sources)
        partial = output.with_name(f"{output.name}.partial")
        if not resume:
            _check_abandoned(partial, found)
        # What cannot be read is said before the model is loaded, which takes a while.
        for path in () if skip_errors else found:
            open_source(path, limits)
        loaded = load_model()
        known = int(read_memory_file(partial).reading["tokens"]) if resume and partial.exists() else 0
        started = time.perf_counter()
        try:
            memory = DocumentMemory.ingest(
                found,
                model=loaded,
                passages=not no_passages,
                progress=not as_json,
                checkpoint=partial,
                resume=resume,
                skip_errors=skip_errors,
                limits=limits,
            )
            seconds = time.perf_counter() - started
            file_bytes = memory.save(output)
        except (InfinimemError, KeyboardInterrupt) as error:
            if partial.exists() and not isinstance(error, CheckpointMismatch):
                click.echo(f"What was read so far is in {partial}; go on with --resume.", err=True)
            raise
        partial.unlink(missing_ok=True)
    info = memory.info()
    result = {
        "tokens": info["tokens"],
        "seconds": round(seconds, 3),
        "tokens_per_second": round((info["tokens"] - known) / seconds, 1),
        "pages": info["pages"],
        "passages": info["passages"],
        "memory_bytes": info["memory_bytes"],
        "file_bytes": file_bytes,
        "rule": info["rule"],
        "model": info["model"],
        "skipped": [{"source": source["name"], **row} for source in info["sources"] for row in source["skipped"]],
    }
    if as_json:
        print_json(result)
        return
    for row in result["skipped"][:MOST_WARNINGS]:
        click.echo(f"Warning: left out {skipped(row['source'], row['page'], row['reason'])}", err=True)
    if (more := len(result["skipped"]) - MOST_WARNINGS) > 0:
        click.echo(f"Warning: left out {more:,} more; `infinimem inspect` shows all of it.", err=True)
    click.echo(
        f"Read {result['tokens']:,} tokens of {_count(result['pages'], 'page')} in {seconds:,.1f} s "
        f"({result['tokens_per_second']:,.0f} tokens/s).\n"
        f"Wrote {output}: {size(file_bytes)}, of which {size(result['memory_bytes'])} are memory "
        f"(rule {result['rule']}, model {result['model']})."
    )


@main.command()
@memory_options
@click.argument("question")
@k_option
@click.option("--mode", type=click.Choice(["recall", "memory"]), default="recall", show_default=True,
              help="recall: from the best passages; memory: from the compressive memory alone.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@json_option
def ask(memory: DocumentMemory, question: str, k: int, mode: str, max_new_tokens: int, as_json: bool) -> None:
    """Answer a question from a memory file.

    \b
    infinimem ask book.safetensors "Who is Ishmael?"
    infinimem ask book.safetensors "Who is Ishmael?" --mode memory
    """
    answer = memory.ask(question, k=k, mode=mode, max_new_tokens=max_new_tokens)
    if as_json:
        print_json(answer.to_dict())
        return
    click.echo(prose(answer.text))
    if answer.mode != mode:
        click.echo("No passage was shown to the model: this comes from the compressive memory alone.", err=True)
    _print_citations(answer.passages)


@main.command()
@memory_options
@k_option
def chat(memory: DocumentMemory, k: int) -> None:
    """Talk about a document; earlier questions are remembered. An empty line or Ctrl-D ends."""
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
                click.echo(prose(piece), nl=False)
                said += piece
        except InfinimemError as error:
            click.echo(f"Error: {error}", err=True)
            continue
        click.echo()
        # A small model loses the thread in a long history.
        history = [*history, (question, said.strip())][-3:]


@main.command()
@memory_options
@click.option("--focus", help="What the summary should be about.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=300, show_default=True)
@json_option
def summarize(memory: DocumentMemory, focus: str | None, max_new_tokens: int, as_json: bool) -> None:
    """Summarize a document, or what it says about something (--focus)."""
    answer = memory.summarize(focus, max_new_tokens=max_new_tokens)
    if as_json:
        answered = answer.to_dict()
        shared = {key: answered[key] for key in ("mode", "passages", "forced")}
        print_json({"summary": answer.text, "focus": focus, **shared})
        return
    click.echo(prose(answer.text))
    _print_citations(answer.passages)


@main.command()
@memory_options
@click.argument("query")
@k_option
@click.option("--mode", type=click.Choice(["hybrid", "memory", "lexical"]), default="hybrid", show_default=True,
              help="memory: by the addresses that the model gave the passages; lexical: by BM25, without loading the "
              "model; hybrid: by both.")  # fmt: skip
@json_option
def retrieve(memory: DocumentMemory, query: str, k: int, mode: str, as_json: bool) -> None:
    """Find the passages that fit a query best."""
    found = memory.retrieve(query, k, mode=mode)
    if as_json:
        print_json({"query": query, "passages": [passage.to_dict() for passage in found]})
        return
    if not found:
        click.echo("No passage has any of these words.")
    for passage in found:
        click.secho(f"{_place(passage)}  score {passage.score:.2f}", bold=True)
        click.echo(prose(passage.text) + "\n")


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
        print_json(described)
        return
    for key in ("file", "file_bytes", "format", "model", "adapter", "rule", "settings", "tokens", "pages", "passages"):
        click.echo(f"{key.replace('_', ' '):<12} {plain(described[key])}")
    click.echo(f"{'memory':<12} {size(described['memory_bytes'])} in {len(described['layers'])} layers")
    for source in described["sources"]:
        click.echo(
            f"{'source':<12} {plain(source['name'])} ({plain(source['kind'])}, {_count(source['pages'], 'page')})"
        )
        for row in source["skipped"]:
            click.echo(f"{'left out':<12} {skipped(source['name'], row['page'], row['reason'])}")
    click.echo(f"{'fingerprint':<12} {described['fingerprint']}")


@main.command()
@file_argument
@click.option("--model", "-m", metavar="M", help="Also load this model ('default' for the one named in the file).")
@adapter_option
@json_option
def verify(file: Path, model: str | None, adapter: str | None, as_json: bool) -> None:
    """Check a memory file: checksums, finite values, structure; with --model or --adapter also what made it."""
    from .document_memory import DocumentMemory

    memory = DocumentMemory.load(file)
    checks = ["structure", "checksums", "finite values", "passages"]
    if model is not None or adapter is not None:
        memory = DocumentMemory.load(file, model=None if model == "default" else model, adapter=adapter)
        memory.open()
        checks.append("model")
    if as_json:
        print_json({"file": str(file), "ok": True, "checked": checks})
    else:
        click.echo(f"{file} is sound: {', '.join(checks)}.")


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE FILE...", type=click.Path(path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The memory file to write.")
@model_option
@adapter_option
@json_option
def merge(files: tuple[Path, ...], output: Path, model: str | None, adapter: str | None, as_json: bool) -> None:
    """Make one memory file of several that were read with the same model and settings."""
    from .document_memory import DocumentMemory
    from .memory_file import check_memory_target

    if len(files) < 2:
        raise click.UsageError("merge needs at least two files.")
    check_memory_target(output)
    merged = DocumentMemory.merge([DocumentMemory.load(file, model=model, adapter=adapter) for file in files])
    file_bytes = merged.save(output)
    info = merged.info()
    if as_json:
        print_json({"file": str(output), "file_bytes": file_bytes, **info})
    else:
        click.echo(
            f"Wrote {output}: {_count(len(info['sources']), 'source')}, {info['tokens']:,} tokens, {size(file_bytes)}."
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
    from .adapt.config import AddressRun, read_config

    parsed = read_config(config)
    if isinstance(parsed, AddressRun):
        _adapt_addresses(parsed, config, resume, device, minutes, as_json)
        return
    from .adapt.log import training_progress
    from .adapt.train import adapt as train

    with contextlib.nullcontext() if as_json else training_progress() as on_step:
        result = train(parsed, resume=resume, device=device, minutes=minutes, on_step=on_step)
    if as_json:
        print_json(result)
        return
    state = "finished" if result["finished"] else f"stopped; go on with: infinimem adapt {config} --resume"
    losses = ", ".join(f"{kind} {loss:.3f}" for kind, loss in result["losses"].items())
    click.echo(
        f"Wrote {result['adapter']} after {_count(result['steps'], 'step')}, {result['tokens']:,} tokens, "
        f"{result['seconds'] / 60:,.1f} minutes ({losses or 'no losses yet'}); {state}."
    )


def _adapt_addresses(
    run: AddressRun, config: Path, resume: bool, device: str | None, minutes: float | None, as_json: bool
) -> None:
    from .adapt.addresses import adapt_addresses

    with counter("documents", as_json) as count:
        result = adapt_addresses(run, resume=resume, device=device, minutes=minutes, on_document=count)
    if as_json:
        print_json(result)
    elif result["finished"]:
        apart = result["apart"]
        click.echo(
            f"Wrote {result['adapter']} after {result['documents']:,} documents and {result['questions']:,} questions, "
            f"{result['seconds'] / 60:,.1f} minutes (losses {', '.join(map(str, result['losses']))}; apart: MRR "
            f"{apart['mrr'][str(result['settings']['lexical'])]}, {apart['strangers_refused']:.0%} of another "
            f"document's questions refused at {apart['refused']:.0%} of its own)."
        )
    else:
        click.echo(f"Stopped after {result['documents']:,} documents; go on with: infinimem adapt {config} --resume")


main.add_command(evaluate)
main.add_command(bench)
main.add_command(ingest_many)


def _place(passage: Passage) -> str:
    title = f", {plain(passage.title)}" if passage.title else ""
    return f"{plain(passage.source)}, page {passage.page}{title}"


def _check_abandoned(partial: Path, found: list[Path]) -> None:
    """Raise NotReplaced where an interrupted reading of documents with other names would be lost."""
    from .memory_file import read_memory_file
    from .readers import name_of

    try:
        begun = [str(source["name"]) for source in read_memory_file(partial).sources]
    except MemoryFileError:
        return
    if begun != [name_of(path) for path in found][: len(begun)]:
        names = ", ".join(f"'{name}'" for name in begun)
        raise NotReplaced(
            f"'{partial}' keeps an interrupted reading of {names}; go on with these and --resume, delete it, or name "
            "another output"
        )


def _print_citations(passages: list[Passage]) -> None:
    if passages:
        click.echo()
    for number, passage in enumerate(passages, start=1):
        click.secho(f"[{number}] {_place(passage)}", dim=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
