"""Asks the sample handbook its 30 questions, and counts right pages and right answers.

An answer is right if it contains one of the expected wordings; capitals and punctuation do not count. A page is right
if the answer cites a passage of the expected page.

infinimem ingest examples/handbook.pdf -o handbook.safetensors
python examples/ask_handbook.py handbook.safetensors

Without a memory file, the handbook is read first, with the default model or with the model given by --model.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from infinimem import DocumentMemory

QUESTIONS = Path(__file__).with_name("handbook_questions.jsonl")


def words(text: str) -> str:
    """The words of a text in lower case, with one space between words, at the start and at the end."""
    found = re.findall(r"[^\W_]+", text.casefold())
    return f" {' '.join(found)} "


def main() -> None:
    """Ask, print one row per question, then the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="a memory file of the handbook")
    parser.add_argument("--model", help="the model that reads the handbook")
    parser.add_argument("--adapter", help="'none' for the bare model")
    parser.add_argument("--weights", choices=("bfloat16", "int8"), help="how the weights are kept in memory")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the counts")
    given = parser.parse_args()
    if given.file:
        memory = DocumentMemory.load(given.file)
    else:
        memory = DocumentMemory.ingest(
            QUESTIONS.with_name("handbook.pdf"), model=given.model, adapter=given.adapter, weights=given.weights
        )
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    pages = answers = 0
    for row in rows:
        answer = memory.ask(row["question"])
        page = row["page"] in [passage.page for passage in answer.passages]
        right = any(words(expected) in words(answer.text) for expected in row["answers"])
        pages, answers = pages + page, answers + right
        if not given.json:
            verdict = f"{'right' if right else 'wrong'}, {'right page' if page else 'other pages'}"
            print(f"{verdict:<19} {row['question']}\n{'':<19} {answer}", flush=True)
    if given.json:
        print(json.dumps({"questions": len(rows), "right_answers": answers, "right_pages": pages}))
    else:
        print(f"{answers} of {len(rows)} answers and {pages} of {len(rows)} pages right")


if __name__ == "__main__":
    main()
