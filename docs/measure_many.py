"""Ingesting many documents in batches (`ingest_many`) against one after the other (`ingest`), in one run.

python docs/measure_many.py [--documents N] [--characters N] [--batch N]

The documents are the beginnings of topics of Python's language reference, as pydoc has it. Each way goes first once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from statistics import mean

from infinimem import DocumentMemory
from infinimem.model.infini_model import InfiniModel


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--characters", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    model = InfiniModel.from_pretrained()
    texts = [text for _, text in sorted(topics.items()) if len(text) >= options.characters]

    def one_by_one(paths: Sequence[Path]) -> list[DocumentMemory]:
        memories = [DocumentMemory.ingest(path, model=model) for path in paths]
        for memory in memories:
            memory.term_weights()  # what saving would compute
        return memories

    def in_batches(paths: Sequence[Path]) -> list[DocumentMemory]:
        return list(DocumentMemory.ingest_many(paths, model=model, batch=options.batch))

    ways: dict[str, Callable[[Sequence[Path]], list[DocumentMemory]]] = {
        "one after the other": one_by_one,
        "in batches": in_batches,
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, f"{index}.txt") for index in range(min(options.documents, len(texts)))]
        for path, text in zip(paths, texts, strict=False):
            path.write_text(text[: options.characters], encoding="utf-8")
        for read in ways.values():
            read(paths[:4])  # untimed
        for order in (list(ways), list(ways)[::-1]):
            for name in order:
                started = time.perf_counter()
                tokens = sum(memory.info()["tokens"] for memory in ways[name](paths))
                speeds[name].append(tokens / (time.perf_counter() - started))
    slow, fast = (mean(found) for found in speeds.values())
    print(f"{len(paths)} documents, {tokens:,} tokens, at most {options.batch} segments in one forward:")
    print(f"one after the other {slow:,.0f} tokens/s, in batches {fast:,.0f} tokens/s, {fast / slow:.2f} times")


if __name__ == "__main__":
    main()
