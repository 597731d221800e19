"""`infinimem ingest-many`: a memory file for each document."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_options import MOST_WARNINGS, LoadModel, print_json, reading_options, skipped
from .errors import InvalidSetting, MemoryFileError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .errors import SourceError
    from .model import InfiniModel
    from .readers import ReaderLimits, Source


@click.command("ingest-many")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="The directory to write memory files into."
)
@click.option("--resume", is_flag=True, help="Leave out documents whose memory files are there and up to date.")
@reading_options
def ingest_many(
    sources: tuple[str, ...],
    output: Path,
    load_model: LoadModel,
    no_passages: bool,
    resume: bool,
    skip_errors: bool,
    limits: ReaderLimits,
    as_json: bool,
) -> None:
    """Read documents into a memory file each, several at once.

    SOURCE is a PDF, EPUB, HTML, Markdown or text file, a directory, or a quoted glob pattern. The memory of book.pdf
    is DIRECTORY/book.pdf.safetensors, written as soon as the document is read.

    \b
    infinimem ingest-many notes/ -o memories
    infinimem ingest-many 'papers/**/*.pdf' -o memories --skip-errors --resume
    """
    from .document_memory import DocumentMemory
    from .many import open_each
    from .memory_file import check_memory_target, make_directory
    from .readers import find_sources, name_of

    failed: list[dict[str, Any]] = []

    def left_out(name: str, page: int | None, reason: str) -> None:
        failed.append({"source": name, "page": page, "reason": reason})
        if not as_json and len(failed) <= MOST_WARNINGS:
            click.echo(f"Warning: left out {skipped(name, page, reason)}", err=True)

    def on_error(path: Path, error: SourceError) -> None:
        left_out(name_of(path), None, str(error))

    found = find_sources(sources)
    targets = _targets(found, output)
    told = on_error if skip_errors else None
    # What cannot be read is said before the model is loaded, which takes a while.
    opened = list(open_each(found, limits, told))
    make_directory(output)
    for target in targets.values():
        check_memory_target(target)
    model = load_model()
    waiting = [
        path
        for path, source in opened
        if not (resume and _is_there(source, targets[source.name], model, not no_passages, skip_errors))
    ]
    started, tokens, written = time.perf_counter(), 0, []
    memories = DocumentMemory.ingest_many(
        waiting, model=model, passages=not no_passages, progress=not as_json, limits=limits, on_error=told
    )
    for memory in memories:
        info = memory.info()
        source = info["sources"][0]
        target = targets[source["name"]]
        size = memory.save(target)
        tokens += info["tokens"]
        written.append({"source": source["name"], "file": str(target), "tokens": info["tokens"], "file_bytes": size})
        for row in source["skipped"]:
            left_out(source["name"], row["page"], row["reason"])
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "already_there": len(opened) - len(waiting),
        "written": written,
        "skipped": failed,
    }
    if as_json:
        print_json(result)
        return
    if (more := len(failed) - MOST_WARNINGS) > 0:
        click.echo(f"Warning: left out {more:,} more; --json has all of it.", err=True)
    there = f"; {result['already_there']:,} were there already" if result["already_there"] else ""
    click.echo(
        f"Read {tokens:,} tokens in {seconds:,.1f} s ({result['tokens_per_second']:,.0f} tokens/s).\n"
        f"Wrote {len(written):,} memory file{'' if len(written) == 1 else 's'} into {output}{there}."
    )


def _targets(found: Sequence[Path], output: Path) -> dict[str, Path]:
    """Where the memory of each document goes, by its name. Raises InvalidSetting where two have the same."""
    from .readers import name_of

    named: dict[str, Path] = {}
    for path in found:
        # Some file systems take capitals for small letters.
        if (other := named.setdefault(name_of(path).casefold(), path)) is not path:
            raise InvalidSetting(
                f"'{other}' and '{path}' have the same name, and so would their memory files; read them into two "
                "directories"
            )
    return {name_of(path): output / f"{name_of(path)}.safetensors" for path in found}


def _is_there(source: Source, target: Path, model: InfiniModel, passages: bool, skip_errors: bool) -> bool:
    """Whether the memory file has this document, as it is now, under this model; it may have grown since."""
    from .memory_file import differences, read_memory_file

    try:
        file = read_memory_file(target)
    except MemoryFileError:
        return False
    known = [entry for entry in file.sources if entry["sha256"] == source.sha256]
    return (
        bool(known)
        and (skip_errors or not known[0]["skipped"])
        and (file.passages is not None) == passages
        and not differences(file.identity, model.identity())
    )
