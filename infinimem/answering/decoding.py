"""How an answer is decoded: its limits, sampling, stop texts. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InvalidSetting

# Small models fall into loops under greedy decoding. Good answers repeat facts and figures too, but no run of this many
# tokens.
NO_REPEAT = 8

# An answer of a few words, or of whole sentences.
SHORT, FULL = STYLES = ("short", "full")
# The most tokens of an answer in each style.
NEW_TOKENS = {SHORT: 64, FULL: 192}


def new_tokens(asked: int | None, style: str) -> int:
    """The most tokens of an answer: as asked for, or for None as the style needs. Raises InvalidSetting."""
    return NEW_TOKENS[checked_style(style)] if asked is None else asked


def checked_style(style: str) -> str:
    """The style of an answer. Raises InvalidSetting for a style that does not exist."""
    if style not in STYLES:
        raise InvalidSetting(f"style cannot be {style!r}; choose one of {', '.join(STYLES)}")
    return style


def check_limits(max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Raise InvalidSetting where nothing can be decoded with these limits."""
    if not temperature >= 0 or not 0 < top_p <= 1:
        raise InvalidSetting(f"temperature ({temperature}) must be >= 0 and top_p ({top_p}) in (0, 1]")
    if max_new_tokens < 1:
        raise InvalidSetting(f"max_new_tokens is {max_new_tokens}; an answer has at least one token")


@dataclass(frozen=True)
class Decoding:
    """How an answer is decoded.

    max_new_tokens: most tokens of the answer.
    temperature: 0 is greedy; above 0, sampling from the most probable tokens whose probabilities add up to `top_p`.
    top_p: see temperature.
    seed: makes sampling repeatable.
    stop: texts before which the answer ends.
    timeout: seconds after which an unfinished answer is given up (AnswerTimeout); None for no limit.
    no_repeat: no run of this many tokens comes twice in the answer; 0 allows any.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    timeout: float | None = None
    no_repeat: int = NO_REPEAT

    def __post_init__(self) -> None:
        check_limits(self.max_new_tokens, self.temperature, self.top_p)
