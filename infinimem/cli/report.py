"""What is in a memory file, for people and for scripts. Needs neither torch nor a model."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np

from ..ingest.record import Record
from ..storage.memory_file import read_memory_file


def describe(path: Path) -> dict[str, Any]:
    """Everything about a memory file that can be said without its model. Errors: those of `read_memory_file`."""
    file = read_memory_file(path)
    record = Record.from_file(file)
    identity = file.identity
    return {
        "file": str(path),
        "file_bytes": path.stat().st_size,
        "format": file.format,
        "model": file.model,
        "adapter": file.adapter,
        "rule": identity["rule"],
        "settings": {**identity["rule_settings"], **{name: identity[name] for name in ("segment_length", "carry")}},
        "tokens": file.reading["tokens"],
        "pages": sum(source.pages for source in record.sources),
        "passages": len(record.passages),
        "term_weight_bytes": 0 if file.term_weights is None else int(file.term_weights.nbytes),
        "memory_bytes": file.memory_bytes,
        "sources": file.sources,
        "layers": [_layer(index, state) for index, state in file.states.items()],
        "identity": identity,
        "fingerprint": file.fingerprint,
    }


def _layer(index: int, state: dict[str, np.ndarray]) -> dict[str, Any]:
    described: dict[str, Any] = {"layer": index, "bytes": sum(tensor.nbytes for tensor in state.values())}
    if "counts" in state:
        described["slots"] = int(state["counts"].shape[-1])
        described["largest_slot"] = float(state["counts"].max(initial=0.0))
    if "carried_counts" in state:
        described["carried"] = int(state["carried_counts"].shape[-1])
    for name, tensor in state.items():
        if name.endswith("_scale"):
            continue
        if f"{name}_scale" in state:
            tensor = tensor * state[f"{name}_scale"][..., None].astype(np.float64)
        described[f"{name}_rms"] = float(np.sqrt(np.mean(np.square(tensor, dtype=np.float64)))) if tensor.size else 0.0
    return described


def html_report(described: dict[str, Any]) -> str:
    """The description as one HTML page without scripts or outside resources."""
    rows = [
        _row(name.replace("_", " "), described[name])
        for name in (
            "file",
            "file_bytes",
            "format",
            "model",
            "adapter",
            "rule",
            "settings",
            "tokens",
            "pages",
            "passages",
        )
    ]
    rows += [_row("memory bytes", described["memory_bytes"]), _row("fingerprint", described["fingerprint"])]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Memory file</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;width:100%;margin-bottom:2rem}th,td{text-align:left;padding:.3rem .6rem;"
        "border-bottom:1px solid #ddd;vertical-align:top;overflow-wrap:anywhere}th{white-space:nowrap}</style>"
        f"<h1>{_text(Path(described['file']).name)}</h1><table>{''.join(rows)}</table>"
        f"<h2>Sources</h2>{_table(described['sources'])}<h2>Layers</h2>{_table(described['layers'])}</html>\n"
    )


def _text(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    elif isinstance(value, int):
        value = f"{value:,}"
    return html.escape(str(value))


def _row(name: str, value: Any) -> str:
    return f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>"


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "<p>None.</p>"
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{_text(row.get(name, ''))}</td>" for name in names) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
