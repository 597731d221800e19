"""`ChatInfinimem`: a chat model that answers from a document memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field, model_validator

from infinimem import Reply, reply
from langchain_infinimem._common import Settings, renamed_mode

OLD_MODES = {"recall": "passages"}
ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (SystemMessage, "system"),
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
)


class ChatInfinimem(Settings, BaseChatModel):
    """A chat model that answers from a document memory; without a memory, a plain chat model.

    Setup:
        ```bash
        pip install langchain-infinimem
        infinimem models get  # the default model
        infinimem ingest examples/handbook.pdf -o handbook.safetensors
        ```

    Instantiate:
        ```python
        from langchain_infinimem import ChatInfinimem

        chat = ChatInfinimem(memory="handbook.safetensors", k=4, max_tokens=64)
        ```
        answer_from: "passages" shows the model the k passages that fit the last message best; "memory" lets the model
        read the compressive memory alone. Without `memory`, `model` names the model to use in place of the default
        model.

    Invoke:
        ```python
        answer = chat.invoke("What is the violet ink made of?")
        answer.content
        ```

    Stream:
        ```python
        for chunk in chat.stream("What is the violet ink made of?"):
            print(chunk.content, end="", flush=True)
        ```
        Leaving or cancelling a stream stops the model.

    Async:
        ```python
        answer = await chat.ainvoke("What is the violet ink made of?")
        ```

    Response metadata:
        ```python
        [(passage["source"], passage["page"]) for passage in answer.response_metadata["passages"]]
        answer.usage_metadata["input_tokens"]
        ```
        `response_metadata`: `model_name`, `finish_reason` ("stop" or "length"), `mode`, and `passages`, best first,
        as `infinimem ask --json` prints them.
    """

    # Without this line, the configuration of the last base class would count.
    model_config = Settings.model_config

    k: int = Field(default=4, ge=1)
    """Most passages that the model is shown."""
    answer_from: Literal["passages", "memory"] = "passages"
    """passages: the model is shown passages; memory: the model reads the compressive memory alone."""
    style: Literal["short", "full"] = "short"
    """short: a few words; full: whole sentences. Without a memory, it has no effect."""
    streaming: bool = False
    """Whether `invoke` streams for callbacks."""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        return renamed_mode(values, "answer_from", OLD_MODES)

    @property
    def _llm_type(self) -> str:
        return "infinimem-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**self.identifying(), "k": self.k, "answer_from": self.answer_from, "style": self.style}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(
            ls_provider="infinimem",
            ls_model_name=kwargs.get("model") or self.infini_model.name,
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
            ls_stop=stop or self.stop,
        )

    def _reply(self, messages: Sequence[BaseMessage], stop: list[str] | None, given: dict[str, Any]) -> Reply:
        """The reply, which is written while it is iterated."""
        asked = [_plain(message) for message in messages]
        if "mode" in given:
            given |= renamed_mode({"mode": given.pop("mode")}, "answer_from", OLD_MODES)
        own = {name: given.pop(name, getattr(self, name)) for name in ("k", "answer_from", "style")}
        decoding = self.decoding(stop, given)
        if self.memory is None:
            return reply(self.infini_model, asked, decoding)
        found: Reply = self.memory.reply(asked, **own, decoding=decoding)
        return found

    def _metadata(self, written: Reply) -> dict[str, Any]:
        return {
            "model_name": self.infini_model.name,
            "model_provider": "infinimem",
            "finish_reason": written.finish,
            "mode": written.mode,
            "passages": [passage.to_dict() for passage in written.passages],
        }

    def _result(self, written: Reply, text: str) -> ChatResult:
        metadata = self._metadata(written)
        message = AIMessage(content=text, response_metadata=metadata, usage_metadata=_usage(written))
        return ChatResult(
            generations=[ChatGeneration(message=message, generation_info={"finish_reason": written.finish})],
            llm_output={"model_name": metadata["model_name"]},
        )

    def _last(self, written: Reply) -> ChatGenerationChunk:
        """The chunk without text that ends a stream."""
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                response_metadata=self._metadata(written),
                usage_metadata=_usage(written),
                chunk_position="last",
            ),
            generation_info={"finish_reason": written.finish},
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        written = self._reply(messages, stop, kwargs)
        return self._result(written, "".join(written))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        written = self._reply(messages, stop, kwargs)
        for piece in written:
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield self._last(written)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        written = await asyncio.to_thread(self._reply, messages, stop, kwargs)
        said = []
        async with aclosing(written.__aiter__()) as pieces:
            async for piece in pieces:
                said.append(piece)
        return self._result(written, "".join(said))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        written = await asyncio.to_thread(self._reply, messages, stop, kwargs)
        async with aclosing(written.__aiter__()) as pieces:
            async for piece in pieces:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        yield self._last(written)


def _usage(written: Reply) -> UsageMetadata:
    asked, said = written.prompt_tokens, written.tokens
    return UsageMetadata(input_tokens=asked, output_tokens=said, total_tokens=asked + said)


def _plain(message: BaseMessage) -> dict[str, str]:
    """A message in the form that infinimem takes. Raises ValueError for tools, images and sounds."""
    role = message.role if isinstance(message, ChatMessage) else None
    role = role or next((name for kind, name in ROLES if isinstance(message, kind)), None)
    if role is None:
        raise ValueError(f"messages of type {message.type} cannot be answered; infinimem knows no tools")
    blocks = message.content if isinstance(message.content, list) else []
    others = sorted({str(b.get("type")) for b in blocks if isinstance(b, dict) and b.get("type") != "text"})
    if others:
        raise ValueError(f"a message holds {', '.join(others)}; infinimem reads text alone")
    return {"role": role, "content": str(message.text)}
