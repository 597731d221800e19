"""Starts the measurements, each in a separate process, one after the other, and computes medians and ratios."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .. import errors
from ..datasets.documents import text_of
from ..errors import BenchFailed, EmptySource, InvalidSetting, check_names
from ..text.passages import cut
from . import LENGTHS, REPEATS, SHORTEST, SYSTEMS, TOKENS
from .task import Task

# Seconds. A row whose text takes longer to read is run once.
LONG_READING = 60.0
# Values of every measured row: the key in JSON, and the head in the table.
COLUMNS = {
    "tokens_per_second": "reading, tokens/s",
    "peak_rss_mb": "peak RSS, MB",
    "file_bytes": "file, MB",
    "load_ms": "load, ms",
    "first_token_ms": "first token, ms",
    "decode_tokens_per_second": "decoding, tokens/s",
}
QUESTION_WORDS = 8


class Row(NamedTuple):
    """One row of the result: its key, and what is measured for it."""

    name: str
    system: str
    tokens: int


def bench(
    *,
    systems: Sequence[str] = SYSTEMS,
    tokens: int = TOKENS,
    lengths: Sequence[int] = LENGTHS,
    long: int | None = None,
    repeats: int = REPEATS,
    text: Path | None = None,
    question: str | None = None,
    model: str | None = None,
    adapter: str | None = None,
    weights: str | None = None,
    device: str | None = None,
    on_run: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure systems on this machine.

    systems: names of SYSTEMS.
    tokens: tokens to read, for all systems but full attention.
    lengths: tokens that full attention reads, a row each.
    long: tokens of a second row of infinimem; None for no such row.
    repeats: processes per row. Times and sizes are medians; `range` has the least and the greatest value.
    text: a document; None for Python's language reference.
    question: None for a question made of words of the text.
    weights: as in `MemorySettings`.
    device: such as "cpu" or "cuda:1"; None takes a CUDA GPU if there is one.
    on_run: called with a line before each process.
    Raises InvalidSetting, the SourceError of the text, the ModelError or AdapterError of the model, BenchFailed.
    """
    check_names("system", systems, SYSTEMS)
    if repeats < 1:
        raise InvalidSetting(f"repeats is {repeats}; measure at least once")
    if short := [count for count in (tokens, *lengths, *([] if long is None else [long])) if count < SHORTEST]:
        raise InvalidSetting(f"{short[0]} tokens are too few to time; read at least {SHORTEST}")
    name, whole = (text.name, text_of(text)) if text else reference()
    if not whole.strip():
        raise EmptySource(f"{name} has no text; give another file")
    question = question or question_about(whole)
    begun = time.perf_counter()
    tell = on_run or (lambda _: None)
    with tempfile.TemporaryDirectory(prefix="infinimem-bench-") as folder:
        source, states = Path(folder, "text.txt"), Path(folder, "states")
        source.write_text(whole, encoding="utf-8", errors="replace", newline="")
        states.mkdir()
        first = Task(
            "machine", tokens, str(source), question, str(states), model, adapter, weights, device, samples=repeats
        )
        tell("machine")
        machine = required(first)
        task = replace(first, device=machine["device"], threads=machine["threads"])
        tell("plain forward")
        plain = plain_forward(required(replace(task, what="forward")), machine)
        rows = rows_of(systems, tokens, lengths, long)
        runs: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
        for number in range(repeats):
            for row in rows:
                if number == 0 or not is_enough(runs[row.name]):
                    tell(f"{row.name}, {number + 1} of {repeats}")
                    runs[row.name].append(run(replace(task, what=row.system, tokens=row.tokens)))
                    for left in states.iterdir():
                        # `cold_starts` needs infinimem's last memory file. Other states are deleted, as they are large.
                        if row.name != "infinimem":
                            left.unlink()
                        else:
                            left.replace(Path(folder, "memory.safetensors"))
        found = {row.name: summary(row, runs[row.name], machine) for row in rows}
        if found.get("infinimem", {}).get("tokens_per_second"):
            tell("infinimem ask")
            taken = cold_starts(Path(folder, "memory.safetensors"), question, task.device, repeats)
            found["infinimem"]["cold_start_s"] = median(taken)
            found["infinimem"]["range"]["cold_start_s"] = [min(taken), max(taken)]
    return {
        "systems": found,
        "read_vs_plain_forward": plain["infinimem_tokens_per_second"] / plain["plain_tokens_per_second"],
        "plain_forward": plain,
        "ratios": ratios(found),
        "long_vs_short": long_vs_short(found),
        "machine": machine,
        "text": {
            "name": name,
            "characters": len(whole),
            "sha256": hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest(),
            "question": question,
        },
        "settings": {
            "systems": list(systems),
            "tokens": tokens,
            "lengths": list(lengths),
            "long": long,
            "repeats": repeats,
            "model": model,
            "adapter": adapter,
            "weights": weights,
        },
        "seconds": time.perf_counter() - begun,
    }


def reference() -> tuple[str, str]:
    """Name and text of Python's language reference, which comes with Python.

    The topics are in a random order, always the same, so that grammar and prose are spread evenly. Raises
    InvalidSetting where this Python has no language reference.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InvalidSetting("this Python came without its language reference; give a document with --text") from error
    names = sorted(topics)
    random.Random(0).shuffle(names)
    name = f"Python's language reference (pydoc's topics, Python {platform.python_version()})"
    return name, "\n\n".join(topics[one] for one in names)


def question_about(text: str) -> str:
    """A question in words of the text's second passage, so that the passages hold an answer."""
    passages = cut(text[:4096], "text")
    words = [word for word in passages[min(1, len(passages) - 1)].text.split() if any(map(str.isalpha, word))]
    return f"What about {' '.join(words[:QUESTION_WORDS]).strip('.,;:!?') or 'it'}?"


