"""Measure the memory, and write the tables and plots of docs/memory.md.

python docs/make_memory_report.py --data DIR               measure what has no result yet, then write
python docs/make_memory_report.py --data DIR --list        name the measurements, and say which have a result
python docs/make_memory_report.py --data DIR --only 'qa-*' measure only these
python docs/make_memory_report.py --data DIR --force NAME  measure again
python docs/make_memory_report.py --write                  only write tables and plots from existing results

DIR contains books/ and qa/, like the project's data folder. The script needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
# The length, in tokens, of texts that are compared at one length.
LENGTH = 8192
SEGMENT_LENGTHS = (1024, 512, 256, 128)
BARE = "--adapter none"
# Name: options, color, line. Systems of one color use about the same number of bytes.
SYSTEMS: dict[str, tuple[str, str, str]] = {
    "exact": ("--rule recent --slots 1000000 --packing float32", "black", ":"),
    "shipped-2048": ("--slots 2048", "tab:blue", "-"),
    "recent-2048": ("--rule recent --slots 2048", "tab:blue", "--"),
    "shipped": ("", "tab:red", "-"),
    "recent": ("--rule recent --slots 512", "tab:red", "--"),
    "carry-0": ("--carry 0", "tab:orange", "-"),
    "linear": (f"{BARE} --rule linear", "tab:green", "-."),
    "delta": (f"{BARE} --rule delta", "tab:olive", "-."),
}
# A marker for each line, so that single points can be told apart too.
MARKERS = {"-": "o", "--": "s", "-.": "^", ":": "D"}
FILLERS = {"repeated": "", "book": "--filler {data}/books/dev.jsonl.gz"}
# Each text has one key. Books: 20 texts, as they differ; in none of them is the key among the carried tokens.
NEEDLES = {"repeated": "--depths 0,0.5,1", "book": "--depths 0,0.2,0.4,0.6,0.8 --samples 4"}
# Lengths in tokens; only the systems in LONG read the longer texts.
LENGTHS = {"repeated": (4096,), "book": (16384,)}
MORE_LENGTHS = {"repeated": (32768, 131072), "book": (65536,)}
LONG = ("shipped-2048", "shipped")
# The longest texts, which only the default reads.
LONGEST = {"repeated": (1_048_576,), "book": ()}
# `shipped-448` is the configuration whose memory stays below eight million bytes.
PERPLEXITY = {"shipped": "", "shipped-448": "--slots 448", "shipped-2048": "--slots 2048", "carry-0": "--carry 0"}
# Tokens of a document: stories per task. Each story is hidden in a separate document.
BABI = {4096: 20, 16384: 6, 65536: 2}


@dataclass(frozen=True)
class Measurement:
    """One command. `about` says where its result goes; {data} stands for the data folder."""

    name: str
    arguments: str
    about: dict[str, Any] = field(default_factory=dict)
    program: str = "infinimem eval"


def measurements() -> list[Measurement]:
    """All measurements, in the order in which they run."""
    rows = []
    for system, (options, _, _) in SYSTEMS.items():
        for filler, source in FILLERS.items():
            longer = MORE_LENGTHS[filler] if system in LONG else ()
            for tokens in LENGTHS[filler] + longer + (LONGEST[filler] if system == "shipped" else ()):
                about = {"part": "length", "system": system, "filler": filler}
                arguments = f"passkey --tokens {tokens} {NEEDLES[filler]} {source} {options}"
                rows.append(Measurement(f"passkey-{system}-{filler}-{tokens}", arguments, about))
    for system in ("shipped", "recent"):
        for filler, source in FILLERS.items():
            for length in SEGMENT_LENGTHS:
                about = {"part": "compressions", "system": system, "filler": filler}
                arguments = f"passkey --tokens {LENGTH} {NEEDLES[filler]} {source} --segment-length {length}"
                name = f"compressions-{system}-{filler}-{length}"
                rows.append(Measurement(name, f"{arguments} {SYSTEMS[system][0]}", about))
    for kind, needles in (("digits", NEEDLES["book"]), ("names", "--needles 10 --samples 2")):
        for memory in ("own", "emptied", "other"):
            about = {"part": "controls", "system": "shipped", "filler": "book"}
            arguments = f"passkey --tokens {LENGTH} {needles} {FILLERS['book']} --kind {kind} --memory {memory}"
            rows.append(Measurement(f"controls-{kind}-{memory}", arguments, about))
    for system, options in PERPLEXITY.items():
        arguments = f"perplexity {{data}}/books/dev.jsonl.gz --limit 20000 {options}"
        about = {"part": "perplexity", "system": system}
        compared = "memory,window,recent" if system == "shipped" else "memory,window"
        rows.append(Measurement(f"perplexity-{system}", f"{arguments} --systems {compared}", about))
    for tokens, stories in BABI.items():
        arguments = (
            f"babi {{data}}/qa/babi_train.jsonl.gz --noise {{data}}/books/dev.jsonl.gz --tasks qa1,qa2,qa5 "
            f"--limit {stories} --tokens {tokens}"
        )
        rows.append(Measurement(f"babi-{tokens}", arguments, {"part": "babi", "system": "shipped"}))
    for data in ("squad_dev", "fairytaleqa_dev"):
        arguments = f"qa {{data}}/qa/{data}.jsonl.gz --limit 96"
        rows.append(Measurement(f"qa-{data}", arguments, {"part": "qa", "system": "shipped", "data": data}))
    return rows


# Measuring


def measure(measurement: Measurement, data: Path | None, target: Path) -> str | None:
    """Run the command and store its result. Returns the error message, or None if the command succeeded."""
    command = shlex.split(measurement.arguments)
    if data is None and any("{data}" in part for part in command):
        return "give --data DIR"
    filled = [part.replace("{data}", str(data and data.resolve())) for part in command]
    started = time.perf_counter()
    program = measurement.program.removeprefix("python ").split()
    if program[0] == "infinimem":
        program.insert(0, "-m")
    command = [sys.executable, *program, *filled, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=DOCS.parent)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit status {done.returncode}"
    keep(measurement, json.loads(done.stdout), time.perf_counter() - started, target)
    return None


def keep(measurement: Measurement, result: dict[str, Any], seconds: float, target: Path) -> None:
    """Write a result to its file, completely or not at all."""
    kept = {"command": written(measurement), "seconds": round(seconds, 1), "result": without_answers(result)}
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(target)


def written(measurement: Measurement) -> str:
    """The command as a user would type it, with DIR for the data folder."""
    return " ".join([measurement.program, *shlex.split(measurement.arguments.replace("{data}", "DIR"))])


def without_answers(value: Any) -> Any:
    """The result without the individual answers, which would make the files large."""
    if isinstance(value, dict):
        return {name: without_answers(inner) for name, inner in value.items() if name != "answers"}
    return [without_answers(inner) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Result:
    """A measurement with its result."""

    measurement: Measurement
    result: dict[str, Any]

    @property
    def system(self) -> str:
        """The name of the system that was measured."""
        return str(self.measurement.about["system"])

    def __getitem__(self, name: str) -> Any:
        return self.result[name]


def load(rows: Iterable[Measurement], results: Path) -> list[Result]:
    """All existing results. Exits if a result comes from a command that differs from the present one."""
    found = []
    for measurement in rows:
        path = results / f"{measurement.name}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["command"] != written(measurement):
                sys.exit(f"{path.name} comes from another command ({kept['command']}); run: --force {measurement.name}")
            found.append(Result(measurement, kept["result"]))
    return found


def part(found: Sequence[Result], name: str, **about: str) -> list[Result]:
    """The results for one part of the page."""
    wanted = {"part": name, **about}
    return [one for one in found if wanted.items() <= one.measurement.about.items()]


# Tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; an empty string if there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]) if lines else ""


def percent(share: float, interval: Sequence[float] | None = None) -> str:
    """A share as a percentage, with its interval if there is one."""
    return f"{share:.0%}" + (f" ({interval[0]:.0%} to {interval[1]:.0%})" if interval else "")


def megabytes(count: int) -> str:
    """A number of bytes, in MB."""
    return f"{count / 1e6:.1f}"


def passkey_table(found: Sequence[Result]) -> str:
    """Needles found, by system, filler and document length."""
    chosen = part(found, "length")
    lengths = sorted({one["tokens"] for one in chosen})
    rows = []
    for system in SYSTEMS:
        for filler in FILLERS:
            row = {one["tokens"]: one for one in part(chosen, "length", system=system, filler=filler)}
            if row:
                largest = max(one["memory_bytes"] for one in row.values())
                shares = [
                    f"{percent(row[n]['overall']['exact'], row[n]['overall']['exact_interval'])}, "
                    f"{percent(row[n]['overall']['accuracy'])}"
                    if n in row
                    else ""
                    for n in lengths
                ]
                rows.append([system, filler, megabytes(largest), *shares])
    return table(["rule", "filler", "memory, MB", *(f"{n:,} tokens" for n in lengths)], rows)


def compressions_table(found: Sequence[Result]) -> str:
    """Needles found in texts of one length, by the number of segments."""
    return table(
        ["rule", "filler", "tokens", "segments", "needles found", "digits right"],
        (
            [
                one.system,
                one.measurement.about["filler"],
                f"{one['tokens']:,}",
                str(one["segments"]),
                percent(one["overall"]["exact"], one["overall"]["exact_interval"]),
                percent(one["overall"]["accuracy"], one["overall"]["interval"]),
            ]
            for one in part(found, "compressions")
        ),
    )


def controls_table(found: Sequence[Result]) -> str:
    """Needles found with the document's own memory, an emptied memory, and another document's memory."""
    return table(
        ["values", "memory", "rule", "tokens", "needles", "found", "right in part"],
        (
            [
                one["kind"],
                one["memory"],
                one.system,
                f"{one['tokens']:,}",
                str(one["overall"]["needles"]),
                percent(one["overall"]["exact"], one["overall"]["exact_interval"]),
                percent(one["overall"]["accuracy"], one["overall"]["interval"]),
            ]
            for one in part(found, "controls")
        ),
    )


def perplexity_table(found: Sequence[Result]) -> str:
    """Perplexity by rule, and perplexity of the systems that the memory is compared with."""
    systems = ("memory", "window", "sliding", "exact", "recent")
    return table(
        ["rule", "memory, MB", "tokens scored", *systems, "mean change", "worst change"],
        (
            [
                one.system,
                megabytes(max(row["memory_bytes"] for row in one["documents"])),
                f"{one['scored_tokens']:,}",
                *(f"{one[system]:.2f}" if system in one.result else "" for system in systems),
                f"{one['mean_change']:+.1%}",
                f"{one['worst_change']:+.1%}",
            ]
            for one in part(found, "perplexity")
        ),
    )


def books_table(found: Sequence[Result]) -> str:
    """Change of perplexity, by book and rule."""
    chosen = part(found, "perplexity")
    titles = list(dict.fromkeys(row["title"] for one in chosen for row in one["documents"]))
    changes = [{row["title"]: row["memory"] / row["window"] - 1 for row in one["documents"]} for one in chosen]
    rows = ([title, *(f"{change[title]:+.1%}" if title in change else "" for change in changes)] for title in titles)
    return table(["book", *(one.system for one in chosen)], rows)


def babi_table(found: Sequence[Result]) -> str:
    """Questions answered correctly, by task, length and memory."""
    rows = []
    for one in part(found, "babi"):
        for task, scores in [*one["tasks"].items(), ("all", one["overall"])]:
            gain = scores["differences"]["own-emptied"]
            shares = [percent(scores[name], scores["interval"][name]) for name in ("own", "emptied", "other")]
            low, high = gain["interval"]
            rows.append(
                [
                    one.system,
                    f"{one['tokens']:,}",
                    task,
                    str(scores["questions"]),
                    *shares,
                    f"{gain['mean']:+.0%} ({low:+.0%} to {high:+.0%})",
                ]
            )
    return table(["rule", "tokens", "task", "questions", "own", "emptied", "other", "own - emptied"], rows)


def qa_table(found: Sequence[Result]) -> str:
    """F1 and exact match, by data and mode."""
    rows = []
    for one in part(found, "qa"):
        for mode, scores in one["modes"].items():
            low, high = scores["interval"]
            f1 = f"{scores['f1']:.3f} ({low:.3f} to {high:.3f})"
            silent = f"{scores['not_found']:.0%}"
            rows.append([one.measurement.about["data"], mode, str(one["questions"]), f1, f"{scores['em']:.3f}", silent])
        for pair, gain in one["differences"].items():
            low, high = gain["interval"]
            f1 = f"{gain['f1']:+.3f} ({low:+.3f} to {high:+.3f})"
            rows.append([one.measurement.about["data"], pair.replace("-", " - "), str(one["questions"]), f1, "", ""])
    return table(["data", "mode", "questions", "F1", "exact match", "says there is no answer"], rows)


# Plots


def plot(found: Sequence[Result], x: str, label: str, title: str, target: Path) -> bool:
    """Plot needles found against `x`: a panel for each filler with several values of x, a line for each system.

    Returns False, and plots nothing, if no filler has several values of x.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

    fillers = [
        filler for filler in FILLERS if len({one[x] for one in found if one.measurement.about["filler"] == filler}) > 1
    ]
    if not fillers:
        return False
    figure, panels = pyplot.subplots(
        1, len(fillers), figsize=(5.2 * len(fillers) + 1.8, 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, filler in zip(panels[0], fillers, strict=True):
        for place, (system, (_, color, line)) in enumerate(SYSTEMS.items()):
            points = sorted(
                (one[x], one["overall"]["exact"], *one["overall"]["exact_interval"])
                for one in found
                if one.system == system and one.measurement.about["filler"] == filler
            )
            if points:
                at, share, low, high = (list(column) for column in zip(*points, strict=True))
                below = [max(0.0, s - edge) for s, edge in zip(share, low, strict=True)]
                above = [max(0.0, edge - s) for s, edge in zip(share, high, strict=True)]
                # Shifted a little sideways, so that intervals do not hide each other.
                beside = [value * 2 ** (0.02 * (place - len(SYSTEMS) / 2)) for value in at]
                panel.errorbar(
                    beside,
                    share,
                    yerr=[below, above],
                    label=system,
                    color=color,
                    linestyle=line,
                    marker=MARKERS[line],
                    capsize=3,
                )
        ticks: list[int] = []
        for value in sorted({one[x] for one in found if one.measurement.about["filler"] == filler}):
            if not ticks or value > 1.3 * ticks[-1]:  # closer labels would overlap
                ticks.append(value)
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.set_ylim(-0.04, 1.04)
        panel.set_xlabel(label)
        panel.set_title(f"filler: {filler}")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("needles found (95 % Wilson interval)")
    handles = {h.get_label(): h for panel in panels[0] for h in panel.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", title="rule")
    figure.suptitle(title)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
    return True


# The page


TABLES: dict[str, Callable[[Sequence[Result]], str]] = {
    "passkey": passkey_table,
    "compressions": compressions_table,
    "controls": controls_table,
    "perplexity": perplexity_table,
    "books": books_table,
    "babi": babi_table,
    "qa": qa_table,
}
# Name of the plot: part of the measurements, quantity on the x axis, label of that axis, title.
PLOTS = {
    "memory-length": ("length", "tokens", "document length (tokens)", "Facts found against document length"),
    "memory-compressions": (
        "compressions",
        "segments",
        "compressions (segments)",
        f"Facts found against compressions, {LENGTH:,} tokens in segments of different length",
    ),
}


def put(page: str, name: str, content: str) -> str:
    """The page with new content between the markers with this name. Exits if the markers are missing."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, found, rest = page.partition(begin)
    _, also, after = rest.partition(end)
    if not found or not also:
        sys.exit(f"the page has no markers {begin} and {end}; put them where this part belongs")
    return f"{before}{begin}\n{content}\n{end}{after}" if content else f"{before}{begin}\n{end}{after}"


def write(found: Sequence[Result], docs: Path) -> None:
    """Write all tables and plots from these results."""
    page = (docs / "memory.md").read_text(encoding="utf-8")
    for name, make in TABLES.items():
        page = put(page, name, make(found) or "Not measured yet.")
    for name, (section, x, label, title) in PLOTS.items():
        drawn = plot(part(found, section), x, label, title, docs / f"{name}.png")
        page = put(page, name, f"![{title}]({name}.png)" if drawn else "")
    (docs / "memory.md").write_text(page, encoding="utf-8")


def main(arguments: Sequence[str] | None = None, rows: Sequence[Measurement] | None = None) -> None:
    """The command."""
    run(__doc__ or "", measurements() if rows is None else rows, write, arguments)


def run(
    about: str,
    rows: Sequence[Measurement],
    write: Callable[[Sequence[Result], Path], None],
    arguments: Sequence[str] | None,
) -> None:
    """Measure, keep the results, and write a page from them.

    about: the description of the command.
    write: writes the page from all results, in the folder of the page.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data folder")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="measure only the names that match")
    parser.add_argument("--force", action="append", default=[], metavar="NAME", help="measure NAME again")
    parser.add_argument("--list", action="store_true", help="name the measurements and stop")
    parser.add_argument("--write", action="store_true", help="measure nothing; write the page from existing results")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="DIR", help="folder of the page and results/")
    options = parser.parse_args(arguments)
    names = [row.name for row in rows]
    if unknown := [name for name in options.force if name not in names]:
        parser.error(f"there is no measurement {', '.join(unknown)}; see --list")
    results = options.docs / "results"
    targets = {row.name: results / f"{row.name}.json" for row in rows}
    if options.list:
        for row in rows:
            print(f"{'done' if targets[row.name].is_file() else 'to do':<6} {row.name}: {written(row)}")
        return
    wanted = [
        row
        for row in rows
        if row.name in options.force or (fnmatch(row.name, options.only) and not targets[row.name].is_file())
    ]
    failed = []
    for number, row in enumerate([] if options.write else wanted, start=1):
        print(f"{number} of {len(wanted)}: {row.name}", file=sys.stderr, flush=True)
        if problem := measure(row, options.data, targets[row.name]):
            failed.append(row.name)
            print(f"  failed: {problem}", file=sys.stderr, flush=True)
    write(load(rows, results), options.docs)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
