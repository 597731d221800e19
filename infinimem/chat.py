"""Conversations: messages in, a reply out, piece by piece.

- a message is {"role": "system", "user" or "assistant", "content": text}
- what chat templates of small models refuse is put right: messages of one role in a row become one, and the words of
  all system messages open the conversation
- with a memory, the last message is what passages are found for, or what the memory is asked
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .asking import Prompt, checked_question, fit_prompt, pieces_async
from .errors import InvalidSetting
from .generation import Continuation, Decoding, continue_texts

if TYPE_CHECKING:
    from .attention import InfiniCache
    from .model import InfiniModel
    from .passages import Passage
    from .prompts import Message

ROLES = ("system", "user", "assistant")
REPLY = Decoding(max_new_tokens=256)


@dataclass(frozen=True)
class Conversation:
    """The last question, what was said before it, and the words of the system messages."""

    question: str
    earlier: list[Message]
    system: str


@dataclass(frozen=True)
class Reply:
    """A reply that is written while it is iterated, once; closing it stops the model.

    passages: what was found for it. mode: "recall", "memory", or None without a memory.
    """

    prompt: Prompt
    mode: str | None
    continuation: Continuation

    def __iter__(self) -> Iterator[str]:
        return iter(self.continuation)

    def __aiter__(self) -> AsyncGenerator[str, None]:
        """The pieces without blocking the event loop; leaving the loop stops the model."""
        return pieces_async(lambda: self.continuation)

    @property
    def passages(self) -> list[Passage]:
        """What was found for the reply, best first."""
        return self.prompt.passages

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the conversation with its passages, of all its views together."""
        return sum(len(view.tokens) for view in self.prompt.views) or len(self.prompt.tokens)

    @property
    def tokens(self) -> int:
        """Tokens of the reply that were computed so far."""
        return self.continuation.tokens

    @property
    def finish(self) -> str | None:
        """ "stop" or "length" once the reply is complete, None before that."""
        return self.continuation.finish

    def text(self) -> str:
        """The (rest of the) reply as a whole."""
        return "".join(self).strip()

    def close(self) -> None:
        """Stop the model."""
        self.continuation.close()


def conversation(messages: Sequence[Mapping[str, str]]) -> Conversation:
    """Check and order messages. Raises InvalidSetting, and EmptyQuestion where the last message has no words."""
    systems: list[str] = []
    turns: list[Message] = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise InvalidSetting(f"a message has a role ({', '.join(ROLES)}) and a content, which is text")
        if role == "system":
            systems.append(content)
        elif turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{content}"
        else:
            turns.append({"role": role, "content": content})
    if not turns or turns[-1]["role"] != "user":
        raise InvalidSetting("the last message must be the user's, as there is nothing to reply to otherwise")
    *earlier, last = turns
    return Conversation(checked_question(last["content"]), earlier, "\n\n".join(systems))


def reply(model: InfiniModel, messages: Sequence[Mapping[str, str]], decoding: Decoding = REPLY) -> Reply:
    """Reply to a conversation without any document; `DocumentMemory.reply` does it with one."""
    from .prompts import plain_messages

    asked = conversation(messages)
    prompt = fit_prompt(
        model, lambda _: plain_messages(asked.question, asked.earlier, asked.system), [], decoding.max_new_tokens
    )
    return Reply(prompt, None, Continuation(model, prompt.tokens, None, decoding))


def complete(
    model: InfiniModel, texts: Sequence[str], cache: InfiniCache | None = None, decoding: Decoding = REPLY
) -> list[str]:
    """How the model goes on after plain texts, without a chat, decoded as one batch.

    `DocumentMemory.complete` does it with a memory in view. Control tokens in the texts are ordinary text. Raises
    InvalidSetting where a text has no tokens or does not fit.
    """
    prompts = [[*model.prefix, *model.encoder.encode(text)] for text in texts]
    longest = max(map(len, prompts), default=0)
    if longest + decoding.max_new_tokens > model.context_length:
        raise InvalidSetting(
            f"a text of {longest} tokens and {decoding.max_new_tokens} new ones do not fit into the model's context "
            f"of {model.context_length}; shorten it, or lower max_new_tokens"
        )
    return continue_texts(model, prompts, cache, decoding)
