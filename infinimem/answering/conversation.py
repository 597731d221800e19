"""Conversations: messages in, a reply out, piece by piece.

- a message is {"role": "system", "user" or "assistant", "content": text}
- conversations that chat templates of small models refuse are put right (`prompts.conversation`): neighbouring messages
  of one role become one message, and the text of all system messages opens the conversation
- with a memory, the last message is answered from the passages that are found for it, or from the compressive memory
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidSetting
from .decoding import Decoding
from .plan import Plan, fit_prompt
from .prompts import conversation, plain_messages
from .stream import Continuation, continue_texts, pieces_async

if TYPE_CHECKING:
    from ..attention.cache import InfiniCache
    from ..model.infini_model import InfiniModel
    from ..text.passages import Passage

REPLY = Decoding(max_new_tokens=256)


@dataclass(frozen=True)
class Reply:
    """A reply that is written while it is iterated, which works once; closing it stops the model.

    plan: the prompts that the reply comes from.
    mode: what the reply is answered from: "passages" or "memory"; None without a memory.
    continuation: gives the pieces of the reply.
    """

    plan: Plan
    mode: str | None
    continuation: Continuation

    def __iter__(self) -> Iterator[str]:
        return iter(self.continuation)

    def __aiter__(self) -> AsyncGenerator[str, None]:
        """The pieces of the reply, without blocking the event loop; leaving the `async for` stops the model."""
        return pieces_async(lambda: self.continuation)

    @property
    def passages(self) -> list[Passage]:
        """The passages that were found for the reply, best first."""
        return self.plan.passages

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the conversation with its passages, in all candidate prompts together."""
        return sum(map(len, self.plan.prompts))

    @property
    def tokens(self) -> int:
        """Number of tokens of the reply that were computed so far."""
        return self.continuation.tokens

    @property
    def finish(self) -> str | None:
        """ "stop" or "length" once the reply is complete, None before that."""
        return self.continuation.finish

    def text(self) -> str:
        """The whole reply, or the rest of it after the pieces that were already taken."""
        return "".join(self).strip()

    def close(self) -> None:
        """Stop the model."""
        self.continuation.close()


def reply(model: InfiniModel, messages: Sequence[Mapping[str, str]], decoding: Decoding = REPLY) -> Reply:
    """Reply to a conversation without any document; `DocumentMemory.reply` replies with a memory.

    messages: {"role": "system", "user" or "assistant", "content": text} each; the last message is the user's.
    Raises InvalidSetting, and EmptyQuestion where the last message has no words.
    """
    asked = conversation(messages)
    plan = fit_prompt(
        model, lambda _: plain_messages(asked.question, asked.earlier, asked.system), [], decoding.max_new_tokens
    )
    return Reply(plan, None, Continuation(model, plan.content, None, decoding))


def complete(
    model: InfiniModel, texts: Sequence[str], cache: InfiniCache | None = None, decoding: Decoding = REPLY
) -> list[str]:
    """The model's continuations of plain texts, without a chat, decoded as one batch.

    texts: control tokens in them are ordinary text.
    cache: the memory that the model sees (`DocumentMemory.complete` gives its own); None for an empty memory.
    Raises InvalidSetting where a text has no tokens or does not fit.
    """
    prompts = [[*model.prefix, *model.encoder.encode(text)] for text in texts]
    longest = max(map(len, prompts), default=0)
    if longest + decoding.max_new_tokens > model.context_length:
        raise InvalidSetting(
            f"a text of {longest} tokens and {decoding.max_new_tokens} new ones do not fit into the model's context "
            f"of {model.context_length}; shorten it, or lower max_new_tokens"
        )
    return continue_texts(model, prompts, cache, decoding)
