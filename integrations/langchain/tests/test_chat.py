"""The chat model: what it answers from, what it reports, caches, threads, and what it refuses."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from conftest import INK, QUESTION
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.runnables import RunnableParallel
from langchain_infinimem import ChatInfinimem

from infinimem import DocumentMemory

MESSAGES: dict[str, Any] = {
    "an image": HumanMessage([{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "x"}}]),
    "a tool's answer": ToolMessage("3", tool_call_id="1"),
}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The last message of every conversation that is really replied to."""
    asked: list[str] = []
    original = DocumentMemory.reply

    def listening(self: DocumentMemory, messages: Any, **settings: Any) -> Any:
        asked.append(messages[-1]["content"])
        return original(self, messages, **settings)

    monkeypatch.setattr(DocumentMemory, "reply", listening)
    return asked


@pytest.mark.parametrize("mode", ["passages", "memory"])
def test_it_says_what_the_memory_says_and_from_where(memory: DocumentMemory, mode: Any) -> None:
    said = ChatInfinimem(memory=memory, answer_from=mode, k=2, max_tokens=12).invoke(QUESTION)
    answer = memory.ask(QUESTION, answer_from=mode, k=2, max_new_tokens=12)
    assert str(said.content).strip() == answer.text
    metadata = said.response_metadata
    assert metadata["passages"] == [passage.to_dict() for passage in answer.passages]
    assert metadata["mode"] == mode and metadata["model_name"] == memory.model.name
    assert metadata["finish_reason"] in ("stop", "length")


def test_the_stream_is_the_answer_with_its_metadata_at_the_end(memory: DocumentMemory) -> None:
    chat = ChatInfinimem(memory=memory, max_tokens=12)
    whole = chat.invoke(QUESTION)
    chunks = list(chat.stream(QUESTION))
    added = sum(chunks[1:], chunks[0])
    assert len(chunks) > 3 and all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert (added.content, added.usage_metadata) == (whole.content, whole.usage_metadata)
    assert added.response_metadata == whole.response_metadata


