"""Write the tables and the plot of docs/performance.md from the output of `infinimem bench --json`.

infinimem bench --long 200000 --json > docs/results/bench.json
python docs/make_performance_report.py

The script needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from make_memory_report import put, table

from infinimem.bench import report
from infinimem.bench.run import COLUMNS

DOCS = Path(__file__).parent
PLOT = "performance"
# Settings that can differ from run to run, by the names of their options.
OPTIONS = ("systems", "tokens", "lengths", "long", "repeats", "model", "adapter", "weights")


def setting(result: dict[str, Any]) -> str:
    """The command, the machine and the text of the measurement."""
    given = [(name, result["settings"][name]) for name in OPTIONS if result["settings"].get(name) is not None]
    options = [f"--{name} {','.join(map(str, v)) if isinstance(v, list) else v}" for name, v in given]
    text = result["text"]
    return "\n".join(
        [
            f"- command: `infinimem bench {' '.join(options)}`, {result['seconds'] / 60:,.0f} minutes",
            f"- machine: {report.machine_line(result['machine'])}",
            f"- text: {text['name']}, {text['characters']:,} characters; asked: {text['question']}",
        ]
    )


def systems(result: dict[str, Any]) -> str:
    """All rows. Where nothing was measured, the second cell gives the reason."""
    rows = report.table(result["systems"])
    return table(report.HEAD, ([*row, *[""] * (len(report.HEAD) - len(row))] for row in rows))


def ranges(result: dict[str, Any]) -> str:
    """Smallest and largest values of the rows that were measured several times."""
    rows = []
    for name, row in result["systems"].items():
        if row["runs"] > 1 and "range" in row:
            found = [(column, row["range"].get(column)) for column in COLUMNS]
            rows.append([name, *(" to ".join(report.shown(c, v) for v in pair) if pair else "-" for c, pair in found)])
    return table(["system", *COLUMNS.values()], rows)


def ratios(result: dict[str, Any]) -> str:
    """A short summary of the measurements, as a list."""
    return "\n".join(f"- {line}" for line in report.in_short(result))


PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "setting": setting,
    "systems": systems,
    "ratios": ratios,
    "ranges": ranges,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="DIR", help="folder of performance.md and results/")
    options = parser.parse_args(arguments)
    source, target = options.docs / "results" / "bench.json", options.docs / "performance.md"
    try:
        result = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        sys.exit(f"there is no {source}; run: infinimem bench --json > {source}")
    except ValueError as error:
        sys.exit(f"{source} is not the output of 'infinimem bench --json' ({error}); measure again")
    page = target.read_text(encoding="utf-8")
    for name, make in PARTS.items():
        page = put(page, name, make(result) or "Not measured.")
    report.plot(result, options.docs / f"{PLOT}.png")
    page = put(page, "plot", f"![Reading speed, memory, file sizes and answer times]({PLOT}.png)")
    target.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
