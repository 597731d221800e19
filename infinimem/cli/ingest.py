"""`infinimem ingest` and `ingest-many`: documents into memory files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import CheckpointMismatch, InfinimemError, SourceNotFound
from .options import ingest_options
from .output import MOST_WARNINGS, count, doubts, print_json, size, skipped

if TYPE_CHECKING:
    from ..errors import SourceError

_DOUBT_ADVICE = "Answers may be wrong or missing there."


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The memory file to write.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted ingestion into this file stopped.")
@ingest_options
def ingest(
    sources: tuple[str, ...],
    output: Path,
    resume: bool,
    settings: dict[str, Any],
    no_passages: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Read documents into a memory file.

    SOURCE is a PDF, EPUB, Office, mail, HTML, Markdown or text file, a directory, or a quoted glob pattern. Of a
    directory, all is read that can be, and the rest is named. With -o book.safetensors, book.safetensors.partial keeps
    what was read so far, until all documents are read.

    \b
    infinimem ingest book.pdf -o book.safetensors
    infinimem ingest 'papers/**/*.pdf' notes.md -o library.safetensors
    """
    from ..document_memory import DocumentMemory
    from ..ingest.target import partial_of
    from ..storage.files import version_of

    partial = partial_of(output)
    before = version_of(partial)
    try:
        memory = DocumentMemory.ingest(
            sources,
            passages=not no_passages,
            progress=not as_json,
            output=output,
            resume=resume,
            **given,
            **settings,
        )
    except (InfinimemError, KeyboardInterrupt) as error:
        kept = version_of(partial)
        goes_on = resume and not isinstance(error, (CheckpointMismatch, SourceNotFound))
        if kept is not None and (goes_on or kept != before):
            click.echo(f"What was read so far is in {partial}; go on with --resume.", err=True)
        raise
    info = memory.info()
    tokens, seconds = memory.speed or (0, 0.0)
    result = {
        "tokens": info["tokens"],
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
        "pages": info["pages"],
        "passages": info["passages"],
        "memory_bytes": info["memory_bytes"],
        "file_bytes": output.stat().st_size,
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
    for line in [line for source in info["sources"] for line in doubts(source)][:MOST_WARNINGS]:
        click.echo(f"Warning: {line}. {_DOUBT_ADVICE}", err=True)
    click.echo(
        f"Read {result['tokens']:,} tokens of {count(result['pages'], 'page')} in {seconds:,.1f} s "
        f"({result['tokens_per_second']:,.0f} tokens/s).\n"
        f"Wrote {output}: {size(result['file_bytes'])}, of which {size(result['memory_bytes'])} are memory "
        f"(rule {result['rule']}, model {result['model']})."
    )


@click.command("ingest-many")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="The directory to write memory files into."
)
@click.option("--resume", is_flag=True, help="Leave out documents that have an up-to-date memory file.")
@ingest_options
def ingest_many(
    sources: tuple[str, ...],
    output: Path,
    settings: dict[str, Any],
    no_passages: bool,
    skip_errors: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Read each document into a separate memory file, several documents in one batch.

    SOURCE is a PDF, EPUB, Office, mail, HTML, Markdown or text file, a directory, or a quoted glob pattern. Of a
    directory, all is read that can be, and the rest is named. With -o memories, the memory of book.pdf is
    memories/book.pdf.safetensors, written as soon as the document is read.

    \b
    infinimem ingest-many notes/ -o memories
    infinimem ingest-many 'papers/**/*.pdf' -o memories --skip-errors --resume
    """
    from ..document_memory import DocumentMemory
    from ..readers import find_files, name_of

    left: list[dict[str, Any]] = []
    given_up = 0

    def leave_out(name: str, page: int | None, reason: str) -> None:
        left.append({"source": name, "page": page, "reason": reason})
        if not as_json and len(left) <= MOST_WARNINGS:
            click.echo(f"Warning: left out {skipped(name, page, reason)}", err=True)

    def on_error(path: Path, error: SourceError) -> None:
        nonlocal given_up
        given_up += 1
        leave_out(name_of(path), None, str(error))

    memories = DocumentMemory.ingest_many(
        sources,
        passages=not no_passages,
        progress=not as_json,
        output=output,
        on_error=on_error,
        skip_errors=skip_errors,
        **given,
        **settings,
    )
    started, tokens, written = time.perf_counter(), 0, []
    for memory in memories:
        info = memory.info()
        source = info["sources"][0]
        file = output / f"{source['name']}.safetensors"
        tokens += info["tokens"]
        row = {"source": source["name"], "file": str(file), "tokens": info["tokens"]}
        written.append({**row, "file_bytes": file.stat().st_size})
        for part in source["skipped"]:
            leave_out(source["name"], part["page"], part["reason"])
        for line in () if as_json else doubts(source):
            click.echo(f"Warning: {line}. {_DOUBT_ADVICE}", err=True)
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "already_there": len(find_files(sources)) - len(written) - given_up,
        "written": written,
        "skipped": left,
    }
    if as_json:
        print_json(result)
        return
    if (more := len(left) - MOST_WARNINGS) > 0:
        click.echo(f"Warning: left out {more:,} more; --json shows all of it.", err=True)
    there = f"; {result['already_there']:,} were there already" if result["already_there"] else ""
    click.echo(
        f"Read {tokens:,} tokens in {seconds:,.1f} s ({result['tokens_per_second']:,.0f} tokens/s).\n"
        f"Wrote {count(len(written), 'memory file')} into {output}{there}."
    )
