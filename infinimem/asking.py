"""From a question to a prompt: the messages that fit the model's context, and streams without blocking.

- a prompt is built from as many of the best passages as fit beside the answer
- `pieces_async` runs a blocking stream in threads, so that an event loop goes on
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .errors import EmptyQuestion, InvalidSetting
from .passages import Passage
from .reading import as_unicode

if TYPE_CHECKING:
    from .model import InfiniModel
    from .prompts import Message
    from .views import View


class Prompt(NamedTuple):
    """An encoded prompt, and the passages that were found for it; without passages the model reads its memory.

    known: the answer, where it is known without the model; then there are no tokens, and the passages are the nearest.
    views: where the model has a reader, what it is shown in place of all passages: the best one, and the sentences
    that fit best, of any passage. Small models read little better than much.
    """

    tokens: list[int]
    passages: list[Passage]
    known: str | None = None
    views: Sequence[View] = ()

    @property
    def mode(self) -> str:
        """What is answered from: "recall" with passages, "memory" without."""
        return "recall" if self.passages else "memory"


def checked_question(text: str) -> str:
    """The question without white space around it. Raises EmptyQuestion where it has no words."""
    if not isinstance(text, str):
        raise InvalidSetting(f"the question is of type {type(text).__name__}; give a text")
    text = as_unicode(text).strip()
    if not any(character.isalnum() for character in text):
        raise EmptyQuestion("the question has no words in it; ask something about the document")
    return text


def fit_prompt(
    model: InfiniModel,
    messages: Callable[[Sequence[Passage]], list[Message]],
    passages: list[Passage],
    max_new_tokens: int,
) -> Prompt:
    """The prompt with as many of the passages, from the front, as fit beside the answer.

    Raises InvalidSetting where not even the question fits.
    """
    from .prompts import encode_chat

    limit = model.context_length - max_new_tokens
    if limit < 1:
        raise InvalidSetting(
            f"max_new_tokens is {max_new_tokens}, but the model's context has {model.context_length} tokens"
        )
    while True:
        tokens = encode_chat(model, messages(passages))
        if len(tokens) <= limit:
            return Prompt(tokens, passages)
        if not passages:
            raise InvalidSetting(f"the question has {len(tokens)} tokens, but the model takes {limit}; shorten it")
        passages = passages[:-1]


async def pieces_async(start: Callable[[], Iterator[str]]) -> AsyncGenerator[str, None]:
    """The pieces of a stream that `start` begins; leaving the loop stops the model."""
    # mypy sees a plain iterator; what `start` returns is a generator, and closing it stops the computation.
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
