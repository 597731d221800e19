"""A whole book read and summarized, with the memory that it took on the way.

python docs/long_book.py BOOK [--memory FILE] [--focus QUESTION]...

Prints Markdown. An existing memory file is not made again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from infinimem import DocumentMemory
from infinimem.ingest.progress import Progress

ROWS = 10
MB = 2**20


def resident() -> int:
    """Bytes of this process that are in memory now (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def read(book: Path, memory: Path) -> None:
    """Read the book, save its memory, and print a row for every tenth of the way."""
    print("| tokens | resident MB | seconds |\n|---|---|---|")
    shown = 0.0

    def show(now: Progress) -> None:
        nonlocal shown
        done = now.fraction or 0.0
        if done >= shown and now.tokens:
            shown = done + 1 / ROWS
            print(f"| {now.tokens:,} | {resident() / MB:,.0f} | {now.seconds:,.0f} |", flush=True)

    started = time.perf_counter()
    made = DocumentMemory.ingest(book, progress=show)
    size, tokens = made.save(memory), made.info()["tokens"]
    seconds = time.perf_counter() - started
    print(f"| {tokens:,}, saved | {resident() / MB:,.0f} | {seconds:,.0f} |\n")
    print(
        f"{tokens / seconds:,.0f} tokens/s; {size / 1e6:.1f} MB in the file, {book.stat().st_size / 1e6:.1f} of text.\n"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("book", type=Path)
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--focus", action="append", default=[])
    options = parser.parse_args()
    path = options.memory or options.book.with_suffix(".safetensors")
    if not path.exists():
        read(options.book, path)
    memory = DocumentMemory.load(path)
    for focus in (None, *options.focus):
        started = time.perf_counter()
        summary = memory.summarize(focus)
        seconds = time.perf_counter() - started
        print(f"### {focus or 'The whole'} ({seconds:.0f} s)\n\n{summary.text}\n", flush=True)


if __name__ == "__main__":
    main()
