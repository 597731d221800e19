"""Prompts in, text out: decoding token by token, with characters that span several tokens kept whole."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
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


class Continuation:
    """The answer to one prompt, piece by piece as the model writes it; closing it stops the model.

    stop: texts before which the answer ends. tokens: how many were computed so far. finish: "stop" where the model or
    a stop text ended the answer, "length" where the limit did, None before that.
    """

    def __init__(
        self,
        model: InfiniModel,
        prompt: Sequence[int],
        cache: InfiniCache | None,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> None:
        self.tokens = 0
        self.finish: str | None = None
        steps = model.generate(
            [prompt],
            cache,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            repetition_penalty=REPETITION_PENALTY,
        )
        self._pieces = self._run(steps, PieceDecoder(model), [text for text in stop if text])

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop the model."""
        self._pieces.close()

    def _run(
        self, steps: Iterator[list[int | None]], decoder: PieceDecoder, stops: Sequence[str]
    ) -> Generator[str, None, None]:
        held = ""  # the beginning of a stop text, perhaps
        for (token,) in steps:
            if token is None:
                self.finish = "stop"
                break
            self.tokens += 1
            held += decoder.step(token)
            ends = [place for text in stops if (place := held.find(text)) >= 0]
            if ends:
                self.finish, held = "stop", held[: min(ends)]
                break
            begun = max((n for text in stops for n in range(1, len(text)) if held.endswith(text[:n])), default=0)
            piece, held = held[: len(held) - begun], held[len(held) - begun :]
            if piece:
                yield piece
        self.finish = self.finish or "length"
        if held:
            yield held


def continue_texts(
    model: InfiniModel,
    prompts: Sequence[Sequence[int]],
    cache: InfiniCache | None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
) -> list[str]:
    """Answers to several prompts, decoded as one batch. stop: texts before which each of them ends."""
    stops = [text for text in stop if text]
    decoders = [PieceDecoder(model) for _ in prompts]
    texts = [""] * len(prompts)
    ended = [False] * len(prompts)
    for step in model.generate(
        prompts,
        cache,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        repetition_penalty=REPETITION_PENALTY,
    ):
        for row, token in enumerate(step):
            if token is None or ended[row]:
                ended[row] = True
                continue
            texts[row] += decoders[row].step(token)
            places = [place for text in stops if (place := texts[row].find(text)) >= 0]
            if places:
                ended[row], texts[row] = True, texts[row][: min(places)]
        if all(ended):
            break
    return texts
