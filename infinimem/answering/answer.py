"""Answers: what `ask` and `summarize` return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..text.passages import Passage
from .prompts import NOT_SAID


@dataclass(frozen=True)
class Answer:
    """A text from the model, and the passages that were found for it.

    text: the answer, or the summary.
    mode: where the text comes from: "passages", or "memory" (the compressive memory alone).
    passages: the passages that were found, best first.
    question: the question, or what the summary should be about; None for a summary of everything.
    forced: how the model differs from the model that read the document, where it was loaded by force.
    """

    text: str
    mode: str
    passages: list[Passage] = field(default_factory=list)
    question: str | None = None
    forced: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """Whether the text is an answer, rather than the sentence that says that there is none."""
        return is_answer(self.text)

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: answer, found, mode, passages, forced."""
        return {
            "answer": self.text,
            "found": self.found,
            "mode": self.mode,
            "passages": [p.to_dict() for p in self.passages],
            "forced": list(self.forced),
        }


def is_answer(text: str) -> bool:
    """False where the text says, in the words of the prompt, that the document does not say."""
    return not text.strip().casefold().startswith(NOT_SAID.rstrip(".").casefold())
