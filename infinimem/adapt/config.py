"""The training configuration: a TOML file in, frozen dataclasses out, every field checked.

docs/adapt.md lists the fields. Paths are relative to the TOML file.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from operator import ge, gt, le
from pathlib import Path
from typing import Any

from ..errors import InvalidConfig
from .facts import MOST_FACTS

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "a table"}


def setting(default: Any = MISSING, **limits: Any) -> Any:
    """A field with limits: `least`, `most`, `above` for numbers (and lengths of lists), `choices` for texts."""
    return field(metadata=limits) if default is MISSING else field(default=default, metadata=limits)


@dataclass(frozen=True)
class ModelConfig:
    """What is adapted. name: as for `--model`, None for the embedded default. dtype: of the frozen base weights.

    memory_layers, or memory_heads (layer to KV heads): what has a memory; neither for the rule's default. carry: tokens
    that a segment leaves to the next one as they are; None for the rule's default.
    """

    name: str | None = None
    dtype: str = setting("auto", choices=("auto", "bfloat16", "float32"))
    rule: str = setting("slots", choices=("slots", "linear", "delta"))
    rule_settings: dict[str, Any] = field(default_factory=dict)
    segment_length: int = setting(512, least=8)
    memory_layers: tuple[int, ...] | None = setting(None, least=1)
    memory_heads: dict[str, Any] = field(default_factory=dict)
    carry: int | None = setting(None, least=0)

    def __post_init__(self) -> None:
        for layer, heads in self.memory_heads.items():
            if not layer.isdecimal() or not isinstance(heads, list) or any(type(head) is not int for head in heads):
                raise InvalidConfig(f"model.memory_heads.{layer} is {heads!r}; give layer = [KV heads]")
        if self.memory_heads and self.memory_layers is not None:
            raise InvalidConfig("model.memory_layers and model.memory_heads both say what has a memory; give one")

    @property
    def heads(self) -> tuple[int, ...] | dict[int, list[int]] | None:
        """What has a memory, as InfiniModel takes it."""
        return {int(layer): heads for layer, heads in self.memory_heads.items()} or self.memory_layers


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank layers beside the frozen ones. start: an adapter directory to go on from, instead of from zero. over: an
    adapter, a directory or a name in the package, that stays as it is; what is trained becomes its reader, and `start`,
    if given, is a reader's directory."""

    rank: int = setting(16, least=1)
    alpha: float = setting(32.0, above=0)
    targets: tuple[str, ...] = setting(LINEAR_LAYERS, least=1)
    lr: float = setting(5e-4, above=0)
    weight_decay: float = setting(0.0, least=0)
    start: str | None = None
    over: str | None = None


@dataclass(frozen=True)
class GateConfig:
    """The gates of the rules `linear` and `delta`; they never decay."""

    lr: float = setting(0.01, above=0)


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    batch: samples a step. rows: samples computed side by side. bptt: segments that gradients flow back through, 0 for
    all. cuts: where document segments end, "sentences" as in use, "fixed" for equal lengths (no padding between rows).
    token_weight: a sample with loss on n tokens weighs n ** token_weight: 0, all samples alike; 1, all tokens.
    """

    batch: int = setting(8, least=1)
    rows: int = setting(1, least=1)
    bptt: int = setting(0, least=0)
    checkpointing: bool = True
    warmup: int = setting(20, least=0)
    clip: float = setting(1.0, above=0)
    token_weight: float = setting(0.0, least=0, most=1)
    cuts: str = setting("sentences", choices=("sentences", "fixed"))
    save_steps: int = setting(50, least=1)
    save_seconds: float = setting(600.0, above=0)


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: documents of so many segments for so many steps."""

    segments: int = setting(least=2)
    steps: int = setting(least=1)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """One ingredient of the mixture. weight: its share, relative to the others."""

    kind: str
    weight: float = setting(1.0, above=0)


@dataclass(frozen=True, kw_only=True)
class LmConfig(ObjectiveConfig):
    """Language modelling over consecutive segments of books; loss from the second segment on."""

    books: str = setting()


