"""Many threads, several memories, one process: every answer is the one that a single thread gives."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors
import torch
from conftest import TEXT
from hostile import tiny_model

from infinimem import DocumentMemory
from infinimem.errors import FileChanged
from infinimem.model import infini_model
from infinimem.model.infini_model import InfiniModel
from infinimem.search.search import Search

THREADS = 32
MEMORIES = 8
WAYS = ("passages", "memory", "retrieve", "summarize")
MEGABYTE = 1 << 20
NAMES = ("Heron", "Otter", "Gannet", "Plover", "Dunlin", "Curlew", "Merlin", "Petrel")


class Asked(NamedTuple):
    """What is asked of which memory, in which way."""

    memory: int
    way: str
    question: str


@pytest.fixture(scope="module", autouse=True)
def one_core_each() -> Iterator[None]:
    """Many threads, each with threads of its own, would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> InfiniModel:
    return tiny_model(tokenizer, segment_length=128, num_hidden_layers=2)


def document(number: int) -> str:
    """No two alike."""
    name, count = NAMES[number], 5 + number // 2
    return "\n\n".join(f"Chapter {i}. The {name} had {i + number} sails and a bell. {TEXT}" for i in range(count))


@pytest.fixture(scope="module")
def memories(model: InfiniModel) -> list[DocumentMemory]:
    return [DocumentMemory.from_text(document(n), name=f"{NAMES[n]}.txt", model=model) for n in range(MEMORIES)]


