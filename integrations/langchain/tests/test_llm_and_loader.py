"""The LLM for plain texts, and the loader."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY
from langchain_infinimem import InfinimemLLM, InfinimemLoader

from infinimem import DocumentMemory
from infinimem.answering import conversation

# Sure of their next words: where two words are about equally probable, a batch may round to the other one.
PROMPTS = [
    "The capital of France is",
    "The violet ink",
    "Water boils at a temperature of one hundred degrees, and it freezes at",
]


def test_a_batch_says_what_its_texts_say_alone(memory: DocumentMemory) -> None:
    for llm in (InfinimemLLM(max_tokens=6), InfinimemLLM(memory=memory, max_tokens=6)):
        alone = [llm.invoke(prompt) for prompt in PROMPTS]
        assert llm.batch(PROMPTS) == alone and not any(
            text.startswith(p) for text, p in zip(alone, PROMPTS, strict=True)
        )


def test_a_batch_is_computed_at_once(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = conversation.continue_texts
    monkeypatch.setattr(
        conversation,
        "continue_texts",
        lambda model, prompts, *rest: sizes.append(len(prompts)) or original(model, prompts, *rest),
    )
    InfinimemLLM(memory=memory, max_tokens=3).batch(PROMPTS)
    assert sizes == [3]


def test_the_memory_in_view_and_its_absence_are_different_llms(memory: DocumentMemory) -> None:
    read, bare = InfinimemLLM(memory=memory), InfinimemLLM(model=memory.model)
    assert read._identifying_params != bare._identifying_params
    assert read._identifying_params["memory"] == memory.info()["fingerprint"]


def test_a_stop_text_ends_every_row(memory: DocumentMemory) -> None:
    llm = InfinimemLLM(memory=memory, max_tokens=8)
    texts = llm.batch(PROMPTS)
    ended = llm.batch(PROMPTS, stop=[texts[0][3:6]])
    assert ended[0] == texts[0][: texts[0].index(texts[0][3:6])]
    assert ended[1] == texts[1].split(texts[0][3:6])[0]


def test_a_text_that_takes_too_long_is_given_up(memory: DocumentMemory) -> None:
    for llm in (InfinimemLLM(timeout=1e-6), InfinimemLLM(memory=memory, timeout=1e-6)):
        with pytest.raises(TimeoutError, match="fewer tokens"):
            llm.invoke(PROMPTS[0])


def test_wrong_settings_of_an_llm_are_refused(memory: DocumentMemory) -> None:
    with pytest.raises(ValueError):
        InfinimemLLM(memory=memory, maxtokens=3)
    with pytest.raises(ValueError, match="no setting k"):
        InfinimemLLM(memory=memory).invoke("Hello", k=3)


def test_a_memory_is_loaded_as_its_passages_or_pages(memory: DocumentMemory, tmp_path: Path) -> None:
    memory.save(tmp_path / "m.safetensors")
    for source in (memory, tmp_path / "m.safetensors", [str(tmp_path / "m.safetensors")]):
        documents = InfinimemLoader(source).load()
        assert [d.page_content for d in documents] == [p.text for p in memory.passages]
        assert [d.metadata["start"] for d in documents] == [p.start for p in memory.passages]
        assert {d.metadata["memory"] for d in documents} == {memory.info()["fingerprint"]}
    (page,) = InfinimemLoader(memory, unit="pages").load()
    assert page.metadata["page"] == 1 and all(p.text in page.page_content for p in memory.passages)


def test_memories_files_and_patterns_are_loaded_one_after_the_other(memory: DocumentMemory, tmp_path: Path) -> None:
    memory.save(tmp_path / "a.safetensors")
    (tmp_path / "b.txt").write_text("One more document.", encoding="utf-8")
    once = [document.page_content for document in InfinimemLoader(memory).load()]
    several = InfinimemLoader([memory, str(tmp_path / "*.safetensors"), tmp_path / "b.txt"]).load()
    assert [document.page_content for document in several] == [*once, *once, "One more document."]


def test_source_files_give_the_passages_that_a_memory_of_them_has(tmp_path: Path) -> None:
    source = tmp_path / "notes.md"
    source.write_text(
        "# One\n\n" + "The mill stands. " * 90 + "\n\n# Two\n\nThe weir was built by monks.\n", encoding="utf-8"
    )
    memory = DocumentMemory.ingest(source)
    documents = InfinimemLoader(source).load()
    assert len(documents) > 2
    expected = [{**p.to_dict()} for p in memory.passages]
    for passage, document in zip(expected, documents, strict=True):
        assert document.page_content == passage.pop("text")
        passage.pop("score")
        assert document.metadata == passage


def test_pages_of_a_pdf_are_read_lazily() -> None:
    pages = InfinimemLoader(REPOSITORY / "examples" / "handbook.pdf", unit="pages").lazy_load()
    first = next(pages)
    assert first.metadata["source"] == "handbook.pdf" and first.metadata["page"] == 1 and first.page_content


async def test_loading_goes_without_blocking(memory: DocumentMemory) -> None:
    assert await InfinimemLoader(memory).aload() == InfinimemLoader(memory).load()


def test_an_unknown_unit_is_refused(memory: DocumentMemory) -> None:
    with pytest.raises(ValueError, match="passages or pages"):
        InfinimemLoader(memory, unit="words")  # type: ignore[arg-type]
