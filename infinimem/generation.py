"""Prompts in, text out: decoding token by token, with characters that span several tokens kept whole."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import AnswerTimeout, InvalidSetting

if TYPE_CHECKING:
    from .attention import InfiniCache
    from .model import InfiniModel
    from .views import View

# Small models fall into loops under greedy decoding. Facts and figures repeat themselves too, but not for so long.
NO_REPEAT = 8
SENTENCES = re.compile(r".*[.!?][\"'”’)\]]*(?=\s|$)", re.DOTALL)


def check_limits(max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Raises InvalidSetting where nothing can be decoded so."""
    if not temperature >= 0 or not 0 < top_p <= 1:
        raise InvalidSetting(f"temperature ({temperature}) must be >= 0 and top_p ({top_p}) in (0, 1]")
    if max_new_tokens < 1:
        raise InvalidSetting(f"max_new_tokens is {max_new_tokens}; an answer has at least one token")


@dataclass(frozen=True)
class Decoding:
    """How an answer is decoded.

    max_new_tokens: most tokens of it. temperature: 0 is greedy; above, sampling from the most probable tokens that
    have `top_p` together, repeatable with `seed`. stop: texts before which it ends. timeout: seconds after which an
    unfinished answer is given up. no_repeat: no so many tokens in a row come twice.
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

    def steps(
        self,
        model: InfiniModel,
        prompts: Sequence[Sequence[int]],
        cache: InfiniCache | None,
    ) -> Iterator[list[int | None]]:
        """The tokens of the answers to several prompts, step by step; see `InfiniModel.generate`.

        Raises AnswerTimeout.
        """
        in_time = self._clock()
        for step in model.generate(
            prompts,
            cache,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            no_repeat=self.no_repeat,
        ):
            in_time()
            yield step

    def steps_of_views(
        self,
        model: InfiniModel,
        questions: Sequence[Sequence[View]],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[list[int | None]]:
        """The same of answers from several views each, greedily: which one it is shows when all are complete.

        stopped: whether nobody waits for them any more; then there are no steps. Raises AnswerTimeout.
        """
        from .views import answers

        in_time = self._clock()

        def tick() -> None:
            if stopped():
                raise _Stopped
            in_time()

        limits = {"max_new_tokens": self.max_new_tokens, "no_repeat": self.no_repeat}
        try:
            said = list(answers(model, questions, **limits, stop=self.stop, tick=tick))
        except _Stopped:
            return
        for place in range(self.max_new_tokens):
            # None once an answer has ended.
            yield [one.tokens[place] if place < len(one.tokens) else None for one in said]
            if all(one.ended and place >= len(one.tokens) for one in said):
                return

    def _clock(self) -> Callable[[], None]:
        """What raises AnswerTimeout once the time is up."""
        started = time.monotonic()

        def in_time() -> None:
            if self.timeout is not None and time.monotonic() - started > self.timeout:
                raise AnswerTimeout(
                    f"the answer was not complete after {self.timeout} s; allow more time, or fewer tokens"
                )

        return in_time


class _Stopped(Exception):
    """Nobody waits for the answer any more."""


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


class Writer:
    """One answer as its tokens come: pieces that can be shown, and where it ends.

    tokens: how many were written. finish: "stop" where the model or a stop text ended the answer, else None.
    """

    def __init__(self, decoder: PieceDecoder, stop: Sequence[str]) -> None:
        self._decoder = decoder
        self._stops = [text for text in stop if text]
        self._held = ""  # the beginning of a stop text, perhaps
        self.tokens = 0
        self.finish: str | None = None

    def step(self, token: int | None) -> str:
        """The text that can be shown after this token (None: the model ended); may be empty."""
        if self.finish is not None:
            return ""
        if token is None:
            self.finish = "stop"
            return ""
        self.tokens += 1
        self._held += self._decoder.step(token)
        ends = [place for text in self._stops if (place := self._held.find(text)) >= 0]
        if ends:
            self.finish, self._held = "stop", self._held[: min(ends)]
            return ""
        begun = max(
            (n for text in self._stops for n in range(1, len(text)) if self._held.endswith(text[:n])), default=0
        )
        piece = self._held[: len(self._held) - begun]
        self._held = self._held[len(piece) :]
        return piece

    def rest(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held


class Continuation:
    """The answer to one prompt, piece by piece as the model writes it; closing it stops the model.

    views: where the question has several (see `views`), in place of the prompt.
    finish: "stop" where the model or a stop text ended the answer, "length" where the limit did, None before that.
    """

    def __init__(
        self,
        model: InfiniModel,
        prompt: Sequence[int],
        cache: InfiniCache | None,
        decoding: Decoding,
        views: Sequence[View] = (),
    ) -> None:
        self.finish: str | None = None
        self._stopped = False
        self._writer = Writer(PieceDecoder(model), decoding.stop)
        if views:
            steps = decoding.steps_of_views(model, [views], lambda: self._stopped)
        else:
            steps = decoding.steps(model, [prompt], cache)
        self._pieces = self._run(steps)

    @property
    def tokens(self) -> int:
        """How many were computed so far."""
        return self._writer.tokens

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def stop(self) -> None:
        """Let the model stop before its next token, while another thread may be waiting for a piece."""
        self._stopped = True

    def close(self) -> None:
        """Stop the model."""
        self.stop()
        self._pieces.close()

    def _run(self, steps: Iterator[list[int | None]]) -> Generator[str, None, None]:
        for (token,) in steps:
            if piece := self._writer.step(token):
                yield piece
            if self._writer.finish:
                break
        self.finish = self._writer.finish or "length"
        if rest := self._writer.rest():
            yield rest


class Known(Continuation):
    """An answer that is known without the model."""

    def __init__(self, text: str) -> None:
        self.finish, self._stopped = None, False
        self._text = text
        self._pieces = self._tell()

    @property
    def tokens(self) -> int:
        """None were computed."""
        return 0

    def _tell(self) -> Generator[str, None, None]:
        self.finish = "stop"
        yield self._text


def whole_sentences(text: str) -> str:
    """The text without a last sentence that is not complete, where others are."""
    ended = SENTENCES.match(text)
    return ended[0] if ended else text


def continue_texts(
    model: InfiniModel, prompts: Sequence[Sequence[int]], cache: InfiniCache | None, decoding: Decoding
) -> list[str]:
    """Answers to several prompts, decoded as one batch."""
    return _texts(model, len(prompts), decoding.steps(model, prompts, cache), decoding.stop)


def texts_from_views(model: InfiniModel, questions: Sequence[Sequence[View]], decoding: Decoding) -> list[str]:
    """Answers to several questions from several views each."""
    return _texts(model, len(questions), decoding.steps_of_views(model, questions), decoding.stop)


def _texts(model: InfiniModel, count: int, steps: Iterator[list[int | None]], stop: Sequence[str]) -> list[str]:
    writers = [Writer(PieceDecoder(model), stop) for _ in range(count)]
    texts = [""] * count
    for step in steps:
        for row, (writer, token) in enumerate(zip(writers, step, strict=True)):
            texts[row] += writer.step(token)
        if all(writer.finish for writer in writers):
            break
    return [text + writer.rest() for text, writer in zip(texts, writers, strict=True)]
