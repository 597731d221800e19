"""The card of a trained adapter, its README.md."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..attention.rules import make_rule
from .config import AdaptConfig
from .log import LAST

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel


def hardware(device: torch.device) -> str:
    """The processor that computed, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = f"{os.cpu_count()} cores"
    return f"CPU ({platform.machine()}, {cores}, {torch.get_num_threads()} used)"


def card(config: AdaptConfig, model: InfiniModel, run: dict[str, Any]) -> str:
    """The adapter's README.md. run: the result of `adapt`."""
    losses = "\n".join(f"| {kind} | {loss} |" for kind, loss in run["losses"].items())
    settings = _named(config.to_dict())
    files = "\n".join(f"- {Path(name).name}" for name in config.data_files())
    state = "" if run["finished"] else " (stopped early)"
    # Cards are published, so they name no directories of this machine.
    base = Path(model.name).name if Path(model.name).is_dir() else model.name
    settings["model"]["name"] = base
    if config.lora.over is None:
        rule = make_rule(config.model.rule, **config.model.rule_settings)
        what = f"""# Adapter for {base}

An adapter of infinimem: LoRA in PEFT's layout, and the settings and gates of the memory in `memory.safetensors`.

    infinimem ingest book.pdf -o book.safetensors --adapter THIS_DIRECTORY

- base model: {base}
- memory: rule `{rule.name}`, settings `{json.dumps(rule.settings())}`, {model.segment_length} tokens a segment,
  {model.carry} carried over, {len(model.memory_heads)} of {model.num_layers} layers"""
    else:
        what = f"""# Answer adapter for {base}

LoRA in PEFT's layout for {base} with the adapter in the directory above merged into it. infinimem uses both where it
answers from passages in the prompt.

- base model: {base}, adapter {Path(model.adapter_name).name}"""
    return f"""{what}
- trained: {run["steps"]} of {config.steps} steps{state}, {run["tokens"]:,} tokens, {run["seconds"] / 60:,.1f} minutes
- hardware: {run["hardware"]}, base weights in {run["dtype"]}

## Data

{files}

## Final losses

Means over the last {LAST} steps, nats a token.

| objective | loss |
|---|---|
{losses}

## Configuration

```json
{json.dumps(settings, indent=1)}
```
"""


def _named(value: Any) -> Any:
    """The settings with the names of files instead of their paths."""
    if isinstance(value, dict):
        return {
            key: _base_name(item) if key in ("books", "data", "start", "over") else _named(item)
            for key, item in value.items()
        }
    return value


def _base_name(value: Any) -> Any:
    if isinstance(value, list):
        return [_base_name(item) for item in value]
    return Path(value).name if isinstance(value, str) else value
