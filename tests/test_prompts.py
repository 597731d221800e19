"""What a model is told: by how it was trained, by the style of the answer, and by the user's own instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import TEXT, MakeModel

from infinimem import DocumentMemory, InfiniModel
from infinimem.answering.decoding import FULL, NEW_TOKENS, SHORT
from infinimem.answering.prompts import NOT_SAID, TRAINED, UNTRAINED, instructions_for
from infinimem.errors import InvalidSetting

QUESTION = "How many ships were there on Monday?"


@pytest.fixture
def memory(make_model: MakeModel) -> DocumentMemory:
    return DocumentMemory.from_text(TEXT * 3, model=make_model(segment_length=32, carry=8))


def told(model: InfiniModel, tokens: list[int]) -> str:
    return str(model.tokenizer.decode(tokens))


def test_a_model_without_an_adapter_is_not_told_to_refuse(memory: DocumentMemory, embedded: InfiniModel) -> None:
    assert instructions_for(memory.model) is UNTRAINED
    assert instructions_for(embedded) is TRAINED
    for style in (SHORT, FULL):
        assert NOT_SAID not in UNTRAINED.passages[style] and NOT_SAID in TRAINED.passages[style]
    (prompt,) = memory.reply([{"role": "user", "content": QUESTION}]).plan.prompts
    assert UNTRAINED.passages[SHORT] in told(memory.model, prompt)


@pytest.mark.parametrize("answer_from", ["passages", "memory"])
def test_the_style_chooses_the_instructions(memory: DocumentMemory, answer_from: str) -> None:
    for style in (SHORT, FULL):
        plan = memory.reply([{"role": "user", "content": QUESTION}], answer_from=answer_from, style=style).plan
        instructions = getattr(UNTRAINED, answer_from)[style]
        assert instructions in told(memory.model, plan.prompts[0])


def test_the_users_instructions_follow_those_of_the_library(
    memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, prompts = "Speak like a harbour pilot.", []
    encode = memory.model.encoder.encode

    def seen(text: str) -> list[int]:
        prompts.append(text)
        return encode(text)

    monkeypatch.setattr(memory.model.encoder, "encode", seen)
    memory.ask(QUESTION, system=own, max_new_tokens=2)
    list(memory.stream(QUESTION, system=own, max_new_tokens=2))
    memory.ask_many([QUESTION], system=own, max_new_tokens=2)
    memory.summarize(system=own, max_new_tokens=80)
    assert prompts.count(f"{UNTRAINED.passages[SHORT]}\n\n{own}") == 3
    assert prompts.count(f"{UNTRAINED.summary}\n\n{own}") == 1


ENTRANCES: dict[str, Callable[[DocumentMemory, dict[str, Any]], Any]] = {
    "ask": lambda memory, given: memory.ask(QUESTION, **given),
    "stream": lambda memory, given: memory.stream(QUESTION, **given),
    "ask_many": lambda memory, given: memory.ask_many([QUESTION], **given),
    "reply": lambda memory, given: memory.reply([{"role": "user", "content": QUESTION}], **given),
    "summarize": lambda memory, given: memory.summarize(**given),
}


@pytest.mark.parametrize("entrance", ["ask", "stream", "ask_many", "reply"])
def test_a_style_that_does_not_exist_is_named(memory: DocumentMemory, entrance: str) -> None:
    with pytest.raises(InvalidSetting, match=r"style cannot be 'long'; choose one of short, full"):
        ENTRANCES[entrance](memory, {"style": "long"})


@pytest.mark.parametrize("entrance", ["ask", "stream", "ask_many", "summarize"])
def test_instructions_that_are_not_text_are_refused(memory: DocumentMemory, entrance: str) -> None:
    with pytest.raises(InvalidSetting, match="give your instructions as one text"):
        ENTRANCES[entrance](memory, {"system": ["be brief"]})


def test_a_full_answer_may_be_longer(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(memory.model), "end_tokens", property(lambda _: frozenset()))
    for style in (SHORT, FULL):
        reply = memory.reply([{"role": "user", "content": QUESTION}], style=style)
        reply.close()
        stream: Any = memory.stream(QUESTION, style=style)
        assert len(list(stream)) > 0 and stream.tokens == NEW_TOKENS[style]
