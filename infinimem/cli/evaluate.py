"""The `eval` commands. All measuring is done in `evaluate/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import Group, json_option, load_model, model_options
from .output import counter, plain, print_json, size

path_type = click.Path(path_type=Path)
seed_option = click.option("--seed", type=int, default=0, show_default=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@click.group("eval", cls=Group)
def evaluate() -> None:
    """Measure the memory."""


@evaluate.command("passkey")
@click.option("--tokens", type=click.IntRange(min=128), default=4096, show_default=True, help="Document length.")
@click.option("--depths", default="0,0.5,1", show_default=True, help="Where the one key hides: 0 start, 1 end.")
@click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True,
              help="Documents; with one needle, documents per depth.")  # fmt: skip
@click.option("--filler", type=path_type, help="A document, or a .jsonl(.gz) of books, to hide the keys in.")
@click.option("--needles", type=click.IntRange(min=1), default=1, show_default=True,
              help="Facts in one document, spread evenly.")  # fmt: skip
@click.option("--kind", type=click.Choice(["digits", "names"]), default="digits", show_default=True,
              help="What the facts tell: pass keys, or words.")  # fmt: skip
@click.option("--memory", type=click.Choice(["own", "emptied", "other"]), default="own", show_default=True,
              help="Controls: emptied before the question, or of a document with other values.")  # fmt: skip
@seed_option
@model_options
@json_option
def eval_passkey(
    tokens: int,
    depths: str,
    samples: int,
    filler: Path | None,
    needles: int,
    kind: str,
    memory: str,
    seed: int,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Hide facts in a long text, read it into the memory, and ask for them.

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
    loaded = load_model(settings)
    with counter("needles", as_json) as count:
        result = passkey(
            loaded,
            tokens,
            depths=places,
            samples=samples,
            filler=text,
            needles=needles,
            kind=kind,
            memory=memory,
            seed=seed,
            on_sample=count,
        )
    if as_json:
        print_json(result)
        return
    click.echo(
        f"{result['rule']} {result['rule_settings']}: {tokens:,} tokens, {result['segments']} segments, "
        f"{size(result['memory_bytes'])} of memory ({memory})"
    )
    part, whole = ("digits", "keys") if kind == "digits" else ("answers", "answers")
    for depth, share in result["accuracy"].items():
        unled = f", {result['unled'][depth]:.0%} unled" if kind == "digits" else ""
        click.echo(f"depth {depth}: {share:.0%} of {part}, {result['exact'][depth]:.0%} of {whole}{unled}")
    low, high = result["overall"]["exact_interval"]
    click.echo(
        f"all {result['overall']['needles']}: {result['overall']['exact']:.0%} of {whole} ({low:.0%} to {high:.0%})"
    )


@evaluate.command("perplexity")
@click.argument("textfile", type=path_type)
@click.option("--limit", type=click.IntRange(min=1), help="Tokens of each text to use.")
@click.option("--skip", type=click.IntRange(min=0), default=0, help="Tokens of each text to leave out at its start.")
@click.option("--systems", default="memory,window", show_default=True,
              help="From memory, window, sliding (two segments of plain attention), exact (the past as it is), "
              "recent (all of the memory's bytes for carried tokens).")  # fmt: skip
@model_options
@json_option
def eval_perplexity(
    textfile: Path, limit: int | None, skip: int, systems: str, settings: dict[str, Any], as_json: bool
) -> None:
    """Perplexity of a document, or of a .jsonl(.gz) of books, with the memory and without (lower is better)."""
    from ..datasets.documents import books
    from ..evaluate.perplexity import SYSTEMS, perplexity

    texts = books(textfile)
    loaded = load_model(settings)
    with counter("segments", as_json) as count:
        result = perplexity(loaded, texts, limit=limit, skip=skip, systems=_names(systems), on_segment=count)
    if as_json:
        print_json(result)
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
    file: Path,
    noise: Path,
    tokens: int,
    tasks: str | None,
    limit: int,
    shots: int,
    seed: int,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Ask about bAbI stories whose sentences are scattered through a book, with the memory and with controls."""
    from ..datasets.documents import text_of
    from ..datasets.stories import read_stories
    from ..evaluate.babi import AskedStory, babi

    stories = [AskedStory.of(story) for story in read_stories(file, None if tasks is None else _names(tasks))]
    text = text_of(noise)
    loaded = load_model(settings)
    with counter("stories", as_json) as count:
        result = babi(loaded, stories, text, tokens, limit=limit, shots=shots, seed=seed, on_story=count)
    if as_json:
        print_json(result)
        return
    click.echo(f"{result['rule']} {result['rule_settings']}: {tokens:,} tokens a document")
    for task, scores in [*result["tasks"].items(), ("all", result["overall"])]:
        low, high = scores["differences"]["own-emptied"]["interval"]
        click.echo(
            f"{plain(task)}: {scores['own']:.0%} of {scores['questions']} right, memory emptied "
            f"{scores['emptied']:.0%}, other memory {scores['other']:.0%}; own - emptied {low:+.0%} to {high:+.0%}"
        )


