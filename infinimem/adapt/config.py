"""The training configuration: frozen dataclasses whose fields have limits.

docs/adapt.md lists the fields. config_file.py makes the dataclasses from a TOML file; paths are relative to that file.
"""

from __future__ import annotations

import typing
from dataclasses import MISSING, asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..datasets.facts import MOST_FACTS
from ..errors import InvalidConfig, warn_renamed
from ..model.directories import ANSWER, OLD_ANSWER

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def setting(default: Any = MISSING, **limits: Any) -> Any:
    """A field with limits: `least`, `most`, `above` for numbers (and lengths of lists), `choices` for texts."""
    return field(metadata=limits) if default is MISSING else field(default=default, metadata=limits)


@dataclass(frozen=True)
class ModelConfig:
    """The model that is trained, and its memory.

    name: as for `--model`; None for the default model.
    dtype: of the frozen base weights.
    memory_layers: layers that have a memory; neither this nor `memory_heads` for the rule's default.
    memory_heads: layer to the KV heads that have a memory.
    carry: tokens of a segment that the next segment reads as they are; None for the rule's default.
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
        """The layers or heads that have a memory, as InfiniModel takes them."""
        return {int(layer): heads for layer, heads in self.memory_heads.items()} or self.memory_layers


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank layers beside the frozen ones.

    start: an adapter directory to go on from, instead of from zero; with `over`, the directory of an answer adapter.
    over: an adapter that stays as it is, a directory or a name in the package; its answer adapter is trained.
    """

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
    """The training loop.

    batch: samples a step.
    rows: the largest number of samples that are computed together.
    bptt: segments that gradients flow back through; 0 for all.
    token_weight: a sample with loss on n tokens has the weight n ** token_weight. With 0, all samples weigh the same;
        with 1, all tokens do.
    cuts: where document segments end: "sentences" as in ingestion, "fixed" for equal lengths (rows without padding).
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
    """A part of the curriculum: `steps` steps with documents of `segments` segments."""

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
    """Continue a passage that was read some segments ago.

    words: the largest number of words to continue with.
    raw: share of samples that are asked as plain text instead of a chat.
    """

    books: str = setting()
    words: int = setting(40, least=4)
    raw: float = setting(0.5, least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class NeedlesConfig(ObjectiveConfig):
    """Facts hidden in book prose, and a question about one of them.

    most: the largest number of facts a document.
    raw: share of samples that are asked as plain text instead of a chat.
    """

    books: str = setting()
    most: int = setting(4, least=1, most=MOST_FACTS)
    raw: float = setting(0.5, least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class QaConfig(ObjectiveConfig):
    """Questions about documents.

    reading: share of passage samples, which have passages in the prompt instead of the memory.
    passages: the largest number of passages in a prompt.
    beside: share of the passage samples that see the memory as well.
    turns: the largest number of questions in one conversation, about the same passages or about what was read.
    absent: share of the passage samples whose passages do not hold the answer; the right answer then says so.
    elsewhere: share of the absent samples with passages of another document. In the question's own document, passages
        that are not marked as right may hold an answer all the same.
    window: share of the passage samples with one sentence in place of passages, as `ask` shows it. The sentence holds
        the answer, except in absent samples.
    alone: share of these sentences that stand without their neighbours.
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
    """Facts told in order, scattered over book prose, and a question about them.

    tasks: the tasks of the data that are used; empty for all.
    """

    data: str = setting()
    books: str = setting()
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SummaryConfig(ObjectiveConfig):
    """Summaries from passages in the prompt, without memory. passages: the largest number of passages in a prompt."""

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
    """A whole run. directory: the directory of the configuration file, which its paths are relative to."""

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
        """Index of the stage that a step (from 0) belongs to."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index
            step -= stage.steps
        return len(self.stages) - 1

    def path(self, name: str) -> Path:
        """A path of the file, made absolute."""
        return self.directory / Path(name).expanduser()

    def start(self) -> Path | None:
        """The adapter directory to go on from; None without one. Its name in older releases is accepted too."""
        if self.lora.start is None:
            return None
        place = self.path(self.lora.start)
        if place.name == OLD_ANSWER and not place.is_dir() and (found := place.with_name(ANSWER)).is_dir():
            warn_renamed(f"the directory '{OLD_ANSWER}' of an adapter", ANSWER)
            return found
        return place

    def over(self) -> str | None:
        """The adapter that an answer adapter is trained for: its directory, or its name in the package."""
        return None if self.lora.over is None else _adapter_at(self.path(self.lora.over), self.lora.over)

    def data_files(self) -> list[str]:
        """The data files as the configuration names them, each once, in order."""
        names: dict[str, None] = {}
        for objective in self.objectives:
            for key in ("books", "data"):
                value = getattr(objective, key, ())
                names.update(dict.fromkeys([value] if isinstance(value, str) else value))
        return list(names)

    def to_dict(self) -> dict[str, Any]:
        """All settings except `directory` and `output`, as nested plain values; stages and objectives by index."""
        plain = asdict(self)
        for key in ("directory", "output"):
            del plain[key]
        for key in ("stages", "objectives"):
            plain[key] = {str(index): item for index, item in enumerate(plain[key])}
        return typing.cast("dict[str, Any]", _lists(plain))


@dataclass(frozen=True)
class TermHeadConfig:
    """The term head and its training.

    adapter: the adapter that the term head is for, a directory or a name in the package.
    data: data files with questions.
    layer: the layer whose attention input the term head looks at.
    hidden: units of each half of the term head.
    tokens: the largest number of tokens that are read of each data file.
    questions: the largest number of questions a document.
    batch: questions a step.
    """

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
class TermHeadRun:
    """A run that trains a term head. model: the base model; None for the default model."""

    output: str
    term_weights: TermHeadConfig
    directory: Path
    seed: int = 0
    model: str | None = None

    def path(self, name: str) -> Path:
        """A path of the file, made absolute."""
        return self.directory / Path(name).expanduser()

    def adapter_path(self) -> str:
        """The adapter's directory, or its name in the package."""
        return _adapter_at(self.path(self.term_weights.adapter), self.term_weights.adapter)


def _adapter_at(directory: Path, name: str) -> str:
    return str(directory) if directory.is_dir() else name


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
