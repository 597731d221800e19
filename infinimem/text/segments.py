"""Where a segment ends: at the last sentence or line end in its upper half, so that no fact is torn in two.

Text after a segment border sees the text before it only through carried tokens and memory. Cuts depend on the tokens
alone, not on how they arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")
CLOSING = "\"'”’»)]"
# How byte-level and SentencePiece vocabularies spell blanks and line ends.
SPELLINGS = {"Ġ": " ", "▁": " ", "Ċ": "\n", "<0x0A>": "\n"}


class Segmenter:
    """Cuts tokens into segments of at most `length`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        self.length = length
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def end(self, tokens: Sequence[int]) -> int | None:
        """Length of the first segment of `tokens`; None while more tokens are needed to know it."""
        if len(tokens) <= self.length:
            return None
        for end in range(self.length, self.length // 2, -1):
            if self._ends_at(tokens, end):
                return end
        return self.length

    def ends(self, tokens: Sequence[int]) -> list[int]:
        """All places inside `tokens` where a sentence or a line ends."""
        return [end for end in range(1, len(tokens)) if self._ends_at(tokens, end)]

    def _ends_at(self, tokens: Sequence[int], end: int) -> bool:
        before, after = self._text(tokens[end - 1]), self._text(tokens[end])
        return "\n" in before or (before.rstrip(CLOSING).endswith(SENTENCE_ENDS) and after[:1].isspace())

    def split(self, tokens: Iterable[int]) -> Iterator[list[int]]:
        """All segments of `tokens`, the shorter last segment included; only one segment is in memory at a time."""
        rest: list[int] = []
        for token in tokens:
            rest.append(token)
            if (end := self.end(rest)) is not None:
                yield rest[:end]
                del rest[:end]
        if rest:
            yield rest

    def _text(self, token: int) -> str:
        if token not in self._texts:
            text = str(self._tokenizer.convert_ids_to_tokens(token) or "")
            for spelling, plain in SPELLINGS.items():
                text = text.replace(spelling, plain)
            self._texts[token] = text
        return self._texts[token]