@evaluate.command("qa")
@click.argument("data", type=path_type)
@click.option("--limit", type=click.IntRange(min=1), help="Questions in all, spread evenly over the documents.")
@click.option("--documents", type=click.IntRange(min=1), help="Documents to use, the first in the file; default: all.")
@click.option("--modes", default="none,memory,other,recall,absent,gold", show_default=True,
              help="none: no document; memory: the memory alone; other: another document's memory; recall: from the "
              "best passages; absent: from those of another document; gold: from those of the right text.")  # fmt: skip
@click.option("-k", type=click.IntRange(min=1), default=4, show_default=True, help="Passages for recall.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=32, show_default=True)
@seed_option
@model_options
@json_option
def eval_qa(
    data: Path,
    limit: int | None,
    documents: int | None,
    modes: str,
    k: int,
    max_new_tokens: int,
    seed: int,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Answer questions about the documents of a .jsonl(.gz), with the memory and with controls (F1, exact match)."""
    from ..datasets.questions import read_questions
    from ..evaluate.qa import qa

    found = read_questions(data)[:documents]
    loaded = load_model(settings)
    with counter("questions", as_json) as count:
        result = qa(
            loaded,
            found,
            modes=_names(modes),
            limit=limit,
            k=k,
            max_new_tokens=max_new_tokens,
            seed=seed,
            on_question=count,
        )
    if as_json:
        print_json(result)
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
@click.argument("data", type=path_type)
@click.option("--limit", type=click.IntRange(min=1), help="Questions in all, spread evenly over the documents.")
@click.option("--documents", type=click.IntRange(min=1), help="Documents to use, the first in the file; default: all.")
@click.option("--systems", default="hybrid,memory,lexical,bm25,minilm", show_default=True,
              help="hybrid, memory, lexical: retrieve by both, by term weights, by BM25; bm25: the library bm25s as it "
              "comes; minilm: embeddings of all-MiniLM-L6-v2 (extra eval).")  # fmt: skip
@seed_option
@model_options
@json_option
def eval_retrieval(
    data: Path,
    limit: int | None,
    documents: int | None,
    systems: str,
    seed: int,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Find the passages that answer the questions of a .jsonl(.gz), each in its document, beside other systems."""
    from ..datasets.questions import read_questions
    from ..evaluate.retrieval import retrieval

    found = read_questions(data)[:documents]
    loaded = load_model(settings)
    with counter("questions", as_json) as count:
        result = retrieval(loaded, found, systems=_names(systems), limit=limit, seed=seed, on_question=count)
    if as_json:
        print_json(result)
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
@click.argument("data", type=path_type)
@click.option("--limit", type=click.IntRange(min=1), help="Summaries in all, spread evenly over the documents.")
@click.option("--documents", type=click.IntRange(min=1), help="Documents to use, the first in the file; default: all.")
@click.option("--systems", default="infinimem,lead,truncated", show_default=True,
              help="infinimem: what summarize does; lead: the first tokens; truncated: the base model, given the start "
              "of the document.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=300, show_default=True)
@seed_option
@model_options
@json_option
def eval_summary(
    data: Path,
    limit: int | None,
    documents: int | None,
    systems: str,
    max_new_tokens: int,
    seed: int,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Summarize the documents of a .jsonl(.gz) and compare with people's summaries (ROUGE), beside simple systems."""
    from ..datasets.summaries import read_summaries
    from ..evaluate.summary import summary

    found = read_summaries(data)[:documents]
    loaded = load_model(settings)
    with counter("summaries", as_json) as count:
        result = summary(
            loaded,
            found,
            systems=_names(systems),
            limit=limit,
            max_new_tokens=max_new_tokens,
            seed=seed,
            on_summary=count,
        )
    if as_json:
        print_json(result)
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
