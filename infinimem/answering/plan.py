"""From a question to a plan: the prompts that the model is shown, and the passages that the answer cites.

- a plan is one of three: an answer that is known without the model, a single prompt, or an ensemble
- a model with an answer adapter is shown the parts of the document one by one, in an ensemble, because small models
  read a little text better than a lot of text
- a prompt has as many of the best passages as fit into the model's context beside the answer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InvalidSetting
from ..search.search import Search
from ..text.passages import Passage
from ..text.words import checked_question
from .decoding import SHORT, Decoding, checked_style
from .followup import searched
from .prompts import (
    NOT_SAID,
    CandidatePrompt,
    Conversation,
    History,
    Message,
    checked_system,
    encode_chat,
    instructions_for,
    memory_messages,
    passage_messages,
    summary_messages,
    told,
)

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel

ANSWER_FROM = ("passages", "memory")


class KnownAnswer(NamedTuple):
    """An answer that is known without the model."""

    text: str


class SinglePrompt(NamedTuple):
    """Token ids of one prompt."""

    tokens: list[int]


class Ensemble(NamedTuple):
    """Candidate prompts, one at least, the best part of the document first."""

    prompts: list[CandidatePrompt]


class Plan(NamedTuple):
    """How a question is answered.

    content: the known answer, or what the model is shown.
    passages: the passages that were found, best first; a prompt without passages asks the compressive memory.
    """

    content: KnownAnswer | SinglePrompt | Ensemble
    passages: list[Passage]

    @property
    def answer_from(self) -> str:
        """One of ANSWER_FROM."""
        return "passages" if self.passages or isinstance(self.content, KnownAnswer) else "memory"

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of all prompts of the plan; no prompts where the answer is known."""
        if isinstance(self.content, KnownAnswer):
            return []
        return (
            [self.content.tokens]
            if isinstance(self.content, SinglePrompt)
            else [p.tokens for p in self.content.prompts]
        )


def plan_from_memory(model: InfiniModel, asked: Conversation, decoding: Decoding) -> Plan:
    """A prompt with the question alone. Raises InvalidSetting where it does not fit."""
    instructions = instructions_for(model).memory[asked.style]

    def messages(_: Sequence[Passage]) -> list[Message]:
        return memory_messages(asked.question, asked.earlier, asked.system, instructions)

    return fit_prompt(model, messages, [], decoding.max_new_tokens)


def plan_from_search(
    model: InfiniModel,
    search: Search[Any],
    ranked: Sequence[tuple[int, float]],
    asked: Conversation,
    decoding: Decoding,
) -> Plan:
    """Prompts with the passages found, or the known answer where they do not say enough.

    ranked: what `search.rank` found for the question (`followup.searched`).
    Raises InvalidSetting where not even the question fits into the model's context.
    """
    # Within a conversation, the words that say what the question is about may stand in earlier messages.
    if not ranked or (not asked.earlier and not search.has_answer(asked.question)):
        return Plan(KnownAnswer(NOT_SAID), search.scored(ranked))
    return plan_from_passages(model, search, ranked, asked, decoding)


def plan_from_passages(
    model: InfiniModel,
    search: Search[Any],
    ranked: Sequence[tuple[int, float]],
    asked: Conversation,
    decoding: Decoding,
) -> Plan:
    """Prompts with passages.

    ranked: pairs (index of the passage, score), best first.
    Raises InvalidSetting where not even the question fits.
    """
    found = search.scored(ranked)
    instructions = instructions_for(model).passages[asked.style]

    def messages(passages: Sequence[Passage]) -> list[Message]:
        return passage_messages(asked.question, passages, asked.earlier, asked.system, instructions)

    # An ensemble chooses the best answer, but a sampled answer is one of many possible answers, and none is the best.
    apart = model.answering_model is not model and decoding.temperature == 0
    plan = fit_prompt(model, messages, found[:1] if apart else found, decoding.max_new_tokens)
    if not apart:
        return plan
    room = model.context_length - decoding.max_new_tokens
    encoded = [
        CandidatePrompt(encode_chat(model, messages([shown])), weight)
        for shown, weight in search.candidates(searched(asked), ranked)
    ]
    return Plan(Ensemble([prompt for prompt in encoded if len(prompt.tokens) <= room]), found)


def plan_summary(
    model: InfiniModel, passages: list[Passage], focus: str | None, system: str, decoding: Decoding
) -> Plan:
    """A prompt for a summary of passages in reading order; without passages, of the compressive memory."""
    instructions = instructions_for(model).summary
    return fit_prompt(
        model, lambda shown: summary_messages(shown, focus, system, instructions), passages, decoding.max_new_tokens
    )


def asked_after(history: History, question: str, system: str | None = None, style: str = SHORT) -> Conversation:
    """A question after earlier (question, answer) pairs. Raises EmptyQuestion, InvalidSetting."""
    return Conversation(checked_question(question), told(history), checked_system(system), checked_style(style))


def fit_prompt(
    model: InfiniModel,
    messages: Callable[[Sequence[Passage]], list[Message]],
    passages: list[Passage],
    max_new_tokens: int,
) -> Plan:
    """A single prompt with as many of the passages, from the first one on, as fit beside the answer.

    messages: makes the chat messages from the passages that fit.
    Raises InvalidSetting where not even the question fits, or of several passages none.
    """
    given, limit = len(passages), model.context_length - max_new_tokens
    if limit < 1:
        raise InvalidSetting(
            f"max_new_tokens is {max_new_tokens}, but the model's context has {model.context_length} tokens"
        )
    while True:
        tokens = encode_chat(model, messages(passages))
        if len(tokens) <= limit:
            if given and not passages:
                raise InvalidSetting(
                    f"no passage fits into the model's context of {model.context_length} tokens beside the question "
                    f"and an answer of {max_new_tokens} tokens; lower max_new_tokens, or shorten the question"
                )
            return Plan(SinglePrompt(tokens), passages)
        if not passages:
            raise InvalidSetting(f"the question has {len(tokens)} tokens, but the model takes {limit}; shorten it")
        passages = passages[:-1]
