"""Where the time goes when a segment is read: a table of its parts, beside the plain forward.

python docs/profile_reading.py [--threads N] [--slots N]

Reads segments of the sample handbook into a full memory of the default model, and the same segments by the plain
forward of the transformers library. The table is made by torch's profiler and includes the profiler's own cost; the
line before the table does not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from make_memory_report import table
from torch.profiler import ProfilerActivity, profile, record_function

from infinimem.attention import native
from infinimem.attention.native import layers
from infinimem.bench.machine import measure
from infinimem.bench.task import Task, repeated
from infinimem.bench.transformers_model import matrix_parameters
from infinimem.model import infini_model
from infinimem.model.infini_model import InfiniModel
from infinimem.model.pretrained import load_base

Read = Callable[[Sequence[int]], None]
WRITE = "write the memory"
BEFORE, TIMED, PROFILED = 5, 9, 4  # segments
KINDS = {
    "linear layers": ("aten::mm", "aten::addmm"),
    "attention": (
        "aten::bmm",
        "aten::baddbmm",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_softmax",
        "attention",
    ),
    "norms, gates and rotations by the C library": ("norm", "gate", "rotate"),
    "copies": ("aten::copy_", "aten::cat", "aten::index_select", "aten::index"),
}
OTHER = "small operations"


def kind_of(event: Any) -> str:
    """What an operation is part of."""
    name, above = event.name, event.cpu_parent
    while above is not None:
        if above.name == WRITE:
            return WRITE
        above = above.cpu_parent
    return next((kind for kind, names in KINDS.items() if name in names), OTHER)


@torch.no_grad()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--slots", type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = InfiniModel.from_pretrained(rule_settings={"slots": options.slots} if options.slots else None)
    chapters = sorted((Path(__file__).parents[1] / "examples" / "handbook").glob("*.md"))
    length, text = model.segment_length, "\n\n".join(one.read_text(encoding="utf-8") for one in chapters)
    tokens = repeated(model.encoder.encode(text), length * (BEFORE + TIMED + PROFILED))
    segments = [tokens[start : start + length] for start in range(0, len(tokens), length)]
    decoder = load_base()[0].get_decoder()
    cache = model.new_cache()

    def read(segment: Sequence[int]) -> None:
        model.read_tokens(segment, cache, bytearray())

    def plain(segment: Sequence[int]) -> None:
        decoder(input_ids=torch.tensor([segment]), use_cache=False)

    seconds: dict[Read, list[float]] = {read: [], plain: []}
    for number, segment in enumerate(segments[: BEFORE + TIMED]):
        for way, taken in seconds.items():
            started = time.perf_counter()
            way(segment)
            if number >= BEFORE:
                taken.append(time.perf_counter() - started)
    ours, theirs = (statistics.median(taken) * 1e3 for taken in seconds.values())
    mark(infini_model, "end_segment", WRITE)
    # Which torch's profiler does not see.
    for owner, name in ((native, "attention"), (native, "rotate"), (layers, "norm"), (layers, "gate")):
        mark(owner, name, name)
    parts, plain_parts = (spent(way, segments[BEFORE + TIMED :]) for way in (read, plain))
    peak = measure(Task("machine", 0, "", "", "", device="cpu"))["matmul_flops"]
    least = 2 * matrix_parameters(model.model) * length / peak * 1e3
    print(
        f"{length} tokens, {options.threads} threads, {model.rule}: {ours:.0f} ms, "
        f"{length / ours * 1e3:,.0f} tokens/s; the plain forward without head: {theirs:.0f} ms. "
        f"The linear layers alone take {least:.0f} ms at the {peak / 1e9:,.0f} GFLOP/s of large matrices.\n"
    )
    order = sorted(parts, key=lambda kind: -parts[kind])
    rows = [[kind, *(f"{ms:.0f}" for ms in (parts[kind], plain_parts[kind]))] for kind in order]
    print(table(["part", "reading, ms", "plain forward, ms"], rows))


def mark(owner: Any, name: str, label: str) -> None:
    """Make the profiler see a function."""
    function = getattr(owner, name)

    def marked(*arguments: Any, **settings: Any) -> Any:
        with record_function(label):
            return function(*arguments, **settings)

    setattr(owner, name, marked)


def spent(read: Read, segments: Sequence[Sequence[int]]) -> dict[str, float]:
    """Milliseconds a segment by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for segment in segments:
            read(segment)
    parts = dict.fromkeys((*KINDS, OTHER, WRITE), 0.0)
    for event in found.events() or ():
        parts[WRITE if event.name == WRITE else kind_of(event)] += event.self_cpu_time_total / 1e3 / len(segments)
    return parts


if __name__ == "__main__":
    main()
