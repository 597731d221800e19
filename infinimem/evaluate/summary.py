"""Summaries by infinimem and by two simple systems, compared with summaries that people wrote (ROUGE).

- infinimem: `DocumentMemory.summarize`, with the question as its focus; without a focus for the whole document
- lead: the first tokens of the document, as many as a summary may have
- truncated: the base model without an adapter, given as much of the start of the document as its context holds
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..answering.decoding import Decoding
from ..answering.prompts import encode_chat, summary_messages
from ..answering.stream import continue_texts
from ..datasets.documents import Document
from ..datasets.summaries import Request
from ..document_memory import DocumentMemory
from ..errors import RougeMissing, check_names
from ..model.directories import NO_ADAPTER
from ..model.infini_model import InfiniModel
from ..text.passages import Passage
from .intervals import bootstrap, mean
from .sampling import choose_questions

SYSTEMS = ("infinimem", "lead", "truncated")
ROUGE = ("rouge1", "rouge2", "rougeL")


def summary(
    model: InfiniModel,
    documents: Sequence[Document[Request]],
    *,
    systems: Sequence[str] = SYSTEMS,
    limit: int | None = None,
    max_new_tokens: int = 300,
    seed: int = 0,
    on_summary: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """ROUGE-1, -2 and -L (F-measure, stemmed words; the best of several references) of each system's summaries.

    Decoding is greedy.

    systems: names of SYSTEMS, which the top of this module explains.
    limit: summaries in all, spread evenly over the documents; None for all.
    on_summary: called after each summary with the numbers of summaries written and in all, of all systems.

    Intervals are 95 %, bootstrap over summaries; the differences are taken summary by summary. Raises InvalidSetting,
    RougeMissing.
    """
    check_names("system", systems, SYSTEMS)
    score = _scorer()
    chosen = choose_questions(documents, limit, seed)
    asked = [name for name in SYSTEMS if name in systems]
    base = _bare(model) if "truncated" in asked else None
    total, rows = len(asked) * sum(len(document.questions) for document in chosen), []
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in asked}
    for document in chosen:
        for name in asked:
            written = _write(name, model, base, document, max_new_tokens)
            for request, text in zip(document.questions, written, strict=True):
                scores[name].append(score(request.summaries, text))
                row = {"document": document.title, "focus": request.focus, "system": name, "summary": text}
                rows.append(row | scores[name][-1])
                if on_summary is not None:
                    on_summary(len(rows), total)
    return {
        "documents": len(chosen),
        "summaries": total // len(asked),
        **model.describe(),
        "max_new_tokens": max_new_tokens,
        "systems": {name: _means(found, seed) for name, found in scores.items()},
        "differences": _differences(scores, seed),
        "written": rows,
    }


def _bare(model: InfiniModel) -> InfiniModel:
    """The model without its adapter."""
    if model.adapter_hash == NO_ADAPTER:
        return model
    return type(model).from_pretrained(model.name, device=model.device, adapter=NO_ADAPTER)


def _write(
    name: str, model: InfiniModel, base: InfiniModel | None, document: Document[Request], max_new_tokens: int
) -> Iterator[str]:
    """The summaries of one document, in the order of its requests."""

    if name == "lead":
        lead = _start(model, document.text, max_new_tokens)
        yield from [lead] * len(document.questions)
    elif base is not None and name == "truncated":
        for request in document.questions:
            yield _truncated(base, document, request, max_new_tokens)
    else:
        memory = DocumentMemory.from_text(document.text, name=document.title, model=model)
        for request in document.questions:
            yield memory.summarize(request.focus, max_new_tokens=max_new_tokens).text


def _start(model: InfiniModel, text: str, tokens: int) -> str:
    return str(model.tokenizer.decode(model.encoder.encode(text)[:tokens], clean_up_tokenization_spaces=False))


def _truncated(base: InfiniModel, document: Document[Request], request: Request, max_new_tokens: int) -> str:
    """The base model's summary of the start of the document, as much as fits into its context."""

    def prompt(shown: Sequence[Passage]) -> list[int]:
        return encode_chat(base, summary_messages(shown, request.focus))

    # 64 tokens stay free: a text may be encoded in more tokens within a prompt than alone.
    room = base.context_length - max_new_tokens - len(prompt([])) - 64
    start = _start(base, document.text, room)
    (text,) = continue_texts(
        base, [prompt([Passage(start, document.title, 1, 0, len(start))])], None, Decoding(max_new_tokens)
    )
    return text.strip()


def _scorer() -> Callable[[Sequence[str], str], dict[str, float]]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise RougeMissing(
            "scores of summaries need the package rouge-score; run: pip install 'infinimem[eval]'"
        ) from error
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)

    def score(references: Sequence[str], text: str) -> dict[str, float]:
        found = scorer.score_multi(list(references), text)
        return {kind: float(found[kind].fmeasure) for kind in ROUGE}

    return score


def _means(found: Sequence[dict[str, float]], seed: int) -> dict[str, Any]:
    columns = {kind: [row[kind] for row in found] for kind in ROUGE}
    means: dict[str, Any] = {kind: mean(values) for kind, values in columns.items()}
    return means | {f"{kind}_interval": bootstrap(values, seed) for kind, values in columns.items()}


def _differences(scores: dict[str, list[dict[str, float]]], seed: int) -> dict[str, Any]:
    return {
        f"infinimem-{other}": _means(
            [
                {kind: mine[kind] - its[kind] for kind in ROUGE}
                for mine, its in zip(scores["infinimem"], scores[other], strict=True)
            ],
            seed,
        )
        for other in SYSTEMS[1:]
        if {"infinimem", other} <= set(scores)
    }
