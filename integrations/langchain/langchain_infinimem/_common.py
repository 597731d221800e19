"""What the components share: opening memories and models, settings of decoding, documents of passages."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator

from infinimem import Decoding, DocumentMemory, InfiniModel, MemorySettings, Passage, shared_model


def renamed_mode(values: Any, name: str, renamed: Mapping[str, str]) -> Any:
    """Settings in which `mode`, the name of a field in older releases, has its name and values of today."""
    if not isinstance(values, dict) or "mode" not in values:
        return values
    values = dict(values)
    old = values.pop("mode")
    values[name] = renamed.get(old, old)
    told = f"mode={old!r} is now called {name}={values[name]!r}; the old name goes with the next release"
    warnings.warn(told, DeprecationWarning, stacklevel=3)
    return values


def opened(memory: Any) -> DocumentMemory:
    """A memory, or the one in the file of that path."""
    if isinstance(memory, DocumentMemory):
        return memory
    if isinstance(memory, (str, Path)):
        return DocumentMemory.load(memory)
    raise ValueError(f"a memory is a DocumentMemory or the path of a memory file, not a {type(memory).__name__}")


def document(passage: Passage, fingerprint: str) -> Document:
    """A passage as a LangChain document; `memory` in its metadata is the fingerprint of where it comes from."""
    metadata = passage.to_dict()
    text = str(metadata.pop("text"))
    place = f"{fingerprint[:16]}:{passage.source}:{passage.page}:{passage.start}"
    return Document(page_content=text, id=place, metadata={**metadata, "memory": fingerprint})


class Settings(BaseModel):
    """What a chat model and an LLM have in common: a model with or without a memory, and how it decodes."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    memory: Any = None
    """A `DocumentMemory`, the path of a memory file, or None for the model by itself."""
    model: Any = None
    """Without a memory: a directory, a hub id, an `InfiniModel`, or None for the embedded default. A memory names
    its own model."""
    adapter: str | None = None
    """A directory, "none", or None for what belongs to the model; only without a memory."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    """Makes sampling repeatable."""
    max_tokens: int = Field(default=256, ge=1)
    stop: list[str] | None = None
    """Texts before which an answer ends."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which an unfinished answer is given up with a TimeoutError."""
    max_retries: int = 0
    """Accepted as elsewhere; nothing here fails in a way that trying again would mend."""
    api_key: SecretStr | None = Field(default=None, exclude=True)
    """Accepted as elsewhere, and not used: the model runs on this machine."""

    _loaded: InfiniModel | None = PrivateAttr(default=None)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @field_validator("memory")
    @classmethod
    def _opened(cls, memory: Any) -> Any:
        return None if memory is None else opened(memory)

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _one_model(self) -> Any:
        if self.memory is not None and (self.model is not None or self.adapter is not None):
            raise ValueError("a memory names its own model and adapter; give memory, or model and adapter")
        if isinstance(self.model, InfiniModel) and self.adapter is not None:
            raise ValueError("an InfiniModel has its adapter already; leave it out")
        return self

    @property
    def infini_model(self) -> InfiniModel:
        """The model that answers, loaded on first use and shared within the process."""
        if self.memory is not None:
            found: InfiniModel = self.memory.model
            return found
        if isinstance(self.model, InfiniModel):
            return self.model
        with self._lock:
            if self._loaded is None:
                self._loaded = shared_model(self.model, MemorySettings(adapter=self.adapter))
            return self._loaded

    def decoding(self, stop: list[str] | None, given: Mapping[str, Any]) -> Decoding:
        """Settings of one call, what was `given` to it first. Raises ValueError for unknown ones."""
        own = {name: getattr(self, name) for name in ("temperature", "top_p", "seed", "max_tokens", "timeout")}
        unknown = sorted(set(given) - set(own) - {"stream"})
        if unknown:
            raise ValueError(f"no setting {', '.join(unknown)}; known are {', '.join(own)}")
        # As every setting is checked when a component is made, so is every one of a call.
        checked = Settings(**{**own, **{name: value for name, value in given.items() if name in own}})
        ends = stop if stop is not None else self.stop or []
        return Decoding(
            checked.max_tokens, checked.temperature, checked.top_p, checked.seed, ends, timeout=checked.timeout
        )

    def identifying(self) -> dict[str, Any]:
        """What an answer depends on: in LLM caches, calls that differ in any of it are different calls."""
        model = self.infini_model
        fingerprint = None if self.memory is None else self.memory.info()["fingerprint"]
        identity = hashlib.sha256(json.dumps(model.identity(), sort_keys=True).encode()).hexdigest()
        return {
            "model_name": model.name,
            "model_identity": identity,
            "adapter": model.adapter_hash,
            "answer_adapter": model.answer_adapter_hash,
            "memory": fingerprint,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
        }
