"""What reading a file takes, and how it ends: seconds, megabytes, and one line.

python tests/reading_costs.py [FILE...]     a table of these files, or of all in nasty_pdfs.py and nasty_texts.py
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# In a process that reads this file alone, since the system keeps the peak of all that ever ran.
_READ = """
import json, resource, sys
from infinimem.errors import SourceError
from infinimem.readers import ReaderLimits, open_source, read_pages
limits, pages, characters = ReaderLimits(**json.loads(sys.argv[2])), 0, 0
try:
    for page in read_pages(open_source(sys.argv[1], limits), limits=limits):
        pages, characters = pages + 1, characters + len(page.text)
    line = f"{pages} pages, {characters} characters"
except SourceError as error:
    line = f"{type(error).__name__}: {error}"
unit = 1 if sys.platform == "darwin" else 1024
own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
if sys.platform == "linux":
    # There, a process begins with the peak of the one that started it.
    own = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print(json.dumps([line, own * unit, child * unit]))
"""


@dataclass(frozen=True)
class Cost:
    """line: how many pages and characters, or the error. own, child: peak bytes of the process that reads the file, and
    of the one that parses it."""

    line: str
    seconds: float
    own: int
    child: int


def cost_of(path: Path, **limits: float) -> Cost:
    """Read a file to its end."""
    began = time.monotonic()
    command = [sys.executable, "-c", _READ, str(path), json.dumps(limits)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if done.stderr:
        raise RuntimeError(f"reading '{path.name}' is not silent: {done.stderr}")
    line, own, child = json.loads(done.stdout)
    return Cost(line, time.monotonic() - began, own, child)


def main() -> None:
    import nasty_pdfs
    import nasty_texts

    made: dict[str, Callable[[], bytes]] = {f"{name}.pdf": make for name, make in nasty_pdfs.NASTIES.items()}
    made |= {name: functools.partial(make, 1.0) for name, make in nasty_texts.NASTIES.items()}
    print("| file | MB | seconds | peak MB | how it ends |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for name in sys.argv[1:] or made:
            path = Path(name)
            if not sys.argv[1:]:
                path = Path(directory, name)
                path.write_bytes(made[name]())
            cost, size = cost_of(path), path.stat().st_size
            peak = max(cost.own, cost.child)
            print(
                f"| {path.name} | {size / 1e6:.1f} | {cost.seconds:.1f} | {peak / 1e6:.0f} | {cost.line} |", flush=True
            )
            if not sys.argv[1:]:
                path.unlink()


if __name__ == "__main__":
    main()
