"""`infinimem inspect`, `verify` and `merge`: commands about memory files."""

from __future__ import annotations

from pathlib import Path

import click

from .options import adapter_option, file_argument, json_option, model_option
from .output import count, doubts, plain, print_json, size, skipped


@click.command()
@file_argument
@json_option
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="REPORT", help="Also write an HTML report to this file."
)
def inspect(file: Path, as_json: bool, html: Path | None) -> None:
    """Show what is in a memory file, without its model."""
    from .report import describe, html_report

    described = describe(file)
    if html is not None:
        from ..storage.files import write_atomically

        write_atomically(html, html_report(described).encode())
    if as_json:
        print_json(described)
        return
    for key in ("file", "file_bytes", "format", "model", "adapter", "rule", "settings", "tokens", "pages", "passages"):
        click.echo(f"{key.replace('_', ' '):<12} {plain(described[key])}")
    layers = len(described["layers"])
    where = f"in {layers} layers" if layers else "of tokens, which are read again when they are needed"
    click.echo(f"{'memory':<12} {size(described['memory_bytes'])} {where}")
    for source in described["sources"]:
        click.echo(
            f"{'source':<12} {plain(source['name'])} ({plain(source['kind'])}, {count(source['pages'], 'page')})"
        )
        for name, value in source["about"].items():
            click.echo(f"{'':<12} {plain(name)}: {plain(value)}")
        for what, times in source["left_out"].items():
            click.echo(f"{'left out':<12} {times:,} {plain(what)} of {plain(source['name'])}")
        for row in source["skipped"]:
            click.echo(f"{'left out':<12} {skipped(source['name'], row['page'], row['reason'])}")
        if source["recognized"]:
            percents = [row["percent"] for row in source["recognized"]]
            pages = count(len(percents), "page")
            mean = sum(percents) / len(percents)
            click.echo(f"{'recognized':<12} {pages}, with {mean:.0f}% confidence, the worst with {min(percents)}%")
        for line in doubts(source):
            click.echo(f"{'doubtful':<12} {line}")
    click.echo(f"{'fingerprint':<12} {described['fingerprint']}")


@click.command()
@file_argument
@click.option("--model", "-m", metavar="M", help="Also load this model; 'default': the model that the file names.")
@adapter_option
@json_option
def verify(file: Path, model: str | None, adapter: str | None, as_json: bool) -> None:
    """Check a memory file: structure, checksums, finite values. With --model or --adapter, also that they made it."""
    from ..document_memory import DocumentMemory

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


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE FILE...", type=click.Path(path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The memory file to write.")
@model_option
@adapter_option
@json_option
def merge(files: tuple[Path, ...], output: Path, model: str | None, adapter: str | None, as_json: bool) -> None:
    """Merge memory files that were made with the same model and settings into one."""
    from ..document_memory import DocumentMemory
    from ..storage.memory_file import check_memory_target

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
            f"Wrote {output}: {count(len(info['sources']), 'source')}, {info['tokens']:,} tokens, {size(file_bytes)}."
        )