def rows_of(systems: Sequence[str], tokens: int, lengths: Sequence[int], long: int | None) -> list[Row]:
    """The rows to measure, in this order."""
    rows = []
    for system in (name for name in SYSTEMS if name in systems):
        if system == "transformers":
            rows += [Row(f"{system}-{length}", system, length) for length in sorted(set(lengths))]
        else:
            rows.append(Row(system, system, tokens))
        if system == "infinimem" and long is not None:
            rows.append(Row(f"{system}-{long}", system, long))
    return rows


def is_enough(runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a row needs no more runs, because it cannot be measured or its text takes long to read."""
    last = runs[-1]
    return "tokens_per_second" not in last or last["tokens"] / last["tokens_per_second"] > LONG_READING


def summary(row: Row, runs: Sequence[dict[str, Any]], machine: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the result: medians, and least and greatest values under `range`; or why it was skipped or failed."""
    about = {"system": row.system, "tokens": row.tokens, "runs": len(runs), **dict.fromkeys(COLUMNS)}
    for reason in ("skipped", "failed"):
        for one in runs:
            if reason in one:
                return {**about, reason: one[reason]}
    taken = {
        name: [one[name] for one in runs]
        for name, value in runs[0].items()
        if isinstance(value, (int, float)) and name not in ("tokens", "matrix_parameters")
    }
    found = {**about, "tokens": runs[0]["tokens"], **{name: median(values) for name, values in taken.items()}}
    if matrices := runs[0].get("matrix_parameters"):
        found["share_of_peak"] = share_of_peak(matrices, found["tokens_per_second"], machine)
    return found | {"range": {name: [min(values), max(values)] for name, values in taken.items()}}


def share_of_peak(parameters: int, tokens_per_second: float, machine: Mapping[str, Any]) -> float:
    """Operations per second in the matrices during reading, as a share of the machine's speed in matrix products.

    Each token takes two operations per weight; work outside the matrices is not counted.

    parameters: weights of the matrices that every token is multiplied with.
    machine: the result of `machine.measure`.
    """
    return float(2 * parameters * tokens_per_second / machine["matmul_flops"])


def plain_forward(found: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Medians of the tokens per second of a segment, for infinimem and for the plain forward."""
    result: dict[str, Any] = {"segment_length": found["segment_length"], "pairs": len(found["plain_seconds"])}
    for name in ("infinimem", "plain"):
        speeds = [found["segment_length"] / seconds for seconds in found[f"{name}_seconds"]]
        result[f"{name}_tokens_per_second"] = median(speeds)
        result[f"{name}_range"] = [min(speeds), max(speeds)]
        result[f"{name}_share_of_peak"] = share_of_peak(found["matrix_parameters"], median(speeds), machine)
    return result


def ratios(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """infinimem's medians, divided by those of each row of another system."""
    ours = found.get("infinimem", {})
    columns = ("tokens_per_second", "file_bytes", "peak_rss_mb")
    compared = {
        name: {column: ours[column] / row[column] for column in columns if ours.get(column) and row.get(column)}
        for name, row in found.items()
        if row["system"] != "infinimem"
    }
    return {name: row for name, row in compared.items() if row}


def long_vs_short(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Tokens per second at the longest text, divided by those at the shortest, per system that read several texts."""
    result = {}
    for system in SYSTEMS:
        rows = sorted(
            (row["tokens"], row["tokens_per_second"])
            for row in found.values()
            if row["system"] == system and row.get("tokens_per_second")
        )
        if len(rows) > 1:
            result[system] = rows[-1][1] / rows[0][1]
    return result


# Processes


def run(task: Task) -> dict[str, Any]:
    """The values that a process measured, or `skipped` or `failed` with a line that says why."""
    with tempfile.TemporaryDirectory(prefix="infinimem-bench-") as folder:
        given, wanted = Path(folder, "task.json"), Path(folder, "result.json")
        given.write_text(json.dumps(asdict(task)), encoding="utf-8")
        command = [sys.executable, "-m", f"{__package__}.child", str(given), str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment(task.device))
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(wanted.read_text(encoding="utf-8"))
            return found if "error" not in found else {**found, "failed": found["error"][1]}
    return {"failed": _reason(done)}


def required(task: Task) -> dict[str, Any]:
    """The values that a process measured. Raises the InfinimemError that the process met, or BenchFailed."""
    found = run(task)
    if "error" in found:
        name, message = found["error"]
        raise getattr(errors, name)(message)
    if "failed" in found:
        raise BenchFailed(f"'{task.what}' could not be measured: {found['failed']}")
    return found


def cold_starts(file: Path, question: str, device: str | None, repeats: int) -> list[float]:
    """Seconds that each of several new processes of `infinimem ask` took for one token. Raises BenchFailed."""
    command = [sys.executable, "-m", "infinimem", "ask", str(file), question, "--max-new-tokens", "1"]
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment(device))
        taken.append(time.perf_counter() - started)
        if done.returncode:
            raise BenchFailed(f"'infinimem ask' could not be measured: {_reason(done)}")
    return taken


def _environment(device: str | None) -> dict[str, str]:
    # `ask` has no option for the device and takes a GPU where it sees one: for the CPU, GPUs are hidden from it.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return {**os.environ, "TQDM_DISABLE": "1", **hidden}


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"the process was ended by signal {-done.returncode}; perhaps it ran out of memory"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
