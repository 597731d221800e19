"""Compare a model with its weights in bfloat16 and in int8: speed of reading and decoding, and memory.

python docs/measure_weights.py MODEL            both in one process, turn about
python docs/measure_weights.py MODEL --resident the memory of one process for each
python docs/measure_weights.py MODEL --answer   an answer adapter of random numbers, merged and beside the weights

Times are wall clock and, because other work on the machine disturbs these, processor time. Of each, the least is taken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch

from infinimem.answering.rows import Rows
from infinimem.model.adapter import Adapter
from infinimem.model.infini_model import SEGMENTS_BETWEEN_TRIMS, InfiniModel
from infinimem.model.lora import add_lora, merge_lora
from infinimem.model.settings import WEIGHTS

SEGMENTS, STEPS = 2, 8


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resident", action="store_true")
    parser.add_argument("--answer", action="store_true")
    parser.add_argument("--one", choices=WEIGHTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(resident(given.model, given.one)))
    elif given.resident:
        for weights in WEIGHTS:
            subprocess.run([sys.executable, __file__, given.model, "--one", weights], check=True)
    else:
        loaded = {weights: InfiniModel.from_pretrained(given.model, weights=weights) for weights in WEIGHTS}
        if given.answer:
            loaded = with_answer_adapter(loaded)
        compare(loaded, given.rounds)


def compare(models: dict[str, InfiniModel], rounds: int) -> None:
    """Let the models take turns; after each turn print the least time of each so far, and how many times as fast as the
    first they are."""
    best: dict[str, dict[str, list[float]]] = {}
    for turn in range(rounds):
        for name, model in models.items():
            for what, seconds in (("decoding", decoding(model)), ("reading", reading(model))):
                old = best.setdefault(what, {}).setdefault(name, seconds)
                best[what][name] = [min(pair) for pair in zip(old, seconds, strict=True)]
        for what, found in best.items():
            first = next(iter(found.values()))
            for name, (wall, processor) in found.items():
                row = {"turn": turn, "what": what, "weights": name}
                row |= {"wall_ms": round(1e3 * wall, 1), "cpu_ms": round(1e3 * processor, 1)}
                row |= {"times_wall": round(first[0] / wall, 2), "times_cpu": round(first[1] / processor, 2)}
                print(json.dumps(row), flush=True)


def timed(work: Callable[[], Any]) -> list[float]:
    """Seconds of wall clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return [time.perf_counter() - wall, time.process_time() - processor]


def text_of(model: InfiniModel, length: int) -> Sequence[int]:
    """Tokens of any prose."""
    text = (Path(__file__).parent / "architecture.md").read_text(encoding="utf-8")
    found: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return (found * (1 + length // len(found)))[:length]


def reading(model: InfiniModel) -> list[float]:
    """Seconds a segment, after segments that fill carried tokens and slots."""
    cache, length = model.new_cache(), model.segment_length
    tokens = text_of(model, (SEGMENTS + 1) * length)
    model.read_batch([tokens[:length]], [cache], [None])
    times = [
        timed(lambda start=start: model.read_batch([tokens[start : start + length]], [cache], [None]))
        for start in range(length, len(tokens), length)
    ]
    return [min(column) for column in zip(*times, strict=True)]


@torch.no_grad()
def decoding(model: InfiniModel) -> list[float]:
    """Seconds a token, after a prompt of 64 tokens."""
    rows = Rows(model, [text_of(model, 64)])
    chosen = rows.logits().argmax(dim=-1)

    def step() -> None:
        rows.add(chosen)
        chosen.copy_(rows.logits().argmax(dim=-1))

    times = [timed(step) for _ in range(STEPS)]
    return [min(column) for column in zip(*times, strict=True)]


def with_answer_adapter(loaded: dict[str, InfiniModel]) -> dict[str, InfiniModel]:
    """The bfloat16 model with a LoRA of rank 16 in all linear layers, merged and beside the weights."""
    model = loaded["bfloat16"]
    layers = [
        (path, module)
        for path, module in model.model.named_modules()
        if isinstance(module, torch.nn.Linear) and "layers." in path
    ]
    lora = {
        path: (torch.randn(16, module.in_features) / 100, torch.randn(module.out_features, 16) / 100)
        for path, module in layers
    }
    adapter = Adapter("random", "", lora, 1.0)
    found = {"bfloat16": model}
    for name, own, put in (("merged", {f"{path}.weight" for path in lora}, merge_lora), ("beside", set(), add_lora)):
        attachment = model.attachment.twin(own)
        put(attachment.model, adapter)
        found[name] = copy(model)
        found[name].model, found[name].attachment = attachment.model, attachment
    return found | {"int8": loaded["int8"]}


def resident(name: str, weights: str) -> dict[str, Any]:
    """Megabytes of this process after loading, and after decoding and reading.

    It reads as many segments as ingestion reads before it gives memory back.
    """
    model = InfiniModel.from_pretrained(name, weights=weights)
    after_load = status()
    decoding(model)
    length = model.segment_length
    tokens, cache = text_of(model, SEGMENTS_BETWEEN_TRIMS * length), model.new_cache()
    for start in range(0, len(tokens), length):
        model.read_batch([tokens[start : start + length]], [cache], [None])
    return {"weights": weights, "loaded": after_load, "used": status()}


def status() -> dict[str, int]:
    """Megabytes of resident memory, and of its parts."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(lines[key].split()[0]) // 1000 for key in ("VmRSS", "VmHWM", "RssAnon", "RssFile")}


if __name__ == "__main__":
    main()
