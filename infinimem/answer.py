"""Answers: what `ask` and `summarize` return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .passages import Passage


@dataclass(frozen=True)
class Answer:
    """A text from the model, and the passages it was shown.

    mode: "recall" (from passages) or "memory" (from the compressive memory alone).
    """

    text: str
    mode: str
    passages: list[Passage] = field(default_factory=list)
    question: str | None = None

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: answer, mode, passages."""
        return {"answer": self.text, "mode": self.mode, "passages": [p.to_dict() for p in self.passages]}
