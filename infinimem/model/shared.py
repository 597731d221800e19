"""Models that are loaded once in a process and shared by all memories that use them."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .adapter import load_adapter
from .catalogue import present_name
from .infini_model import InfiniModel
from .pretrained import chosen_model
from .settings import MemorySettings

_shared: weakref.WeakValueDictionary[str, InfiniModel] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def shared_model(
    name: str | os.PathLike[str] | None = None, settings: MemorySettings | None = None, *, fetch: bool = True
) -> InfiniModel:
    """The model of this name with these settings; it is loaded once per process, and stays while anything uses it.

    name: as for `InfiniModel.from_pretrained`.
    settings: None for the defaults.
    fetch: as for `pretrained.load_base`.
    Raises the errors of `InfiniModel.from_pretrained`.
    """
    asked = settings or MemorySettings()
    name = chosen_model(name)
    adapter = load_adapter(asked.adapter, name)
    memory = asked.resolved(adapter, name)
    rule = memory.make_rule().settings()
    heads: Any = None if memory.memory_heads is None else list(memory.memory_heads)
    if isinstance(memory.memory_heads, Mapping):
        heads = {int(layer): list(members) for layer, members in memory.memory_heads.items()}
    # Where heads or carry are None, only the loaded model knows their default values. So the model is kept under two
    # keys: with the values that were asked for, and with the values that it has.
    key: list[Any] = [present_name(name), memory.rule, rule, memory.segment_length, str(memory.device)]
    key += [memory.weights]
    key += [adapter.name, adapter.sha256, adapter.answer and adapter.answer.sha256] if adapter else []
    with _lock:
        model = _shared.get(_text(key, heads, memory.carry))
        if model is None:
            model = InfiniModel.load(name, replace(memory, rule_settings=rule, memory_heads=heads), fetch=fetch)
            _shared[_text(key, heads, memory.carry)] = model
            _shared[_text(key, model.memory_heads, model.carry)] = model
        return model


def _text(key: list[Any], heads: Any, carry: int | None) -> str:
    return json.dumps([*key, heads, carry], sort_keys=True)
