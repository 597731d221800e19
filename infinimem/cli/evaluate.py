"""The `eval` commands. All measuring is done in `evaluate/`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .options import Command, Group, json_option, load_model, model_options
from .output import counter, plain, print_json, size

path_type = click.Path(path_type=Path)
seed_option = click.option("--seed", type=int, default=0, show_default=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _data_options(noun: str) -> Callable[[Command], Command]:
    """DATA, and how much of it is used. noun: the things that --limit counts."""
    documents = "Documents to use, from the file's start; default: all."

    def decorate(command: Command) -> Command:
        command = click.option("--documents", type=click.IntRange(min=1), help=documents)(command)
        limit = f"{noun} in all, spread evenly over the documents."
        command = click.option("--limit", type=click.IntRange(min=1), help=limit)(command)
        return click.argument("data", type=path_type)(command)

    return decorate


def _measured(
    measure: Callable[..., dict[str, Any]], noun: str, settings: dict[str, Any], as_json: bool, *data: Any, **asked: Any
) -> dict[str, Any] | None:
    """Load the model and measure, with a progress bar; the result, or None where it was printed as JSON.

    noun: one of the things that are counted; `measure` takes `on_{noun}`.
    """
    loaded = load_model(settings)
    with counter(noun, as_json) as count:
        result = measure(loaded, *data, **{f"on_{noun}": count}, **asked)
    if as_json:
        print_json(result)
    return None if as_json else result


@click.group("eval", cls=Group)
def evaluate() -> None:
    """Measure the memory: hidden facts, perplexity, answers, retrieval, summaries."""


@evaluate.command("passkey")
@click.option("--tokens", type=click.IntRange(min=128), default=4096, show_default=True, help="Document length.")
@click.option("--depths", default="0,0.5,1", show_default=True, help="Where a single fact hides: 0 start, 1 end.")
@click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True,
              help="Documents; with a single fact, documents per depth.")  # fmt: skip
@click.option("--filler", type=path_type, help="A document, or a .jsonl(.gz) of books, to hide the facts in.")
@click.option("--needles", type=click.IntRange(min=1), default=1, show_default=True,
              help="Facts in one document, spread evenly.")  # fmt: skip
@click.option("--kind", type=click.Choice(["digits", "names"]), default="digits", show_default=True,
              help="digits: the facts are pass keys; names: the facts have words for values.")  # fmt: skip
@click.option("--memory", type=click.Choice(["own", "emptied", "other"]), default="own", show_default=True,
              help="own: the memory of the document; controls: emptied: no memory; other: the memory of a "
              "document with other values.")  # fmt: skip
@seed_option
@model_options
@json_option
def eval_passkey(
    tokens: int, depths: str, filler: Path | None, settings: dict[str, Any], as_json: bool, **asked: Any
) -> None:
    """Hide facts in a long text, read the text into the memory, and ask for the facts.

    \b
    infinimem eval passkey --tokens 32768
    infinimem eval passkey --tokens 8192 --filler novel.txt --slots 1024
    infinimem eval passkey --tokens 8192 --filler novel.txt --needles 16 --kind names
    """
    from ..datasets.documents import text_of
    from ..evaluate.passkey import passkey

    try:
        places = [float(depth) for depth in depths.split(",")]
    except ValueError:
        raise click.BadParameter("give numbers between 0 and 1, such as 0,0.5,1", param_hint="--depths") from None
    text = None if filler is None else text_of(filler)
    result = _measured(passkey, "sample", settings, as_json, tokens, depths=places, filler=text, **asked)
    if result is None:
        return
    click.echo(
        f"{result['rule']} {result['rule_settings']}: {tokens:,} tokens, {result['segments']} segments, "
        f"{size(result['memory_bytes'])} of memory ({result['memory']})"
    )
    part, whole = ("digits", "keys") if result["kind"] == "digits" else ("answers", "answers")
    for depth, share in result["accuracy"].items():
        unled = f", {result['unled'][depth]:.0%} without a space in the prompt" if part == "digits" else ""
        click.echo(f"depth {depth}: {share:.0%} of {part}, {result['exact'][depth]:.0%} of {whole}{unled}")
    low, high = result["overall"]["exact_interval"]
    click.echo(
        f"all {result['overall']['needles']}: {result['overall']['exact']:.0%} of {whole} ({low:.0%} to {high:.0%})"
    )


@evaluate.command("perplexity")
@click.argument("textfile", type=path_type)
@click.option("--limit", type=click.IntRange(min=1), help="Tokens of each text to use.")
@click.option("--skip", type=click.IntRange(min=0), default=0, help="Tokens to leave out at the start of each text.")
@click.option("--systems", default="memory,window", show_default=True,
              help="memory: with the memory; window: each segment alone; sliding: plain attention over two segments; "
              "exact: the whole past, uncompressed; recent: carried tokens alone, in as many bytes as the "
              "memory has.")  # fmt: skip
@model_options
@json_option
def eval_perplexity(textfile: Path, systems: str, settings: dict[str, Any], as_json: bool, **asked: Any) -> None:
    """Perplexity of a document, or of a .jsonl(.gz) of books, with the memory and without (lower is better)."""
    from ..datasets.documents import books
    from ..evaluate.perplexity import SYSTEMS, perplexity

    texts = books(textfile)
    result = _measured(perplexity, "segment", settings, as_json, texts, systems=_names(systems), **asked)
    if result is None:
        return
    click.echo(f"{result['rule']} {result['rule_settings']}: {result['scored_tokens']:,} tokens scored")
    for row in [*result["documents"], {"title": "all", **result}] if len(texts) > 1 else [{"title": "all", **result}]:
        figures = ", ".join(f"{name} {row[name]:.3f}" for name in SYSTEMS if name in row)
        change = f" ({row['memory'] / row['window'] - 1:+.1%})" if {"memory", "window"} <= set(row) else ""
        click.echo(f"{plain(row['title'])}: {figures}{change}")


@evaluate.command("babi")
@click.argument("file", type=path_type)
@click.option("--noise", required=True, type=path_type, help="A document, or a .jsonl(.gz) of books, to hide facts in.")
@click.option("--tokens", type=click.IntRange(min=128), default=4096, show_default=True, help="Document length.")
@click.option("--tasks", help="Tasks to ask, such as qa1,qa2; default: all in the file.")
@click.option("--limit", type=click.IntRange(min=2), default=20, show_default=True, help="Stories per task.")
@click.option("--shots", type=click.IntRange(min=0), default=2, show_default=True, help="Worked examples per question.")
@seed_option
@model_options
@json_option
def eval_babi(
    file: Path, noise: Path, tokens: int, tasks: str | None, settings: dict[str, Any], as_json: bool, **asked: Any
) -> None:
    """Ask about bAbI stories whose sentences are scattered through a book, with the memory and with controls."""
    from ..datasets.documents import text_of
    from ..datasets.stories import read_stories
    from ..evaluate.babi import AskedStory, babi

    stories = [AskedStory.of(story) for story in read_stories(file, None if tasks is None else _names(tasks))]
    result = _measured(babi, "story", settings, as_json, stories, text_of(noise), tokens, **asked)
    if result is None:
        return
    click.echo(f"{result['rule']} {result['rule_settings']}: {tokens:,} tokens a document")
    for task, scores in [*result["tasks"].items(), ("all", result["overall"])]:
        low, high = scores["differences"]["own-emptied"]["interval"]
        click.echo(
            f"{plain(task)}: {scores['own']:.0%} of {scores['questions']} right, memory emptied "
            f"{scores['emptied']:.0%}, other memory {scores['other']:.0%}; own - emptied {low:+.0%} to {high:+.0%}"
        )


@evaluate.command("qa")
@_data_options("Questions")
@click.option("--modes", default="none,memory,other,recall,absent,gold", show_default=True,
              help="none: no document; memory: the memory alone; other: another document's memory; recall: the best "
              "passages; absent: passages of another document; gold: passages of the right paragraph.")  # fmt: skip
@click.option("-k", type=click.IntRange(min=1), default=4, show_default=True, help="Passages for recall, absent, gold.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=32, show_default=True)
@seed_option
@model_options
@json_option
def eval_qa(
    data: Path, documents: int | None, modes: str, settings: dict[str, Any], as_json: bool, **asked: Any
) -> None:
    """Answer questions about the documents of a .jsonl(.gz), with the memory and with controls (F1, exact match)."""
    from ..datasets.questions import read_questions
    from ..evaluate.qa import qa

    found = read_questions(data)[:documents]
    result = _measured(qa, "question", settings, as_json, found, modes=_names(modes), **asked)
    if result is None:
        return
    click.echo(
        f"{result['rule']} {result['rule_settings']}: {result['questions']:,} questions about "
        f"{result['documents']:,} documents"
    )
    for mode, scores in result["modes"].items():
        low, high = scores["interval"]
        click.echo(
            f"{mode:<6} F1 {scores['f1']:.3f} ({low:.3f} to {high:.3f}), exact match {scores['em']:.3f}, "
            f"not found {scores['not_found']:.0%}"
        )
    for pair, difference in result["differences"].items():
        low, high = difference["interval"]
        click.echo(f"{pair.replace('-', ' - ')}: F1 {difference['f1']:+.3f} ({low:+.3f} to {high:+.3f})")


@evaluate.command("retrieval")
@_data_options("Questions")
@click.option("--systems", default="hybrid,memory,lexical,bm25,minilm", show_default=True,
              help="memory: retrieve by term weights; lexical: by BM25; hybrid: by both; bm25: the library bm25s as it "
              "comes; minilm: embeddings of all-MiniLM-L6-v2 (needs infinimem[eval]).")  # fmt: skip
@seed_option
@model_options
@json_option
def eval_retrieval(
    data: Path, documents: int | None, systems: str, settings: dict[str, Any], as_json: bool, **asked: Any
) -> None:
    """Find passages that answer the questions of a .jsonl(.gz), each in its document; compare with other systems."""
    from ..datasets.questions import read_questions
    from ..evaluate.retrieval import retrieval

    found = read_questions(data)[:documents]
    result = _measured(retrieval, "question", settings, as_json, found, systems=_names(systems), **asked)
    if result is None:
        return
    click.echo(
        f"{result['questions']:,} questions about {result['documents']:,} documents of {result['passages']:,} passages"
    )
    for system, scores in result["systems"].items():
        low, high = scores["recall@1_interval"]
        click.echo(
            f"{system:<7} recall@1 {scores['recall@1']:.3f} ({low:.3f} to {high:.3f}), @3 {scores['recall@3']:.3f}, "
            f"@5 {scores['recall@5']:.3f}, MRR {scores['mrr']:.3f}"
        )


@evaluate.command("summary")
@_data_options("Summaries")
@click.option("--systems", default="infinimem,lead,truncated", show_default=True,
              help="infinimem: the command summarize; lead: the first tokens of the document; truncated: the base "
              "model, given the start of the document.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=300, show_default=True)
@seed_option
@model_options
@json_option
def eval_summary(
    data: Path, documents: int | None, systems: str, settings: dict[str, Any], as_json: bool, **asked: Any
) -> None:
    """Summarize the documents of a .jsonl(.gz); score against people's summaries (ROUGE), beside simple systems."""
    from ..datasets.summaries import read_summaries
    from ..evaluate.summary import summary

    found = read_summaries(data)[:documents]
    result = _measured(summary, "summary", settings, as_json, found, systems=_names(systems), **asked)
    if result is None:
        return
    click.echo(
        f"{result['rule']} {result['rule_settings']}: {result['summaries']:,} summaries of {result['documents']:,} "
        "documents"
    )
    for system, scores in result["systems"].items():
        figures = ", ".join(
            f"{name} {scores[kind]:.3f} ({scores[f'{kind}_interval'][0]:.3f} to {scores[f'{kind}_interval'][1]:.3f})"
            for kind, name in (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L"))
        )
        click.echo(f"{system:<9} {figures}")
