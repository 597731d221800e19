"""Shows that neither the working memory nor the file grows with the length of the document.

Reads texts of the given lengths in tokens, each in a new process, and prints one row per length.

python examples/flat_memory.py 20000 200000
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path

# In Python's language reference, with the tokenizer of the default model.
CHARACTERS_PER_TOKEN = 4.1

CHILD = """
import json, resource, sys, time
from infinimem import DocumentMemory
source, target = sys.argv[1:]
started = time.perf_counter()
memory = DocumentMemory.ingest(source, passages=False)
seconds = time.perf_counter() - started
size = memory.save(target)
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps({"tokens": memory.info()["tokens"], "seconds": seconds, "peak": peak, "size": size}))
"""


def write_text(path: Path, tokens: int) -> None:
    """Write a text of about `tokens` tokens: Python's language reference, repeated if it is too short."""
    from pydoc_data.topics import topics

    # Grammar and prose differ in tokens per character; a random order spreads both evenly.
    names = sorted(topics)
    random.Random(0).shuffle(names)
    with path.open("w", encoding="utf-8") as file:
        for name in cycle(names):
            if file.tell() >= tokens * CHARACTERS_PER_TOKEN:
                break
            file.write(topics[name] + "\n\n")


def main() -> None:
    """Measure, and print one row per length."""
    print(f"{'tokens':>9} {'seconds':>8} {'tokens/s':>9} {'peak RSS MB':>12} {'file bytes':>11}")
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for tokens in map(int, sys.argv[1:] or ("20000", "200000")):
            source, target = Path(directory, f"{tokens}.txt"), Path(directory, f"{tokens}.safetensors")
            write_text(source, tokens)
            command = [sys.executable, "-c", CHILD, str(source), str(target)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append(row)
            speed, peak = row["tokens"] / row["seconds"], row["peak"] / 1e6
            print(f"{row['tokens']:>9,} {row['seconds']:>8.1f} {speed:>9.0f} {peak:>12.1f} {row['size']:>11,}")
    print(f"Peak RSS of the last against the first: {rows[-1]['peak'] / rows[0]['peak'] - 1:+.1%}")


if __name__ == "__main__":
    main()
