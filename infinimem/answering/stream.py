"""From plans to text, piece by piece; characters that span several tokens are kept whole."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import AnswerTimeout
from .decoding import Decoding
from .plan import Ensemble, KnownAnswer, Plan, SinglePrompt
from .prompts import CandidatePrompt

if TYPE_CHECKING:
    from ..attention.cache import InfiniCache
    from ..model.infini_model import InfiniModel

    # A function that gives the compressive memory, with the unfinished segment in it.
    GiveMemory = Callable[[], InfiniCache | None]

SENTENCES = re.compile(r".*[.!?][\"'”’)\]]*(?=\s|$)", re.DOTALL)


class PieceDecoder:
    """Turns tokens into pieces of text; a piece appears once its last byte is there."""

    def __init__(self, model: InfiniModel) -> None:
        self._tokenizer = model.tokenizer
        self._tokens: list[int] = []
        self._last = 0  # where the last piece begins
        self._shown = 0  # tokens whose text is out

    def step(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        self._tokens.append(token)
        # Decoding goes on from the last piece, not from the start, so a step costs the same however long the answer is.
        context = self._decode(self._tokens[self._last : self._shown])
        text = self._decode(self._tokens[self._last :])
        if text.endswith("\N{REPLACEMENT CHARACTER}") or len(text) <= len(context):
            return ""
        self._last, self._shown = self._shown, len(self._tokens)
        return text[len(context) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Writer:
    """Makes pieces that can be shown from the tokens of one answer, and finds its end.

    decoder: turns the tokens into text.
    stop: texts before which the answer ends.

    `tokens`: number of tokens so far. `finish`: "stop" where the model or a stop text ended the answer, else None.
    """

    def __init__(self, decoder: PieceDecoder, stop: Sequence[str]) -> None:
        self._decoder = decoder
        self._stops = [text for text in stop if text]
        self._held = ""  # text that may be the beginning of a stop text
        self.tokens = 0
        self.finish: str | None = None

    def step(self, token: int | None) -> str:
        """The text that can be shown after this token (None: the model ended the answer); may be empty."""
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
        """The text that was held back, once no more tokens come."""
        held, self._held = self._held, ""
        return held


class Continuation:
    """The answer to one plan, piece by piece as the model writes it; closing it stops the model.

    `finish`: "stop" where the model or a stop text ended the answer, "length" where the limit did, None until then.
    """

    def __init__(
        self,
        model: InfiniModel,
        content: KnownAnswer | SinglePrompt | Ensemble,
        cache: InfiniCache | None,
        decoding: Decoding,
    ) -> None:
        """cache: the memory that a single prompt sees; None for an empty memory."""
        self.finish: str | None = None
        self._stopped = False
        self._writer = Writer(PieceDecoder(model), decoding.stop)
        if isinstance(content, KnownAnswer):
            self._pieces = self._tell(content.text)
        elif isinstance(content, Ensemble):
            self._pieces = self._run(ensemble_steps(model, [content.prompts], decoding, lambda: self._stopped))
        else:
            self._pieces = self._run(single_steps(model, [content.tokens], cache, decoding))

    @property
    def tokens(self) -> int:
        """Number of tokens that were computed so far."""
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

    def _tell(self, text: str) -> Generator[str, None, None]:
        self.finish = "stop"
        yield text


def stream_answer(model: InfiniModel, plan: Plan, memory: GiveMemory, decoding: Decoding) -> Continuation:
    """The answer to one plan.

    memory: gives the memory for a plan without passages.
    """
    return Continuation(*_shown_to(model, plan, memory), decoding)


def answer_texts(model: InfiniModel, plans: Sequence[Plan], memory: GiveMemory, decoding: Decoding) -> list[str]:
    """The answers to several plans; plans of one kind are decoded as one batch.

    memory: as for `stream_answer`.
    """
    texts = [plan.content.text if isinstance(plan.content, KnownAnswer) else "" for plan in plans]
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for row, plan in enumerate(plans):
        if not isinstance(plan.content, KnownAnswer):
            kinds.setdefault((bool(plan.passages), isinstance(plan.content, Ensemble)), []).append(row)
    for rows in kinds.values():
        chosen, _, cache = _shown_to(model, plans[rows[0]], memory)
        contents = [plans[row].content for row in rows]
        ensembles = [content.prompts for content in contents if isinstance(content, Ensemble)]
        prompts = [content.tokens for content in contents if isinstance(content, SinglePrompt)]
        steps = (
            ensemble_steps(chosen, ensembles, decoding) if ensembles else single_steps(chosen, prompts, cache, decoding)
        )
        for row, text in zip(rows, _texts(chosen, len(rows), steps, decoding.stop), strict=True):
            texts[row] = text
    return [text.strip() for text in texts]


def _shown_to(
    model: InfiniModel, plan: Plan, memory: GiveMemory
) -> tuple[InfiniModel, KnownAnswer | SinglePrompt | Ensemble, InfiniCache | None]:
    """The model that answers, the plan's content, and the memory that the model sees."""
    if isinstance(plan.content, KnownAnswer):
        return model, plan.content, None
    # Beside passages, an untrained memory of a whole book draws the model away from them (docs/log/answers.md).
    return (model.answering_model, plan.content, None) if plan.passages else (model, plan.content, memory())


