"""Prompts in, text out: decoding token by token, with characters that span several tokens kept whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention import InfiniCache
    from .model import InfiniModel

# Small models fall into loops under greedy decoding.
REPETITION_PENALTY = 1.3


class PieceDecoder:
    """Turns tokens into pieces of text; a piece appears when its last byte has."""

    def __init__(self, model: InfiniModel) -> None:
        self._tokenizer = model.tokenizer
        self._tokens: list[int] = []
        self._last = 0  # where the last piece begins
        self._shown = 0  # tokens whose text is out

    def step(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        self._tokens.append(token)
        # Decoding goes on from the last piece, not from the start, so a step costs the same however long the answer.
        context = self._decode(self._tokens[self._last : self._shown])
        text = self._decode(self._tokens[self._last :])
        if text.endswith("\N{REPLACEMENT CHARACTER}") or len(text) <= len(context):
            return ""
        self._last, self._shown = self._shown, len(self._tokens)
        return text[len(context) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def continue_text(
    model: InfiniModel,
    prompt: Sequence[int],
    cache: InfiniCache | None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[str]:
    """Pieces of the answer to one prompt, as they come."""
    decoder = PieceDecoder(model)
    steps = model.generate(
        [prompt],
        cache,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        repetition_penalty=REPETITION_PENALTY,
    )
    for (token,) in steps:
        if token is not None and (piece := decoder.step(token)):
            yield piece


def continue_texts(
    model: InfiniModel, prompts: Sequence[Sequence[int]], cache: InfiniCache | None, *, max_new_tokens: int
) -> list[str]:
    """Answers to several prompts, decoded greedily as one batch."""
    decoders = [PieceDecoder(model) for _ in prompts]
    texts = [""] * len(prompts)
    for step in model.generate(prompts, cache, max_new_tokens=max_new_tokens, repetition_penalty=REPETITION_PENALTY):
        for row, token in enumerate(step):
            if token is not None:
                texts[row] += decoders[row].step(token)
    return texts
