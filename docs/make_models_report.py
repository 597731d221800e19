"""Measure the models of the catalogue, and write the tables of docs/models.md.

python docs/make_models_report.py --data DIR               measure what has no result yet, then write
python docs/make_models_report.py --data DIR --list        name the measurements, and say which have a result
python docs/make_models_report.py --data DIR --only '*-qa-*'
python docs/make_models_report.py --data DIR --force NAME  measure again
python docs/make_models_report.py --write                  only write the tables from existing results

DIR contains books/ and qa/, like the project's data folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from make_memory_report import Measurement, Result, percent, put, run, table

# Row of the tables: the options that choose the model.
MODELS = {
    "smollm2-135m": "--model smollm2-135m",
    "smollm2-135m without its adapter": "--model smollm2-135m --adapter none",
    "qwen2.5-0.5b": "--model qwen2.5-0.5b",
    "qwen2.5-1.5b, bfloat16": "--model qwen2.5-1.5b --weights bfloat16",
    "qwen2.5-1.5b, int8": "--model qwen2.5-1.5b --weights int8",
}
# Part of the table: what is run, and its arguments.
PARTS = {
    "bench": ("infinimem bench", "--systems infinimem --tokens 4000 --repeats 1"),
    "qa-squad_dev": ("infinimem eval", "qa {data}/qa/squad_dev.jsonl.gz --limit 96 --modes recall,gold"),
    "qa-fairytaleqa_dev": ("infinimem eval", "qa {data}/qa/fairytaleqa_dev.jsonl.gz --limit 48 --modes recall,gold"),
    "handbook": ("python examples/ask_handbook.py", ""),
    "passkey-repeated": ("infinimem eval", "passkey --tokens 32768 --depths 0,0.5,1"),
    "passkey-book": (
        "infinimem eval",
        "passkey --tokens 16384 --filler {data}/books/dev.jsonl.gz --depths 0,0.2,0.4,0.6,0.8 --slots 2048",
    ),
    "perplexity": (
        "infinimem eval",
        "perplexity {data}/books/dev.jsonl.gz --limit 4096 --systems memory,window",
    ),
}


def measurements() -> list[Measurement]:
    """All measurements, in the order in which they run."""
    return [
        Measurement(
            f"model-{name.replace(', ', '-').replace(' without its adapter', '-bare')}-{part}",
            f"{arguments} {options}".strip(),
            {"model": name, "part": part},
            program,
        )
        for part, (program, arguments) in PARTS.items()
        for name, options in MODELS.items()
    ]


def by_model(found: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Row of the tables to part to result."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in MODELS}
    for one in found:
        rows[one.measurement.about["model"]][one.measurement.about["part"]] = one.result
    return rows


def speed_table(found: Sequence[Result]) -> str:
    """Speed and memory."""
    rows = []
    for name, parts in by_model(found).items():
        if "bench" not in parts:
            continue
        row, result = parts["bench"]["systems"]["infinimem"], parts["bench"]
        rows.append(
            [
                name,
                f"{row['resident_mb']:,.0f}",
                f"{row['tokens_per_second']:,.0f}",
                percent(row["share_of_peak"]),
                f"{result['read_vs_plain_forward']:.2f}",
                f"{row['decode_tokens_per_second']:.1f}",
            ]
        )
    head = ["model", "memory resident, MB", "reading, tokens/s", "share of the machine's peak"]
    return table([*head, "reading against the plain forward", "decoding, tokens/s"], rows)


def _f1(result: dict[str, Any] | None, mode: str) -> str:
    if result is None:
        return "-"
    scores = result["modes"][mode]
    low, high = scores["interval"]
    return f"{scores['f1']:.2f} ({low:.2f} to {high:.2f})"


def answers_table(found: Sequence[Result]) -> str:
    """Answers from passages."""
    rows = []
    for name, parts in by_model(found).items():
        squad, tales, handbook = (parts.get(part) for part in ("qa-squad_dev", "qa-fairytaleqa_dev", "handbook"))
        if not (squad or tales or handbook):
            continue
        refused = "-" if squad is None else percent(squad["modes"]["gold"]["not_found"])
        asked = "-" if handbook is None else f"{handbook['right_answers']} of {handbook['questions']}"
        pages = "-" if handbook is None else f"{handbook['right_pages']} of {handbook['questions']}"
        scores = [_f1(result, mode) for result in (squad, tales) for mode in ("recall", "gold")]
        rows.append([name, *scores[:2], refused, *scores[2:], asked, pages])
    head = ["model", "SQuAD, found passages", "SQuAD, right passages", "of these refused"]
    head += ["FairytaleQA, found passages", "FairytaleQA, right passages", "handbook, answers", "handbook, pages"]
    return table(head, rows)


def memory_table(found: Sequence[Result]) -> str:
    """What the memory holds."""
    rows = []
    for name, parts in by_model(found).items():
        keys = [
            "-" if result is None else percent(result["overall"]["accuracy"], result["overall"]["interval"])
            for result in (parts.get("passkey-repeated"), parts.get("passkey-book"))
        ]
        change = "-" if "perplexity" not in parts else f"{parts['perplexity']['mean_change']:+.1%}"
        if keys != ["-", "-"] or change != "-":
            rows.append([name, *keys, change])
    head = ["model", "pass key digits, 32,768 tokens of repeated filler"]
    return table([*head, "pass key digits, 16,384 tokens of novels, 2,048 slots", "perplexity of novels"], rows)


def commands(found: Sequence[Result]) -> str:
    """The commands behind the tables; MODEL stands for the options of a row."""
    return "\n".join(
        f"- `{program} {' '.join(filter(None, [arguments.replace('{data}', 'DIR'), 'MODEL']))}`"
        for program, arguments in PARTS.values()
    )


TABLES = {"speed": speed_table, "answers": answers_table, "memory": memory_table, "commands": commands}


def write(found: Sequence[Result], docs: Path) -> None:
    """Write all tables from these results."""
    page = (docs / "models.md").read_text(encoding="utf-8")
    for name, make in TABLES.items():
        page = put(page, name, make(found) or "Not measured yet.")
    (docs / "models.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run(__doc__ or "", measurements(), write, None)