def continue_texts(
    model: InfiniModel, prompts: Sequence[Sequence[int]], cache: InfiniCache | None, decoding: Decoding
) -> list[str]:
    """Continuations of several prompts, decoded as one batch."""
    return _texts(model, len(prompts), single_steps(model, prompts, cache, decoding), decoding.stop)


def whole_sentences(text: str) -> str:
    """The text without an unfinished last sentence; all of the text where no sentence in it is complete."""
    ended = SENTENCES.match(text)
    return ended[0] if ended else text


def _texts(model: InfiniModel, count: int, steps: Iterator[list[int | None]], stop: Sequence[str]) -> list[str]:
    writers = [Writer(PieceDecoder(model), stop) for _ in range(count)]
    texts = [""] * count
    for step in steps:
        for row, (writer, token) in enumerate(zip(writers, step, strict=True)):
            texts[row] += writer.step(token)
        if all(writer.finish for writer in writers):
            break
    return [text + writer.rest() for text, writer in zip(texts, writers, strict=True)]


def single_steps(
    model: InfiniModel, prompts: Sequence[Sequence[int]], cache: InfiniCache | None, decoding: Decoding
) -> Iterator[list[int | None]]:
    """The tokens of the answers to several prompts, step by step; see `rows.generate`. Raises AnswerTimeout."""
    # Imported here, because rows.py loads torch.
    from .rows import generate

    in_time = _clock(decoding)
    for step in generate(
        model,
        prompts,
        cache,
        max_new_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        seed=decoding.seed,
        no_repeat=decoding.no_repeat,
    ):
        in_time()
        yield step


def ensemble_steps(
    model: InfiniModel,
    ensembles: Sequence[Sequence[CandidatePrompt]],
    decoding: Decoding,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[list[int | None]]:
    """Like `single_steps`, with one answer an ensemble, decoded greedily.

    stopped: whether nobody waits for the answers any more; there are no steps then.

    The first step comes when all answers are complete. Raises AnswerTimeout.
    """
    from .ensemble import answers

    in_time = _clock(decoding)

    def tick() -> None:
        if stopped():
            raise _Stopped
        in_time()

    limits = {"max_new_tokens": decoding.max_new_tokens, "no_repeat": decoding.no_repeat}
    try:
        said = list(answers(model, ensembles, **limits, stop=decoding.stop, tick=tick))
    except _Stopped:
        return
    for place in range(decoding.max_new_tokens):
        # An answer that has ended gives None.
        yield [one.tokens[place] if place < len(one.tokens) else None for one in said]
        if all(one.ended and place >= len(one.tokens) for one in said):
            return


def _clock(decoding: Decoding) -> Callable[[], None]:
    """A function that raises AnswerTimeout once the time is up."""
    started = time.monotonic()

    def in_time() -> None:
        if decoding.timeout is not None and time.monotonic() - started > decoding.timeout:
            raise AnswerTimeout(
                f"the answer was not complete after {decoding.timeout} s; allow more time, or fewer tokens"
            )

    return in_time


class _Stopped(Exception):
    """Nobody waits for the answer any more."""


async def pieces_async(start: Callable[[], Iterator[str]]) -> AsyncGenerator[str, None]:
    """The pieces of a stream that `start` begins; leaving the loop stops the model."""
    # The type says only Iterator; generators and `Continuation` also have `close`, which stops the computation.
    stream = await asyncio.to_thread(start)
    step: asyncio.Future[str | None] | None = None
    close: Callable[[], None] = getattr(stream, "close", lambda: None)
    stop: Callable[[], None] = getattr(stream, "stop", lambda: None)
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, stream, None))
            # Cancelling the caller must not close the stream under a step that is still computing.
            piece = await asyncio.shield(step)
            if piece is None:
                return
            yield piece
    finally:
        if step is not None and not step.done():
            stop()
            step.add_done_callback(lambda _: close())
        else:
            close()
