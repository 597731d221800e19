"""The training configuration from a TOML file, with every field checked."""

from __future__ import annotations

import difflib
import math
import os
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from operator import ge, gt, le
from pathlib import Path
from typing import Any

from ..errors import InvalidConfig, warn_renamed
from .config import (
    OBJECTIVES,
    AdaptConfig,
    GateConfig,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    QaConfig,
    Stage,
    SummaryConfig,
    TermHeadConfig,
    TermHeadRun,
    TrainConfig,
)

NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "a table"}


def read_config(path: str | os.PathLike[str]) -> AdaptConfig | TermHeadRun:
    """The configuration in a TOML file. Raises InvalidConfig, which names the field."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    place = Path(path)
    try:
        table = tomllib.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidConfig(
            f"no configuration is at '{place}'; see examples/adapt.toml for one to start from"
        ) from error
    except OSError as error:
        raise InvalidConfig(f"'{place}' cannot be read ({error.strerror}); name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"'{place}' is not TOML: {error}") from error
    return parse_config(table, place.resolve().parent)


def parse_config(table: Mapping[str, Any], directory: Path) -> AdaptConfig | TermHeadRun:
    """The configuration in a parsed TOML table. Raises InvalidConfig, which names the field."""
    values = dict(table)
    if "addresses" in values:
        warn_renamed("the table [addresses]", "[term_weights]")
        values["term_weights"] = values.pop("addresses")
    if "term_weights" in values:
        _refuse_unknown(values, {f.name for f in fields(TermHeadRun)} - {"directory"}, "")
        values["term_weights"] = _build(TermHeadConfig, values["term_weights"], "term_weights")
        for name, expected in (("output", str), ("seed", int), ("model", str)):
            if name in values or name == "output":
                _check(values.get(name, MISSING), expected, {}, name)
        return TermHeadRun(**values, directory=directory)
    known = {f.name for f in fields(AdaptConfig)} - {"directory"}
    _refuse_unknown(values, known, "")
    for name, kind in (("model", ModelConfig), ("lora", LoraConfig), ("gates", GateConfig), ("train", TrainConfig)):
        values[name] = _build(kind, values.get(name, {}), name)
    values["stages"] = tuple(_build(Stage, t, f"stages[{i}]") for i, t in enumerate(_tables(values, "stages")))
    values["objectives"] = tuple(_objective(t, f"objectives[{i}]") for i, t in enumerate(_tables(values, "objectives")))
    for name, expected in (("output", str), ("seed", int)):
        if name in values or name == "output":
            _check(values.get(name, MISSING), expected, {}, name)
    config = AdaptConfig(**values, directory=directory)
    if config.lora.over is not None:
        _check_answer_adapter(config)
    return config


def _check_answer_adapter(config: AdaptConfig) -> None:
    """Raise InvalidConfig for an objective that asks the memory: an answer adapter only sees passages in prompts."""
    for index, objective in enumerate(config.objectives):
        reads = isinstance(objective, QaConfig) and objective.reading == 1 and objective.beside == 0
        if not reads and not isinstance(objective, SummaryConfig):
            raise InvalidConfig(
                f"objectives[{index}] asks the memory, which an answer adapter (lora.over) never sees; give it qa with "
                "reading = 1.0, or summary"
            )


def _tables(values: Mapping[str, Any], name: str) -> list[Any]:
    found = values.get(name)
    if not isinstance(found, list) or not found:
        raise InvalidConfig(f"the configuration has no {name}; add at least one [[{name}]] table")
    return found


def _objective(table: Any, where: str) -> ObjectiveConfig:
    kind = table.get("kind") if isinstance(table, dict) else None
    if kind not in OBJECTIVES:
        raise InvalidConfig(f"{where}.kind is {kind!r}; choose one of {', '.join(OBJECTIVES)}")
    return typing.cast("ObjectiveConfig", _build(OBJECTIVES[kind], table, where))


def _build(kind: type, table: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise InvalidConfig(f"{where} is {table!r}, but must be a table of settings")
    known = {f.name: f for f in fields(kind)}
    _refuse_unknown(table, set(known), f"{where}.")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, spec in known.items():
        if name in table:
            values[name] = _check(table[name], hints[name], spec.metadata, f"{where}.{name}")
        elif spec.default is MISSING and spec.default_factory is MISSING:
            raise InvalidConfig(f"{where}.{name} is missing from the configuration; it has no default")
    return kind(**values)


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise InvalidConfig(f"there is no setting {where}{name}; {hint}")


def _check(value: Any, hint: Any, limits: Mapping[str, Any], where: str) -> Any:
    """The value in the type of its field. Raises InvalidConfig where it has another type or breaks a limit."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InvalidConfig(f"{where} is {value!r}, but must be a list")
        items = tuple(_check(item, typing.get_args(hint)[0], {}, f"{where}[{i}]") for i, item in enumerate(value))
        if len(items) < limits.get("least", 0):
            raise InvalidConfig(f"{where} is empty; name at least one")
        return items
    if value is MISSING:
        raise InvalidConfig(f"{where} is missing from the configuration; it has no default")
    accepted = (int, float) if origin is float else origin
    if not isinstance(value, accepted) or (isinstance(value, bool) and origin is not bool):
        raise InvalidConfig(f"{where} is {value!r}, but must be {NAMES[origin]}")
    if origin is float:
        value = float(value)
        if not math.isfinite(value):
            raise InvalidConfig(f"{where} is {value}, but must be finite")
    if "choices" in limits and value not in limits["choices"]:
        raise InvalidConfig(f"{where} is {value!r}; choose one of {', '.join(limits['choices'])}")
    for name, says, holds in (("least", "at least", ge), ("most", "at most", le), ("above", "more than", gt)):
        if name in limits and not holds(value, limits[name]):
            raise InvalidConfig(f"{where} is {value}, but must be {says} {limits[name]}")
    return value
