"""Conversations: how messages become prompts, where replies end, and what they report."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from conftest import TEXT, MakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from infinimem import DocumentMemory, InfiniModel
from infinimem.answering import rows
from infinimem.answering.conversation import complete, reply
from infinimem.answering.decoding import Decoding
from infinimem.answering.plan import SinglePrompt
from infinimem.answering.prompts import conversation
from infinimem.answering.rows import generate
from infinimem.answering.stream import Continuation, PieceDecoder, whole_sentences
from infinimem.errors import AnswerTimeout, EmptyQuestion, InvalidSetting, LangChainMissing


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


@pytest.fixture
def model(make_model: MakeModel) -> InfiniModel:
    return make_model(segment_length=64)


@pytest.fixture
def memory(model: InfiniModel) -> DocumentMemory:
    return DocumentMemory.from_text(TEXT * 6, name="light.txt", model=model)


def test_messages_of_one_role_in_a_row_become_one_and_systems_come_first() -> None:
    found = conversation([system("A"), user("B"), user("C"), assistant("D"), system("E"), assistant("F"), user("G?")])
    assert found.system == "A\n\nE" and found.question == "G?"
    assert found.earlier == [user("B\n\nC"), assistant("D\n\nF")]


def test_the_messages_given_are_not_changed() -> None:
    given_ = [user("A"), user("B")]
    conversation(given_)
    assert given_ == [user("A"), user("B")]


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], InvalidSetting),
        ([system("A")], InvalidSetting),
        ([user("A"), assistant("B")], InvalidSetting),
        ([{"role": "tool", "content": "A"}], InvalidSetting),
        ([{"role": "user"}], InvalidSetting),
        ([{"role": "user", "content": ["A"]}], InvalidSetting),
        ([user(" ?! ")], EmptyQuestion),
    ],
)
def test_conversations_without_a_question_are_refused(messages: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        conversation(messages)


def shown(memory: DocumentMemory, messages: list[dict[str, str]], **settings: Any) -> str:
    said = memory.reply(messages, decoding=Decoding(2), **settings)
    said.close()
    return str(memory.model.tokenizer.decode(said.plan.prompts[0]))


def test_a_reply_sees_system_words_history_and_passages_of_the_last_message(memory: DocumentMemory) -> None:
    chat = [system("Speak plainly."), user("Hello there"), assistant("Yes"), user("How many ships passed on Monday?")]
    recalled, remembered = shown(memory, chat, k=2), shown(memory, chat, answer_from="memory")
    for prompt in (recalled, remembered):
        places = [prompt.index(words) for words in ("Speak plainly.", "Hello there", "Yes", "How many ships")]
        assert places == sorted(places)
    assert "(page 1) The lighthouse keeper" in recalled and "Excerpts" not in remembered
    assert len(memory.reply(chat, k=2).passages) == 2 and memory.reply(chat, answer_from="memory").passages == []


def test_one_question_is_replied_to_as_it_is_answered(memory: DocumentMemory) -> None:
    for mode in ("passages", "memory"):
        answer = memory.ask("What passed on Monday?", answer_from=mode, max_new_tokens=12)
        said = memory.reply([user("What passed on Monday?")], answer_from=mode, decoding=Decoding(12))
        assert said.text() == answer.text and said.passages == answer.passages and said.mode == mode


def test_a_reply_counts_its_tokens_and_says_why_it_ended(
    memory: DocumentMemory, model: InfiniModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = memory.reply([user("What passed on Monday?")], decoding=Decoding(5))
    assert said.finish is None and said.tokens == 0
    text = said.text()
    assert said.tokens == 5 and said.finish == "length" and text
    first = next(iter(generate(model, [said.plan.prompts[0]], max_new_tokens=1)))[0]
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", first)
    ended = memory.reply([user("What passed on Monday?")], decoding=Decoding(5))
    assert ended.text() == "" and ended.tokens == 0 and ended.finish == "stop"


class Spelled:
    """Stands where the decoding of a model would, and gives one character a token."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.closed = False

    def generate(self, *_: Any, **__: Any) -> Any:
        try:
            for character in self.text:
                yield [character]
        finally:
            self.closed = True


@settings(deadline=None)
@given(st.text("ab", max_size=20), st.lists(st.text("ab", max_size=4), max_size=3))
def test_a_reply_ends_before_the_first_stop_text_and_no_piece_of_it_is_shown(text: str, stops: list[str]) -> None:
    spelled: Any = Spelled(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PieceDecoder, "__init__", lambda *_: None)
        patch.setattr(PieceDecoder, "step", lambda _, token: token)
        patch.setattr(rows, "generate", spelled.generate)
        continuation = Continuation(spelled, SinglePrompt([1]), None, Decoding(99, stop=stops))
        said = list(continuation)
    # Not a token is computed beyond the one that completes the first stop text to be complete.
    complete = min((text.index(stop) + len(stop) for stop in stops if stop and stop in text), default=len(text))
    begins = [text[:complete].index(stop) for stop in stops if stop and stop in text[:complete]]
    assert "".join(said) == text[: min(begins, default=complete)] and "" not in said
    assert continuation.finish == ("stop" if begins else "length") and spelled.closed
    assert continuation.tokens == complete