@dataclass(frozen=True, kw_only=True)
class RepeatConfig(ObjectiveConfig):
    """Continue a passage read segments ago. words: of the passage. raw: share asked without a chat."""

    books: str = setting()
    words: int = setting(40, least=4)
    raw: float = setting(0.5, least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class NeedlesConfig(ObjectiveConfig):
    """Facts hidden in book prose, one of them asked for. most: facts a document."""

    books: str = setting()
    most: int = setting(4, least=1, most=MOST_FACTS)
    raw: float = setting(0.5, least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class QaConfig(ObjectiveConfig):
    """Questions about documents. reading: share asked with passages in the prompt instead of the memory.

    passages: most passages in such a prompt. beside: share of those with the memory in view as well. turns: most
    questions asked in one conversation about the same passages, or about what was read. absent: share of those with
    passages that do not hold the answer, so that the right answer is to say so. elsewhere: share of those with passages
    of another document; in its own, others than the right ones may hold an answer all the same. window: share of
    those with one sentence in place of a passage, as `ask` shows it: one that holds the answer, unless none shall.
    alone: share of those sentences without their neighbours.
    """

    data: tuple[str, ...] = setting(least=1)
    reading: float = setting(0.5, least=0, most=1)
    passages: int = setting(4, least=1)
    beside: float = setting(0.0, least=0, most=1)
    turns: int = setting(1, least=1)
    absent: float = setting(0.0, least=0, most=1)
    elsewhere: float = setting(0.5, least=0, most=1)
    window: float = setting(0.0, least=0, most=1)
    alone: float = setting(0.0, least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class BabiConfig(ObjectiveConfig):
    """Facts told in order, scattered over book prose, and a question about them. tasks: of the data, none for all."""

    data: str = setting()
    books: str = setting()
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SummaryConfig(ObjectiveConfig):
    """Summaries out of passages in the prompt, without memory. passages: most passages in such a prompt."""

    data: tuple[str, ...] = setting(least=1)
    passages: int = setting(6, least=1)


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "lm": LmConfig,
    "repeat": RepeatConfig,
    "needles": NeedlesConfig,
    "qa": QaConfig,
    "summary": SummaryConfig,
    "babi": BabiConfig,
}


@dataclass(frozen=True)
class AdaptConfig:
    """A whole run. directory: what relative paths are relative to."""

    output: str
    stages: tuple[Stage, ...]
    objectives: tuple[ObjectiveConfig, ...]
    directory: Path
    seed: int = 0
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    gates: GateConfig = GateConfig()
    train: TrainConfig = TrainConfig()

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> int:
        """Index of the stage that step (from 0) belongs to."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index
            step -= stage.steps
        return len(self.stages) - 1

    def path(self, name: str) -> Path:
        """A path of the file, made absolute."""
        return self.directory / Path(name).expanduser()

    def over(self) -> str | None:
        """The adapter that a reader is trained for: its directory, or its name in the package."""
        return None if self.lora.over is None else _adapter_at(self.path(self.lora.over), self.lora.over)

    def data_files(self) -> list[str]:
        """The data files as they are named in the file, each once, in order."""
        names: dict[str, None] = {}
        for objective in self.objectives:
            for key in ("books", "data"):
                value = getattr(objective, key, ())
                names.update(dict.fromkeys([value] if isinstance(value, str) else value))
        return list(names)

    def to_dict(self) -> dict[str, Any]:
        """All settings but where file and output are, as nested plain values; list items by their index."""
        plain = asdict(self)
        for key in ("directory", "output"):
            del plain[key]
        for key in ("stages", "objectives"):
            plain[key] = {str(index): item for index, item in enumerate(plain[key])}
        return typing.cast("dict[str, Any]", _lists(plain))


@dataclass(frozen=True)
class AddressConfig:
    """The head that weighs words. adapter: whose model it looks into, a directory or a name in the package. layer:
    whose attention input it sees. hidden: its units. tokens: of each data file, at most. questions: of a document, at
    most."""

    adapter: str
    data: tuple[str, ...] = setting(least=1)
    layer: int = setting(12, least=0)
    hidden: int = setting(64, least=1)
    tokens: int = setting(200_000, least=1)
    questions: int = setting(200, least=1)
    epochs: int = setting(4, least=1)
    batch: int = setting(64, least=1)
    lr: float = setting(1e-3, above=0)


@dataclass(frozen=True)
class AddressRun:
    """A run that trains addresses. model: base, None for the embedded default."""

    output: str
    addresses: AddressConfig
    directory: Path
    seed: int = 0
    model: str | None = None

    def path(self, name: str) -> Path:
        """A path of the file, made absolute."""
        return self.directory / Path(name).expanduser()

    def adapter_path(self) -> str:
        """The adapter's directory, or its name in the package."""
        return _adapter_at(self.path(self.addresses.adapter), self.addresses.adapter)


def _adapter_at(directory: Path, name: str) -> str:
    return str(directory) if directory.is_dir() else name


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_config(path: str | os.PathLike[str]) -> AdaptConfig | AddressRun:
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


def parse_config(table: Mapping[str, Any], directory: Path) -> AdaptConfig | AddressRun:
    """The configuration in a parsed TOML table. Raises InvalidConfig, which names the field."""
    values = dict(table)
    if "addresses" in values:
        _refuse_unknown(values, {f.name for f in fields(AddressRun)} - {"directory"}, "")
        values["addresses"] = _build(AddressConfig, values["addresses"], "addresses")
        for name, expected in (("output", str), ("seed", int), ("model", str)):
            if name in values or name == "output":
                _check(values.get(name, MISSING), expected, {}, name)
        return AddressRun(**values, directory=directory)
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
        _check_reader(config)
    return config


def _check_reader(config: AdaptConfig) -> None:
    """A reader meets passages in prompts, and no memory."""
    for index, objective in enumerate(config.objectives):
        reads = isinstance(objective, QaConfig) and objective.reading == 1 and objective.beside == 0
        if not reads and not isinstance(objective, SummaryConfig):
            raise InvalidConfig(
                f"objectives[{index}] asks the memory, which a reader (lora.over) never sees; give it qa with "
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
    """The value in the type that the field has."""
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
