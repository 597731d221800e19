"""The demo: read a handbook (PDF) and Python's language reference, save both, load them in new processes, and ask.

The handbook is read with the command line, the language reference with the Python API.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = Path(__file__).parent
WORK = EXAMPLES.parent / ".demo"
HANDBOOK = WORK / "handbook.safetensors"
REFERENCE = WORK / "python-reference.safetensors"

HANDBOOK_QUESTIONS = (
    "What is the violet ink made of?",
    "What is the height of the bench mark on the Winch House plinth?",
)
REFERENCE_QUESTIONS = ("What does the pass statement do?", "What is a docstring?")


def read_reference() -> None:
    """Ingest CPython's language reference, with every topic as a separate source."""
    from pydoc_data.topics import topics

    from infinimem import DocumentMemory

    started = time.perf_counter()
    names = sorted(topics)
    memory = DocumentMemory.from_text(topics[names[0]], name=names[0])
    for number, name in enumerate(names[1:], start=2):
        memory.append_text(topics[name], name=name)
        if sys.stderr.isatty():
            print(f"\rtopic {number}/{len(names)} {name:<24}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    seconds = time.perf_counter() - started
    size = memory.save(REFERENCE)
    info = memory.info()
    print(
        f"Read {info['tokens']:,} tokens of {len(names)} topics in {seconds:.1f} s "
        f"({info['tokens'] / seconds:,.0f} tokens/s).\n"
        f"Wrote {REFERENCE.name}: {size / 1e6:.1f} MB, of which {info['memory_bytes'] / 1e6:.1f} MB are memory."
    )


def run(*command: str) -> None:
    """Show the command line of one step, and run it in a separate process."""
    print(f"\n$ {' '.join(repr(part) if ' ' in part else part for part in command)}", flush=True)
    executable = [sys.executable, "-m", "infinimem"] if command[0] == "infinimem" else [sys.executable]
    subprocess.run([*executable, *command[1:]], check=True, cwd=EXAMPLES.parent)


def main() -> None:
    """The whole demo."""
    started = time.perf_counter()
    WORK.mkdir(exist_ok=True)
    run("infinimem", "ingest", "examples/handbook.pdf", "-o", str(HANDBOOK.relative_to(EXAMPLES.parent)))
    run("python", "examples/demo.py", "reference")
    for file, questions in ((HANDBOOK, HANDBOOK_QUESTIONS), (REFERENCE, REFERENCE_QUESTIONS)):
        for question in questions:
            run("infinimem", "ask", str(file.relative_to(EXAMPLES.parent)), question)
    print(f"\nAll of it took {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    read_reference() if sys.argv[1:] == ["reference"] else main()
