"""Chains over the sample handbook, as a user of LangChain builds them."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

from conftest import QUESTION
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_infinimem import ChatInfinimem, InfinimemRetriever

from infinimem import DocumentMemory

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer briefly, from the excerpts alone."),
        ("human", "Excerpts:\n\n{context}\n\nQuestion: {question}"),
    ]
)


def cited(documents: list[Document]) -> str:
    return "\n\n".join(f"(page {d.metadata['page']}) {d.page_content}" for d in documents)


def chain(file: Path) -> Any:
    return (
        {"context": InfinimemRetriever(memory=file, k=2) | cited, "question": RunnablePassthrough()}
        | PROMPT
        | ChatInfinimem(max_tokens=40)
        | StrOutputParser()
    )


def test_a_chain_answers_from_the_page_that_says_it(handbook_file: Path) -> None:
    documents = InfinimemRetriever(memory=handbook_file, k=2).invoke(QUESTION)
    assert 10 in [document.metadata["page"] for document in documents]
    answer = chain(handbook_file).invoke(QUESTION)
    assert "glycerine" in answer.lower()
    assert answer == chain(handbook_file).batch([QUESTION])[0]


async def test_events_come_in_the_order_of_the_work(handbook_file: Path) -> None:
    events = [event["event"] async for event in chain(handbook_file).astream_events(QUESTION, version="v2")]
    order = [
        "on_retriever_start",
        "on_retriever_end",
        "on_chat_model_start",
        "on_chat_model_stream",
        "on_chat_model_end",
    ]
    places = [events.index(name) for name in order]
    assert places == sorted(places) and events.count("on_chat_model_stream") > 3


async def test_a_chain_streams(handbook_file: Path) -> None:
    pieces = [piece async for piece in chain(handbook_file).astream(QUESTION)]
    assert len(pieces) > 3 and "".join(pieces) == await chain(handbook_file).ainvoke(QUESTION)


def test_a_memory_is_a_tool(handbook_file: Path) -> None:
    tool = create_retriever_tool(InfinimemRetriever(memory=handbook_file, k=1), "handbook", "Searches the handbook.")
    assert "glycerine" in tool.invoke({"query": QUESTION}).lower()


def test_a_memory_makes_its_own_retriever_and_chat_model(handbook_file: Path) -> None:
    memory = DocumentMemory.load(handbook_file)
    documents = memory.as_retriever(k=2).invoke(QUESTION)
    assert [d.metadata["page"] for d in documents] == [p.page for p in memory.retrieve(QUESTION, 2)]
    answer = itemgetter("passages")(memory.as_chat_model(max_tokens=8, k=2).invoke(QUESTION).response_metadata)
    assert [passage["page"] for passage in answer] == [d.metadata["page"] for d in documents]
