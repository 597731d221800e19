"""The retriever: documents with their places, one or several memories, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import QUESTION
from langchain_infinimem import InfinimemRetriever

from infinimem import DocumentMemory
from infinimem.errors import EmptyQuestion, InvalidSetting, MemoryFileNotFound, NoPassages


def test_a_document_is_the_passage_with_its_place_and_memory(memory: DocumentMemory) -> None:
    (document,) = InfinimemRetriever(memory=memory, k=1).invoke(QUESTION)
    (passage,) = memory.retrieve(QUESTION, 1)
    expected = {**passage.to_dict(), "memory": memory.info()["fingerprint"]}
    assert document.page_content == expected.pop("text") and document.metadata == expected
    assert document.metadata["source"] == "harbour.txt" and document.metadata["page"] == 1 and document.id


def test_a_saved_memory_gives_the_same_documents_without_a_model(memory: DocumentMemory, tmp_path: Path) -> None:
    memory.save(tmp_path / "m.safetensors")
    saved = InfinimemRetriever(memory=str(tmp_path / "m.safetensors"), rank_by="lexical")
    assert saved.invoke(QUESTION) == InfinimemRetriever(memory=memory, rank_by="lexical").invoke(QUESTION)
    assert saved.memory[0]._ingestion is None
    assert saved.invoke(QUESTION, rank_by="hybrid") == InfinimemRetriever(memory=memory).invoke(QUESTION)
    assert saved.memory[0]._ingestion is not None


def test_the_mode_chooses_the_ranking(memory: DocumentMemory, other_memory: DocumentMemory) -> None:
    both = InfinimemRetriever(memory=[memory, other_memory], k=2)
    found = {mode: both.invoke(QUESTION, rank_by=mode) for mode in ("hybrid", "learned", "lexical")}
    scores = {mode: [document.metadata["score"] for document in documents] for mode, documents in found.items()}
    assert scores["hybrid"] > scores["learned"] != scores["lexical"]
    assert found["hybrid"] == both.invoke(QUESTION) and found["lexical"] != found["hybrid"]
    with pytest.raises(ValueError, match="rank_by"):
        InfinimemRetriever(memory=memory, rank_by="magic")
    with pytest.raises(InvalidSetting, match="magic"):
        both.invoke(QUESTION, rank_by="magic")


def test_the_name_of_older_releases_is_accepted(memory: DocumentMemory) -> None:
    with pytest.warns(DeprecationWarning, match="mode='memory' is now called rank_by='learned'"):
        old = InfinimemRetriever(memory=memory, mode="memory")
    assert old.rank_by == "learned"


def test_several_memories_are_searched_as_one(memory: DocumentMemory, other_memory: DocumentMemory) -> None:
    both = InfinimemRetriever(memory=[memory, other_memory], k=3)
    for question, source in ((QUESTION, "harbour.txt"), ("When is rye bread sold?", "bakery.txt")):
        documents = both.invoke(question)
        assert [document.metadata["source"] for document in documents] == [source] * 3
        scores = [document.metadata["score"] for document in documents]
        assert scores == sorted(scores, reverse=True)
    own = {m.info()["fingerprint"] for m in (memory, other_memory)}
    found = {d.metadata["memory"] for q in (QUESTION, "rye bread") for d in both.invoke(q)}
    assert found == own


def test_a_memory_that_has_grown_is_searched_anew(other_memory: DocumentMemory) -> None:
    growing = DocumentMemory.from_text("The mill stands by the river.", name="mill.txt")
    retriever = InfinimemRetriever(memory=[growing, other_memory], k=1)
    assert retriever.invoke("mill")[0].page_content == "The mill stands by the river."
    growing.append_text(" Its wheel is of oak.", name="mill.txt")
    (document,) = retriever.invoke("oak wheel")
    assert document.page_content == "The mill stands by the river. Its wheel is of oak."
    assert document.metadata["memory"] == growing.info()["fingerprint"]
    growing.append_text("The weir was built by monks.", name="weir.txt")
    assert retriever.invoke("Who built the weir?")[0].metadata["source"] == "weir.txt"


def test_passages_below_the_threshold_are_left_out(memory: DocumentMemory) -> None:
    retriever = InfinimemRetriever(memory=memory, k=4)
    scores = [document.metadata["score"] for document in retriever.invoke(QUESTION)]
    limit = (scores[0] + scores[-1]) / 2
    kept = [score for score in scores if score >= limit]
    for found in (
        InfinimemRetriever(memory=memory, k=4, score_threshold=limit).invoke(QUESTION),
        retriever.invoke(QUESTION, score_threshold=limit),
    ):
        assert [document.metadata["score"] for document in found] == kept
    assert InfinimemRetriever(memory=memory, score_threshold=1e9).invoke(QUESTION) == []


def test_what_cannot_be_searched_is_refused(memory: DocumentMemory) -> None:
    bare = DocumentMemory.from_text("The mill stands by the river.", passages=False)
    with pytest.raises(NoPassages):
        InfinimemRetriever(memory=bare).invoke("mill")
    with pytest.raises(NoPassages):
        InfinimemRetriever(memory=[memory, bare]).invoke("mill")
    with pytest.raises(EmptyQuestion):
        InfinimemRetriever(memory=memory).invoke(" ?! ")
    with pytest.raises(EmptyQuestion):
        InfinimemRetriever(memory=[memory, memory]).invoke(" ?! ")
    with pytest.raises(MemoryFileNotFound):
        InfinimemRetriever(memory="nowhere.safetensors")
    for wrong in ({"memory": []}, {"memory": 3}, {"memory": memory, "k": 0}, {"memory": memory, "kk": 3}):
        with pytest.raises(ValueError):
            InfinimemRetriever(**wrong)
    with pytest.raises(ValueError, match="k is 0"):
        InfinimemRetriever(memory=memory).invoke(QUESTION, k=0)


async def test_sixteen_queries_at_once_find_what_they_find_alone(memory: DocumentMemory) -> None:
    retriever = InfinimemRetriever(memory=memory)
    queries = [f"{QUESTION} Note {i}" for i in range(16)]
    alone = [retriever.invoke(query) for query in queries]
    assert retriever.batch(queries) == alone and await retriever.abatch(queries) == alone
