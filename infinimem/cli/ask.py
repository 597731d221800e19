"""`infinimem ask`, `summarize` and `retrieve`: one question to one memory file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..answering.decoding import SHORT, STYLES
from .options import choice_option, json_option, memory_options
from .output import plain, print_json, prose

if TYPE_CHECKING:
    from ..document_memory import DocumentMemory
    from ..text.passages import Passage

k_option = click.option("-k", type=click.IntRange(min=1), default=4, show_default=True, help="Most passages to use.")


style_option = click.option(
    "--style", type=click.Choice(STYLES), default=SHORT, show_default=True,
    help="short: a few words; full: whole sentences.",
)  # fmt: skip
system_option = click.option("--system", help="Your own instructions to the model.")
new_tokens_option = click.option(
    "--max-new-tokens", type=click.IntRange(min=1), help="[default: 64, and 192 for --style full]"
)


@click.command()
@memory_options
@click.argument("question")
@k_option
@choice_option("answer-from", ["passages", "memory"], renamed={"recall": "passages"},
               help="passages: the best passages; memory: the compressive memory alone.")  # fmt: skip
@style_option
@system_option
@new_tokens_option
@json_option
def ask(memory: DocumentMemory, question: str, k: int, answer_from: str, as_json: bool, **asked: Any) -> None:
    """Answer a question from a memory file.

    \b
    infinimem ask book.safetensors "Who is Ishmael?"
    infinimem ask book.safetensors "Who is Ishmael?" --answer-from memory
    """
    answer = memory.ask(question, k=k, answer_from=answer_from, **asked)
    if as_json:
        print_json(answer.to_dict())
        return
    click.echo(prose(answer.text))
    print_citations(answer.passages)


@click.command()
@memory_options
@click.option("--focus", help="What the summary should be about.")
@system_option
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=300, show_default=True)
@json_option
def summarize(
    memory: DocumentMemory, focus: str | None, system: str | None, max_new_tokens: int, as_json: bool
) -> None:
    """Summarize a document, or what it says about something (--focus)."""
    answer = memory.summarize(focus, system=system, max_new_tokens=max_new_tokens)
    if as_json:
        answered = answer.to_dict()
        shared = {key: answered[key] for key in ("mode", "passages", "forced")}
        print_json({"summary": answer.text, "focus": focus, **shared})
        return
    click.echo(prose(answer.text))
    print_citations(answer.passages)


@click.command()
@memory_options
@click.argument("query")
@k_option
@choice_option("rank-by", ["hybrid", "learned", "lexical"], renamed={"memory": "learned"},
               help="learned: by the term weights that the model gave the passages; lexical: by BM25, without loading "
               "the model; hybrid: by both.")  # fmt: skip
@json_option
def retrieve(memory: DocumentMemory, query: str, k: int, rank_by: str, as_json: bool) -> None:
    """Find the passages that fit a query best."""
    found = memory.retrieve(query, k, rank_by=rank_by)
    if as_json:
        print_json({"query": query, "passages": [passage.to_dict() for passage in found]})
        return
    if not found:
        click.echo("No passage has any of these words.")
    for passage in found:
        click.secho(f"{place(passage)}  score {passage.score:.2f}", bold=True)
        click.echo(prose(passage.text) + "\n")


def place(passage: Passage) -> str:
    """Source and place of a passage."""
    return f"{plain(passage.source)}, {plain(passage.place)}"


def print_citations(passages: list[Passage]) -> None:
    """Print a numbered line for each passage."""
    if passages:
        click.echo()
    for number, passage in enumerate(passages, start=1):
        click.secho(f"[{number}] {place(passage)}", dim=True)
