"""The result of `bench` for people: a table, the main findings in sentences, and a plot."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidSetting, MatplotlibMissing
from ..storage.files import write_atomically
from .run import COLUMNS

HEAD = ("system", "tokens", "runs", *COLUMNS.values(), "of peak")
# Factors from the units in JSON to the units in the table.
SCALES = {"file_bytes": 1e-6}
# Columns of the plot, and whether their axis is logarithmic.
PANELS = {"tokens_per_second": False, "peak_rss_mb": False, "file_bytes": True, "load_ms": True, "first_token_ms": True}
PLOTS = (".pdf", ".png", ".svg")


def figure(value: float | None) -> str:
    """A number for people: whole from 100 on, with two or three significant digits below; a dash for None."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if 0 < abs(value) < 0.1 else f"{value:.{1 if abs(value) >= 10 else 2}f}"


def shown(column: str, value: float | None) -> str:
    """A value of a column, in the unit of its head."""
    return figure(None if value is None else value * SCALES.get(column, 1.0))


def cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """A row of the table, in the order of HEAD; where nothing was measured, the name and the reason."""
    if reason := row.get("skipped") or row.get("failed"):
        return [name, f"{'skipped' if 'skipped' in row else 'failed'}: {reason}"]
    values = [shown(column, row[column]) for column in COLUMNS]
    share = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else "-"
    return [name, f"{row['tokens']:,}", str(row["runs"]), *values, share]


def table(systems: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """All rows. Each row of infinimem is followed by its row "memory mode", for answers from the memory alone; that row
    has the columns of the answer only."""
    rows = []
    for name, row in systems.items():
        rows.append(cells(name, row))
        if "memory_mode_first_token_ms" in row:
            blank = {key: row.get(f"memory_mode_{key}") for key in COLUMNS}
            shown = cells(f"{name}, memory mode", {**row, **blank})
            rows.append([*shown[:-1], "-"])
    return rows


def in_short(result: Mapping[str, Any]) -> list[str]:
    """The main findings, one sentence a line."""
    forward = result["plain_forward"]
    lines = [
        f"Reading a segment of {forward['segment_length']} tokens runs at {result['read_vs_plain_forward']:.2f} times "
        f"the speed of the model's plain forward ({figure(forward['infinimem_tokens_per_second'])} against "
        f"{figure(forward['plain_tokens_per_second'])} tokens/s, {forward['pairs']} pairs)."
    ]
    for name, ratio in result["ratios"].items():
        said = [
            f"{words} {figure(ratio[column])} times"
            for column, words in (
                ("tokens_per_second", "reading speed"),
                ("file_bytes", "file"),
                ("peak_rss_mb", "peak memory"),
            )
            if column in ratio
        ]
        lines.append(f"infinimem against {name}: {', '.join(said)}.")
    for system, ratio in result["long_vs_short"].items():
        lines.append(f"{system} reads its longest text at {ratio:.2f} times the speed of its shortest.")
    own = result["systems"].get("infinimem", {})
    if "ready_ms" in own:
        lines.append(f"A loaded memory is made ready for its first question in {figure(own['ready_ms'])} ms.")
    seconds = own.get("cold_start_s")
    if seconds is not None:
        lines.append(f"A new process of 'infinimem ask' takes {figure(seconds)} s for one token.")
    return lines


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine, in one line."""
    computing = f"{machine['gpu']}, beside " if machine["gpu"] else ""
    hardware = "in hardware" if machine["bfloat16_in_hardware"] else "bfloat16 not in hardware"
    library = ", C library" if machine.get("c_library") else ""
    return (
        f"{computing}{machine['cpu']} ({machine['threads']} of {machine['cores']} cores used), {machine['system']}, "
        f"{machine['dtype']} ({hardware}, {machine['matmul_flops'] / 1e9:,.0f} GFLOP/s in products of "
        f"{machine['matmul'].partition(',')[0]}), torch {machine['torch']}, transformers {machine['transformers']}, "
        f"Python {machine['python']}{library}"
    )


def as_text(result: Mapping[str, Any]) -> str:
    """The whole result for a terminal."""
    rows = [list(HEAD), *table(result["systems"])]
    whole = [row for row in rows if len(row) == len(HEAD)]
    first = max(len(row[0]) for row in rows)
    widths = [max(len(row[column]) for row in whole) for column in range(1, len(HEAD))]
    lines = [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True))])
        if len(row) == len(HEAD)
        else f"{row[0].ljust(first)}  {row[1]}"
        for row in rows
    ]
    lines = [machine_line(result["machine"]), f"Text: {result['text']['name']}", "", *lines, "", *in_short(result)]
    return "\n".join(line.rstrip() for line in lines)


def need_matplotlib() -> None:
    """Raises MatplotlibMissing where there is none; called before measuring, which takes a while."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MatplotlibMissing("a plot needs matplotlib; run: pip install 'infinimem[bench]'") from error


def plot(result: Mapping[str, Any], target: Path) -> None:
    """Draws bars of all rows that were measured, one panel a column, with the least and the greatest value.

    Raises MatplotlibMissing; InvalidSetting where no row was measured; TargetNotWritable.
    """
    need_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    rows = {name: row for name, row in result["systems"].items() if row["tokens_per_second"]}
    if not rows:
        raise InvalidSetting("no system was measured, so there is nothing to plot; install one, or choose others")
    # Some operating systems do not say how much memory a process had.
    columns = [column for column in PANELS if all(row[column] for row in rows.values())]
    drawn = Figure(figsize=(3.2 * len(columns) + 1.6, 0.42 * len(rows) + 1.6), layout="constrained")
    panels: Sequence[Any] = drawn.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    labels = [f"{name}, {row['tokens']:,} tokens" if name == row["system"] else name for name, row in rows.items()]
    colors = ["tab:red" if row["system"] == "infinimem" else "tab:gray" for row in rows.values()]
    for panel, column in zip(panels, columns, strict=True):
        scale = SCALES.get(column, 1.0)
        values = [row[column] * scale for row in rows.values()]
        ranges = [row["range"][column] for row in rows.values()]
        off = [
            [value - low * scale for value, (low, _) in zip(values, ranges, strict=True)],
            [high * scale - value for value, (_, high) in zip(values, ranges, strict=True)],
        ]
        bars = panel.barh(labels, values, xerr=off, color=colors, capsize=2, log=PANELS[column])
        panel.bar_label(bars, [figure(value) for value in values], padding=4, fontsize=8)
        panel.margins(x=0.25)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_title(COLUMNS[column], fontsize=10)
    panels[0].invert_yaxis()
    image = io.BytesIO()
    drawn.savefig(image, format=target.suffix[1:], dpi=120)
    write_atomically(target, image.getvalue())