@pytest.mark.parametrize("size", [1, 3])
def test_no_so_many_tokens_in_a_row_come_twice_in_an_answer(model: InfiniModel, size: int) -> None:
    prompts = [[5, 6, 7] * 4, [9, 10] * 3]

    def answers(no_repeat: int) -> list[list[int | None]]:
        steps = generate(model, prompts, max_new_tokens=40, stop_at_eos=False, no_repeat=no_repeat)
        return [list(row) for row in zip(*steps, strict=True)]

    def windows(row: list[int | None]) -> list[tuple[int | None, ...]]:
        return [tuple(row[i : i + size]) for i in range(len(row) - size + 1)]

    free, fresh = answers(0), answers(size)
    for row, other in zip(free, fresh, strict=True):
        assert len(set(windows(row))) < len(windows(row)) and len(set(windows(other))) == len(windows(other))
        # Up to the first repetition nothing changes.
        repeats = next(i for i, window in enumerate(windows(row)) if window in windows(row)[:i]) + size - 1
        assert row[:repeats] == other[:repeats] and row[repeats] != other[repeats]


def test_an_answer_may_repeat_its_prompt(model: InfiniModel) -> None:
    (said,) = zip(*generate(model, [[5, 6, 7]], max_new_tokens=20, stop_at_eos=False, no_repeat=4), strict=True)
    prompt = [5, 6, 7, *(token for token in said if token is not None)]
    copied, free = (list(generate(model, [prompt], max_new_tokens=20, stop_at_eos=False, no_repeat=n)) for n in (1, 0))
    assert copied[0] == free[0] and free[0][0] in prompt


def test_an_answer_that_takes_too_long_is_given_up(memory: DocumentMemory) -> None:
    late, soon = Decoding(6, timeout=1e-9), Decoding(6, timeout=600)
    asked = [user("What passed on Monday?")]
    for call in (lambda: memory.reply(asked, decoding=late).text(), lambda: memory.complete(["Fog"], late)):
        with pytest.raises(AnswerTimeout, match="1e-09 s; allow more time"):
            call()
    assert memory.reply(asked, decoding=soon).text() == memory.reply(asked, decoding=Decoding(6)).text()


def test_without_a_memory_the_model_replies_by_itself(model: InfiniModel) -> None:
    chat = [system("Be brief."), user("Hello there")]
    said = reply(model, chat, decoding=Decoding(6))
    prompt = str(model.tokenizer.decode(said.plan.prompts[0]))
    assert said.mode is None and said.passages == [] and "Be brief." in prompt and "document" not in prompt
    assert said.text() == reply(model, chat, decoding=Decoding(6)).text()


def test_closing_a_reply_stops_the_model(memory: DocumentMemory) -> None:
    said = memory.reply([user("What passed on Monday?")], decoding=Decoding(50))
    next(iter(said))
    said.close()
    assert list(said) == [] and said.tokens < 50


def test_texts_go_on_as_they_do_alone_with_the_memory_in_view(memory: DocumentMemory, model: InfiniModel) -> None:
    texts = ["There were seven", "The fog came in from the north and stayed", "On"]
    together = memory.complete(texts, Decoding(6))
    assert together == [memory.complete([text], Decoding(6))[0] for text in texts]
    assert together != complete(model, texts, decoding=Decoding(6))
    stop = together[1][2:4]
    assert memory.complete(texts, Decoding(6, stop=[stop])) == [text.split(stop)[0] for text in together]


def test_texts_that_cannot_go_on_are_refused(model: InfiniModel) -> None:
    with pytest.raises(InvalidSetting, match="no tokens"):
        complete(model, [""])
    with pytest.raises(InvalidSetting, match="shorten"):
        complete(model, ["word " * 3], decoding=Decoding(model.context_length))


def test_a_reply_can_be_awaited(memory: DocumentMemory) -> None:
    async def said() -> str:
        return "".join([piece async for piece in memory.reply([user("What passed?")], decoding=Decoding(6))])

    assert asyncio.run(said()).strip() == memory.reply([user("What passed?")], decoding=Decoding(6)).text()


def test_without_langchain_the_way_to_it_is_told(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_infinimem", None)
    for make in (memory.as_retriever, memory.as_chat_model):
        with pytest.raises(LangChainMissing, match="pip install langchain-infinimem"):
            make()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One. Two! Thr", "One. Two!"),
        ('She said "No." Then', 'She said "No."'),
        ("All of it.", "All of it."),
        ("It costs 3.50 and", "It costs 3.50 and"),
        ("no end", "no end"),
        ("First.\n\nSecond? third", "First.\n\nSecond?"),
        ("", ""),
    ],
)
def test_an_unfinished_last_sentence_is_left_out_where_others_are(text: str, kept: str) -> None:
    assert whole_sentences(text) == kept
