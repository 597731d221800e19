"""Data and configurations for the tests of training."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from conftest import TEXT

WORDS = (TEXT * 2).replace(",", "").replace(".", "").split()
BOOK = "\n\n".join(
    " ".join(random.Random(f"{p}.{s}").choices(WORDS, k=9)).capitalize() + "." + (" " if s % 4 else "\n\n")
    for p in range(60)
    for s in range(4)
)
QA = {
    "title": "Ships",
    "paragraphs": [TEXT, "The captain of the Heron was Odile. " + TEXT, TEXT * 2],
    "qas": [{"id": "1", "question": "Who was the captain of the Heron?", "answers": ["Odile"], "paragraph": 1}],
}
TALE = {
    "title": "A tale",
    "paragraphs": ["The fox ran home.", "It slept all day."],
    "qas": [{"question": "What did the fox do?", "answers": ["It went to sleep at home"], "paragraphs": [0, 1]}],
}
SINGLE = {
    "title": "Fog",
    "passage": "The fog came on Tuesday.",
    "question": "when came the fog",
    "answers": ["Tuesday"],
}
PAPER = {
    "title": "Paper",
    "document": "First part.\n\nThe virus is old.\n\nLast part.",
    "qas": [{"question": "How is the virus?", "answers": ["old"], "answer_start": [26]}],
}
PLOT = {
    "document": TEXT * 3 + "\n\nThe captain of the Heron was Odile. " + TEXT,
    "questions": [
        {"question": "What is the plot?", "summaries": ["Ships sail.", "Ships go."]},
        {"question": "Who was the captain of the Heron?", "summaries": ["Odile led the Heron."]},
    ],
}
MEETING = {
    "document": "Ann: we begin.\nBob: we shall buy a boat.\nAnn: we end.",
    "general": [{"question": "Summarize the meeting.", "summary": "A boat will be bought."}],
    "specific": [{"question": "What did Bob say about the boat?", "summary": "He wants one."}],
}
STORY = {
    "task": "qa1",
    "sentences": ["Mary went home.", "John went out.", "Mary went out."],
    "qas": [{"question": "Where is Mary?", "answer": "home", "after": 2}],
}


def write_rows(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def write_training_data(directory: Path) -> Path:
    """Small files in every layout."""
    write_rows(directory / "books.jsonl.gz", {"text": BOOK}, {"text": BOOK[::-1].replace(".", ". ")})
    write_rows(directory / "squad.jsonl.gz", QA)
    write_rows(directory / "tales.jsonl.gz", TALE)
    singles = [{**SINGLE, "passage": f"The fog came on day {n}.", "answers": [f"day {n}"]} for n in range(12)]
    write_rows(directory / "singles.jsonl.gz", *singles)
    write_rows(directory / "papers.jsonl.gz", PAPER)
    write_rows(directory / "plots.jsonl.gz", PLOT)
    write_rows(directory / "meetings.jsonl.gz", MEETING, {**MEETING, "specific": []})
    write_rows(directory / "babi.jsonl.gz", STORY, {**STORY, "task": "qa2"})
    return directory


ALL = [
    {"kind": "lm", "books": "books.jsonl.gz"},
    {"kind": "repeat", "books": "books.jsonl.gz", "words": 8},
    {"kind": "needles", "books": "books.jsonl.gz", "most": 2},
    {"kind": "qa", "data": ["squad.jsonl.gz", "tales.jsonl.gz", "singles.jsonl.gz", "papers.jsonl.gz"], "beside": 0.3},
    {"kind": "babi", "books": "books.jsonl.gz", "data": "babi.jsonl.gz"},
    {"kind": "summary", "data": ["plots.jsonl.gz", "meetings.jsonl.gz"]},
]


def table(**changes: Any) -> dict[str, Any]:
    """A small configuration for the tiny model; `train__batch=1` and the like change a setting of a table."""
    made: dict[str, Any] = {
        "output": "run",
        "seed": 3,
        "model": {
            "dtype": "float32",
            "rule": "slots",
            "rule_settings": {"slots": 24, "distance": 16},
            "segment_length": 160,
        },
        "lora": {"rank": 4, "alpha": 8.0, "lr": 0.01},
        "train": {"batch": 2, "warmup": 2, "save_steps": 3},
        "stages": [{"segments": 2, "steps": 5}, {"segments": 3, "steps": 3}],
        "objectives": ALL,
    }
    for name, value in changes.items():
        where, _, inner = name.partition("__")
        made[where] = {**made.get(where, {}), inner: value} if inner else value
    return made