def test_history_and_system_words_reach_the_model(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    reader = memory.model.answering_model
    original = reader.model.forward

    def listening(*arguments: Any, **settings: Any) -> Any:
        read.extend(settings["input_ids"][0].tolist())
        return original(*arguments, **settings)

    monkeypatch.setattr(reader.model, "forward", listening)
    words = ["Answer like a sailor.", "Who was the captain?", "Odile Marchetti.", "And the bell?"]
    told = [SystemMessage(words[0]), HumanMessage(words[1]), AIMessage(words[2]), HumanMessage(words[3])]
    ChatInfinimem(memory=memory, max_tokens=1).invoke(told)
    # Views share the beginning of their prompts; the last words are in each of them.
    text = str(reader.tokenizer.decode(read))
    places = [text.index(word) for word in words]
    assert places == sorted(places)


def test_the_name_of_older_releases_is_accepted(memory: DocumentMemory) -> None:
    with pytest.warns(DeprecationWarning, match="mode='recall' is now called answer_from='passages'"):
        old = ChatInfinimem(memory=memory, mode="recall")
    assert old.answer_from == "passages"


def test_settings_of_a_call_come_before_those_of_the_model(memory: DocumentMemory) -> None:
    chat = ChatInfinimem(memory=memory, max_tokens=12, stop=["zzz"])
    assert chat.invoke(QUESTION, max_tokens=3).usage_metadata["output_tokens"] == 3
    assert len(chat.invoke(QUESTION, k=1).response_metadata["passages"]) == 1
    assert chat.bind(answer_from="memory").invoke(QUESTION).response_metadata["passages"] == []
    whole = str(chat.invoke(QUESTION).content)
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    assert chat.invoke(QUESTION, stop=[middle]).content == whole[: whole.index(middle)]
    assert (
        ChatInfinimem(memory=memory, max_tokens=12, stop=middle).invoke(QUESTION).content
        == whole[: whole.index(middle)]
    )


def test_sampling_is_repeatable_with_a_seed(memory: DocumentMemory) -> None:
    chats = [ChatInfinimem(memory=memory, max_tokens=16, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    one, same, other = (chat.invoke(QUESTION).content for chat in chats)
    assert one == same != other


def test_memories_never_share_cached_answers_and_equal_ones_do(
    memory: DocumentMemory, other_memory: DocumentMemory, computed: list[str]
) -> None:
    cache = InMemoryCache()
    chats = [ChatInfinimem(memory=m, max_tokens=8, cache=cache) for m in (memory, other_memory)]
    mine, theirs = (chat.invoke(QUESTION).content for chat in chats)
    assert len(computed) == 2 and mine != theirs
    again = ChatInfinimem(memory=memory, max_tokens=8, cache=cache)
    assert again.invoke(QUESTION).content == mine and len(computed) == 2
    for changed in (
        {"max_tokens": 7},
        {"k": 1},
        {"answer_from": "memory"},
        {"temperature": 0.5},
        {"seed": 1},
        {"top_p": 0.5},
    ):
        ChatInfinimem(**{"memory": memory, "max_tokens": 8, "cache": cache, **changed}).invoke(QUESTION)
    assert len(computed) == 8
    again.invoke(QUESTION, k=2)
    assert len(computed) == 9


def test_a_memory_that_grows_is_another_one_for_the_cache(computed: list[str]) -> None:
    growing = DocumentMemory.from_text("The mill stands by the river.", name="mill.txt")
    chat = ChatInfinimem(memory=growing, max_tokens=4, cache=InMemoryCache())
    chat.invoke("Where is the mill?")
    growing.append_text("The weir was built by monks.", name="weir.txt")
    chat.invoke("Where is the mill?")
    assert len(computed) == 2


async def test_many_at_once_answer_as_they_do_alone(memory: DocumentMemory, other_memory: DocumentMemory) -> None:
    chats = {
        "harbour": ChatInfinimem(memory=memory, max_tokens=6),
        "bakery": ChatInfinimem(memory=other_memory, max_tokens=6),
    }
    questions = [f"What is number {i}?" for i in range(5)]
    alone = {name: [chat.invoke(question).content for question in questions] for name, chat in chats.items()}
    together = RunnableParallel(**chats).batch(questions)
    for name, chat in chats.items():
        assert [answer[name].content for answer in together] == alone[name]
        assert [answer.content for answer in await chat.abatch(questions)] == alone[name]


async def test_a_cancelled_stream_stops_the_model(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of so few passages none is too little, and the answer would not end by itself.
    memory = DocumentMemory.from_text(INK, model=memory.model)
    network = memory.model.answering_model.model
    monkeypatch.setattr(type(memory.model.answering_model), "end_tokens", frozenset())
    original, computed, begun = network.forward, [0], threading.Event()

    def watched(*args: Any, **settings: Any) -> Any:
        computed[0] += 1
        if computed[0] == 6:
            begun.set()
        return original(*args, **settings)

    monkeypatch.setattr(network, "forward", watched)
    chat = ChatInfinimem(memory=memory, max_tokens=500)

    async def pieces() -> None:
        async for _ in chat.astream("Tell me everything about the harbour."):
            pass

    task = asyncio.create_task(pieces())
    assert await asyncio.to_thread(begun.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(2)
    after = computed[0]
    await asyncio.sleep(1)
    assert computed[0] == after < 100


async def test_an_answer_that_takes_too_long_is_given_up(memory: DocumentMemory) -> None:
    chat = ChatInfinimem(memory=memory, timeout=1e-6)
    for call in (lambda: chat.invoke(QUESTION), lambda: list(chat.stream(QUESTION))):
        with pytest.raises(TimeoutError, match="fewer tokens"):
            call()
    with pytest.raises(TimeoutError):
        await chat.ainvoke(QUESTION)
    with pytest.raises(TimeoutError):
        _ = [chunk async for chunk in chat.astream(QUESTION)]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"max_tokens": 0},
        {"k": 0},
        {"answer_from": "magic"},
        {"temprature": 1},
        {"timeout": 0},
    ],
)
def test_impossible_settings_are_refused(memory: DocumentMemory, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ChatInfinimem(memory=memory, **settings)
    with pytest.raises(ValueError):
        ChatInfinimem(memory=memory).invoke(QUESTION, **settings)


@pytest.mark.parametrize("name", list(MESSAGES))
def test_messages_that_are_not_text_are_refused(memory: DocumentMemory, name: str) -> None:
    with pytest.raises(ValueError, match="infinimem"):
        ChatInfinimem(memory=memory).invoke([HumanMessage("Hello"), MESSAGES[name]])


def test_a_memory_brings_its_own_model(memory: DocumentMemory) -> None:
    for more in ({"model": "somewhere"}, {"adapter": "none"}):
        with pytest.raises(ValueError, match="names its own model"):
            ChatInfinimem(memory=memory, **more)
    with pytest.raises(ValueError, match="has its adapter"):
        ChatInfinimem(model=memory.model, adapter="none")
    assert ChatInfinimem(model=memory.model, max_tokens=2).invoke("Hello").response_metadata["mode"] is None


def test_tokens_are_counted_by_the_models_own_tokenizer(memory: DocumentMemory) -> None:
    chat = ChatInfinimem(memory=memory)
    assert chat.get_num_tokens(QUESTION) == len(memory.model.encoder.encode(QUESTION)) > 3
    long = [HumanMessage("word " * 600), AIMessage("word " * 600), HumanMessage("Who?")]
    assert trim_messages(long, max_tokens=100, token_counter=chat, strategy="last") == long[-1:]
    own = ChatInfinimem(memory=memory, custom_get_token_ids=lambda text: [0] * len(text))
    assert own.get_num_tokens("four") == 4
