"""What the components share: opening memories and models, decoding settings, passages as documents."""

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
    """Replace the field `mode` of older releases by its present name and value.

    values: the settings that a component was given.
    name: the present name of the field.
    renamed: values with another name in older releases, from the old name to the present name.
    """
    if not isinstance(values, dict) or "mode" not in values:
        return values
    values = dict(values)
    old = values.pop("mode")
    values[name] = renamed.get(old, old)
    told = f"mode={old!r} is now called {name}={values[name]!r}; the next release drops the old name"
    warnings.warn(told, DeprecationWarning, stacklevel=3)
    return values


def opened(memory: Any) -> DocumentMemory:
    """The memory itself, or the memory in the file at that path."""
    if isinstance(memory, DocumentMemory):
        return memory
    if isinstance(memory, (str, Path)):
        return DocumentMemory.load(memory)
    raise ValueError(f"a memory is a DocumentMemory or the path of a memory file, not a {type(memory).__name__}")


def about(source: Mapping[str, str]) -> dict[str, str]:
    """What a document says about itself, as metadata. `title` is the name of the section, so its own title differs."""
    return {"document_title" if name == "title" else name: value for name, value in source.items()}


class Documents:
    """Makes passages of a memory LangChain documents."""

    def __init__(self, memory: DocumentMemory) -> None:
        info = memory.info()
        self.fingerprint: str = info["fingerprint"]
        self._about = {source["name"]: about(source["about"]) for source in info["sources"]}

    def of(self, passage: Passage) -> Document:
        """The document of a passage; `memory` in its metadata is the fingerprint of the memory."""
        metadata = passage.to_dict()
        text = str(metadata.pop("text"))
        place = f"{self.fingerprint[:16]}:{passage.source}:{passage.page}:{passage.start}"
        return Document(page_content=text, id=place, metadata={**metadata, **self.shared(passage.source)})

    def shared(self, source: str) -> dict[str, str]:
        """The metadata that all documents of a source have."""
        return {**self._about.get(source, {}), "memory": self.fingerprint}


class Settings(BaseModel):
    """What a chat model and an LLM have in common: a model with or without a memory, and how it decodes."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    memory: Any = None
    """A `DocumentMemory`, the path of a memory file, or None for the model by itself."""
    model: Any = None
    """Without a memory: a directory, a hub id, an `InfiniModel`, or None for the default model. A memory names
    its own model."""
    adapter: str | None = None
    """Without a memory: a directory, "none", or None for the adapter that belongs to the model."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    """Makes sampling repeatable."""
    max_tokens: int = Field(default=256, ge=1)
    stop: list[str] | None = None
    """Texts that end an answer; they are not part of it."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which an unfinished answer is given up with a TimeoutError."""
    max_retries: int = 0
    """Accepted as in other LangChain models, and not used: another try would fail in the same way."""
    api_key: SecretStr | None = Field(default=None, exclude=True)
    """Accepted as in other LangChain models, and not used: the model runs on this machine."""

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

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text by the model's own tokenizer; LangChain would ask the hub for another model's."""
        own = getattr(self, "custom_get_token_ids", None)
        ids: list[int] = self.infini_model.encoder.encode(text) if own is None else own(text)
        return ids

    def decoding(self, stop: list[str] | None, given: Mapping[str, Any]) -> Decoding:
        """The decoding settings of one call.

        stop: stop texts of the call; None for those of the component.
        given: settings of the call, which take the place of the component's settings.

        Raises ValueError for an unknown setting.
        """
        own = {name: getattr(self, name) for name in ("temperature", "top_p", "seed", "max_tokens", "timeout")}
        unknown = sorted(set(given) - set(own) - {"stream"})
        if unknown:
            raise ValueError(f"no setting {', '.join(unknown)}; known are {', '.join(own)}")
        # The settings of a call are checked as the settings of a new component are.
        checked = Settings(**{**own, **{name: value for name, value in given.items() if name in own}})
        ends = stop if stop is not None else self.stop or []
        return Decoding(
            checked.max_tokens, checked.temperature, checked.top_p, checked.seed, ends, timeout=checked.timeout
        )

    def identifying(self) -> dict[str, Any]:
        """Everything that an answer depends on. LLM caches keep calls apart that differ in any of these values."""
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
