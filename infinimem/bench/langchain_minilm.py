"""langchain-minilm: MiniLM embeddings of passages in LangChain's InMemoryVectorStore; the base model answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from ..answering.prompts import passage_messages
from ..errors import SystemMissing
from ..evaluate.retrieval import MiniLm
from ..model.pretrained import load_base
from ..text.passages import Passage, cut
from ..text.tokens import TextEncoder
from .document_memory import text_of_tokens
from .task import WARM_UP, Task, clock_of, first_and_rest, peak_gpu_mb, timed_loads
from .transformers_model import encode_prompt, greedy

K = 4  # passages in a prompt, as many as `DocumentMemory.ask` finds


class _Embeddings:
    """MiniLM with the methods that LangChain calls."""

    def __init__(self, model: MiniLm) -> None:
        self._model = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return cast("list[list[float]]", self._model.embed(texts).tolist())

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def measure(task: Task) -> dict[str, Any]:
    """Cuts the text into passages, embeds them, saves the store, loads it, and asks.

    Raises SystemMissing, MiniLmMissing.
    """
    try:
        from langchain_core.vectorstores import InMemoryVectorStore
    except ImportError as error:
        raise SystemMissing("langchain-core is not installed; run: pip install 'infinimem[bench]'") from error
    from transformers import DynamicCache

    device = task.device or "cpu"
    clock = clock_of(device)
    started = clock()
    embeddings = cast("Any", _Embeddings(MiniLm(device)))
    network, tokenizer, _ = load_base(task.model, device=device)
    model_load = clock() - started
    encoder = TextEncoder(tokenizer)
    text = text_of_tokens(task.read_text(), task.tokens, encoder)
    embeddings.embed_documents([passage.text for passage in cut(text_of_tokens(text, WARM_UP, encoder), "text")])
    for _ in zip(range(2), greedy(network, encoder.encode(text)[:WARM_UP], DynamicCache()), strict=False):
        pass

    started = clock()
    store = InMemoryVectorStore(embeddings)
    store.add_texts([passage.text for passage in cut(text, "text")])
    seconds = clock() - started
    tokens = len(encoder.encode(text))
    path = task.state_path(".json")
    store.dump(str(path))
    del store

    loaded, load_ms = timed_loads(lambda: InMemoryVectorStore.load(str(path), embeddings), clock)

    def answer() -> Iterator[int]:
        found = [Passage(one.page_content, "text", 1, 0, 0) for one in loaded.similarity_search(task.question, k=K)]
        yield from greedy(network, encode_prompt(tokenizer, passage_messages(task.question, found)), DynamicCache())

    first, decode = first_and_rest(answer(), clock)
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "file_bytes": path.stat().st_size,
        "load_ms": load_ms,
        "first_token_ms": first * 1e3,
        "decode_tokens_per_second": decode,
        "model_load_ms": model_load * 1e3,
        **peak_gpu_mb(device),
    }