def questions(count: int) -> list[Asked]:
    """Mixed so that neighbours ask different memories in different ways."""
    words = ("sails", "bell", "ships", "keeper", "fog", "breakfast", "zeppelin")
    return [
        Asked(i % MEMORIES, WAYS[i // MEMORIES % len(WAYS)], f"What of the {words[i % 7]} of {NAMES[i * 3 % 8]}?")
        for i in range(count)
    ]


def answer(memory: DocumentMemory, asked: Asked) -> Any:
    """All that an answer is, comparable."""
    if asked.way == "retrieve":
        return [passage.to_dict() for passage in memory.retrieve(asked.question, 3)]
    if asked.way == "summarize":
        return memory.summarize(asked.question, max_new_tokens=2, k=2).to_dict()
    return memory.ask(asked.question, answer_from=asked.way, k=2, max_new_tokens=4).to_dict()


def together(work: Sequence[Callable[[], Any]], threads: int = THREADS) -> list[Any]:
    """What each gives, so many of them at once; all threads begin at the same moment."""
    ready = threading.Barrier(min(threads, len(work)))

    def begin() -> None:
        ready.wait(60)

    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        return [future.result() for future in [pool.submit(one) for one in work]]


@pytest.fixture
def busy() -> Iterator[None]:
    """Threads change after every few instructions, so that what is not safe shows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def expected_of(memories: Sequence[DocumentMemory], asked: Sequence[Asked]) -> dict[Asked, Any]:
    """The answers of a single thread."""
    expected = {one: answer(memories[one.memory], one) for one in set(asked)}
    told = {str(value) for value in expected.values()}
    assert len(told) > len(expected) * 0.6, "answers that are all alike would show nothing"
    return expected


def test_answers_of_thirty_two_threads_are_those_of_one(memories: list[DocumentMemory], busy: None) -> None:
    asked = questions(200)
    expected = expected_of(memories, asked)
    assert len({one.way for one in expected}) == len(WAYS) and len({one.memory for one in expected}) == MEMORIES
    got = together([lambda one=one: answer(memories[one.memory], one) for one in asked])
    wrong = [one for one, found in zip(asked, got, strict=True) if found != expected[one]]
    assert not wrong, f"{len(wrong)} of {len(asked)} answers differ, as for {wrong[0]}"


def test_streams_that_are_read_by_turns_do_not_mix(memories: list[DocumentMemory]) -> None:
    asked = [Asked(n, "memory", f"What of the {NAMES[n]}?") for n in range(MEMORIES)]
    expected = [memories[one.memory].ask(one.question, answer_from="memory", max_new_tokens=8).text for one in asked]
    streams = [memories[one.memory].stream(one.question, answer_from="memory", max_new_tokens=8) for one in asked]
    said = [""] * len(streams)
    running = dict(enumerate(streams))
    while running:
        for number, stream in list(running.items()):
            piece = next(stream, None)
            if piece is None:
                del running[number]
            else:
                said[number] += piece
    assert [text.strip() for text in said] == expected


def test_a_search_goes_on_with_what_it_was_made_of_while_its_memory_grows(model: InfiniModel) -> None:
    question = "What of the sails of Heron?"
    memory, same = (DocumentMemory.from_text(document(0), name="a", model=model) for _ in range(2))
    expected = Search([same]).rank(question, 4)
    search = Search([memory])
    memory.append_text(f" The Heron lost its sails. {TEXT * 4}", name="a")
    assert not search.is_current and search.rank(question, 4) == expected
    assert memory.retrieve(question) != same.retrieve(question)


def test_asking_other_memories_while_one_is_appended_to(
    memories: list[DocumentMemory], model: InfiniModel, busy: None
) -> None:
    growing = DocumentMemory.from_text(document(0), name="growing", model=model)
    alone = DocumentMemory.from_text(document(0), name="growing", model=model)
    additions = [f" Addition {i} tells of the Heron and its {i} sails. {TEXT}" for i in range(6)]
    versions = []
    look = Asked(0, "retrieve", "What of the sails of Heron?")
    for addition in ["", *additions]:
        if addition:
            alone.append_text(addition, name="growing")
        versions.append((answer(alone, look), alone.ask(look.question, answer_from="memory", max_new_tokens=4).text))
    assert len({str(found) for found, _ in versions}) > 3, "appending must change what is found"
    asked = [one for one in questions(96) if one.memory]
    expected = expected_of(memories, asked)

    def append() -> None:
        for addition in additions:
            growing.append_text(addition, name="growing")

    def ask_growing() -> tuple[Any, str]:
        return answer(growing, look), growing.ask(look.question, answer_from="memory", max_new_tokens=4).text

    work: list[Callable[[], Any]] = [append, *(lambda one=one: answer(memories[one.memory], one) for one in asked)]
    work[1::6] = [ask_growing] * len(work[1::6])
    kept = [None if one is ask_growing else one for one in work]
    got = together(work, threads=16)
    places = [asked[i - 1] if i and kept[i] is not None else None for i in range(len(work))]
    for place, found in zip(places[1:], got[1:], strict=True):
        if place is not None:
            assert found == expected[place]
        else:
            # One version or another, whole; the two questions may meet different ones.
            assert found[0] in [found_then for found_then, _ in versions]
            assert found[1] in [said for _, said in versions]
    assert answer(growing, look) == versions[-1][0]
    assert growing.info()["fingerprint"] == alone.info()["fingerprint"]


def test_one_file_loaded_and_asked_by_thirty_two_threads_at_once(
    memories: list[DocumentMemory], model: InfiniModel, tmp_path: Path, busy: None
) -> None:
    memories[3].save(tmp_path / "memory.safetensors")
    asked = [Asked(3, WAYS[i % len(WAYS)], f"What of the {NAMES[i % MEMORIES]}?") for i in range(THREADS)]
    expected = expected_of(memories, asked)

    def load(one: Asked) -> tuple[str, Any]:
        memory = DocumentMemory.load(tmp_path / "memory.safetensors", model=model)
        return memory.info()["fingerprint"], answer(memory, one)

    got = together([lambda one=one: load(one) for one in asked])
    assert got == [(memories[3].info()["fingerprint"], expected[one]) for one in asked]


def test_a_model_that_thirty_two_threads_need_is_loaded_once(
    tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DocumentMemory.from_text(document(1), name="b", model=tiny_directory, segment_length=64).save(tmp_path / "memory")
    gc.collect()
    loaded: list[str] = []
    original = InfiniModel.load.__func__  # type: ignore[attr-defined]

    def counting(cls: type[InfiniModel], name: Any, *settings: Any, **more: Any) -> InfiniModel:
        loaded.append(str(name))
        return original(cls, name, *settings, **more)  # type: ignore[no-any-return]

    monkeypatch.setattr(infini_model.InfiniModel, "load", classmethod(counting))
    opened = [DocumentMemory.load(tmp_path / "memory") for _ in range(THREADS)]
    question = "What of the sails of Otter?"
    got = together([lambda memory=memory: memory.ask(question, max_new_tokens=4).to_dict() for memory in opened])
    assert got == [got[0]] * THREADS and got[0]["passages"]
    assert loaded == [str(tiny_directory)] and len({id(memory.model) for memory in opened}) == 1


@pytest.mark.parametrize("opening", [1, 2])
def test_a_file_that_is_replaced_while_it_is_read_is_read_as_one_version(
    memories: list[DocumentMemory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opening: int
) -> None:
    path, opened = tmp_path / "memory.safetensors", 0
    original = safetensors.safe_open
    memories[0].save(path)

    def replacing(*arguments: Any, **settings: Any) -> Any:
        nonlocal opened
        opened += 1
        if opened == opening:
            memories[1].save(path)
        return original(*arguments, **settings)

    monkeypatch.setattr(safetensors, "safe_open", replacing)
    found = DocumentMemory.load(path).info()["fingerprint"]
    assert opened and found in [memory.info()["fingerprint"] for memory in memories[:2]]


def test_many_threads_save_one_memory_and_the_file_is_always_whole(
    memories: list[DocumentMemory], tmp_path: Path, busy: None
) -> None:
    path = tmp_path / "memory.safetensors"
    for memory in memories[:2]:
        memory.save(path)
    wanted = {memory.info()["fingerprint"] for memory in memories[:2]}

    def save(number: int) -> str | None:
        if number % 2:
            return str(DocumentMemory.load(path).info()["fingerprint"])
        # The other one may have saved since.
        with contextlib.suppress(FileChanged):
            memories[number // 2 % 2].save(path)
        return None

    got = Counter(together([lambda number=number: save(number) for number in range(64)], threads=16))
    assert got[None] == 32 and set(got) - {None} <= wanted
    assert os.listdir(tmp_path) == ["memory.safetensors"]


def resident() -> int:
    """Bytes of this process in memory, after what is free was given back."""
    gc.collect()
    infini_model.give_back_memory()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_two_thousand_questions_of_thirty_two_threads_leave_nothing_behind(
    memories: list[DocumentMemory], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = questions(2000)
    expected = expected_of(memories, asked)
    sizes = []
    # The same threads throughout: each has arenas and buffers of its own, which it makes once.
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(asked), 200):
            part = asked[start : start + 200]
            got = list(pool.map(lambda one: answer(memories[one.memory], one), part))
            wrong = [one for one, found in zip(part, got, strict=True) if found != expected[one]]
            assert not wrong, f"{len(wrong)} of {len(part)} answers differ, as for {wrong[0]}"
            del got
            sizes.append(resident())
    with capsys.disabled():
        print("\nresident MB after every 200 questions:", " ".join(f"{size / MEGABYTE:.1f}" for size in sizes))
    # Of ten measures the first three are warm-up. A leak of 10 KB a question would be 14 MB by the end.
    settled, end = sorted(sizes[3:6])[1], sorted(sizes[7:])[1]
    assert end - settled < 8 * MEGABYTE
