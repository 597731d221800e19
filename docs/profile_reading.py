"""Where the time of reading goes: a table of what one segment costs, beside what it would at least.

python docs/profile_reading.py [--threads N] [--slots N]

Reads segments of this project's own documents into a full memory of the default model under torch's profiler, whose own
cost is part of what it shows; the line before the table is without it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from make_memory_report import table
from torch.profiler import ProfilerActivity, profile, record_function

from infinimem.attention.cache import InfiniCache
from infinimem.bench.machine import measure
from infinimem.bench.plain import matrix_parameters
from infinimem.bench.task import Task, repeated
from infinimem.model import InfiniModel

WRITE = "write the memory"
BEFORE, TIMED, PROFILED = 5, 9, 4  # segments
KINDS = {
    "linear layers": ("aten::mm", "aten::addmm"),
    "products of attention": ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product_flash_attention_for_cpu"),
    "softmax of attention": ("aten::_softmax",),
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
    length, text = model.segment_length, Path(__file__).with_name("decisions.md").read_text(encoding="utf-8")
    tokens = repeated(model.encoder.encode(text), length * (BEFORE + TIMED + PROFILED))
    segments = [tokens[start : start + length] for start in range(0, len(tokens), length)]
    cache, seconds = model.new_cache(), []
    for number, segment in enumerate(segments[: BEFORE + TIMED]):
        started = time.perf_counter()
        model.read_tokens(segment, cache, bytearray())
        if number >= BEFORE:
            seconds.append(time.perf_counter() - started)
    end = InfiniCache.end_segment

    def marked(self: InfiniCache, *arguments: Any, **settings: Any) -> None:
        with record_function(WRITE):
            end(self, *arguments, **settings)

    InfiniCache.end_segment = marked  # type: ignore[method-assign]
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for segment in segments[BEFORE + TIMED :]:
            model.read_tokens(segment, cache, bytearray())
    spent = dict.fromkeys((*KINDS, OTHER, WRITE), 0.0)
    for event in found.events() or ():
        spent[WRITE if event.name == WRITE else kind_of(event)] += event.self_cpu_time_total / 1e3 / PROFILED
    peak = measure(Task("machine", 0, "", "", "", device="cpu"))["matmul_flops"]
    least = 2 * matrix_parameters(model.model) * length / peak * 1e3
    whole, total = statistics.median(seconds) * 1e3, sum(spent.values())
    print(
        f"{length} tokens, {options.threads} threads, {model.rule}: {whole:.0f} ms, "
        f"{length / whole * 1e3:,.0f} tokens/s. "
        f"The linear layers alone take {least:.0f} ms at the {peak / 1e9:,.0f} GFLOP/s of large matrices.\n"
    )
    rows = [[kind, f"{ms:.0f}", f"{ms / total:.0%}"] for kind, ms in sorted(spent.items(), key=lambda item: -item[1])]
    print(table(["part", "ms", "share"], rows))


if __name__ == "__main__":
    main()
