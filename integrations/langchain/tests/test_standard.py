"""LangChain's own standard tests, on the embedded default model."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import INK, QUESTION, long_pages
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_infinimem import ChatInfinimem, InfinimemRetriever
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from infinimem import DocumentMemory


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _memory(self, memory: DocumentMemory) -> None:
        self.memory = memory

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return InfinimemRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"memory": self.memory}

    @property
    def retriever_query_example(self) -> str:
        return QUESTION


class _Chat:
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatInfinimem

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"max_tokens": 24}


class TestChatUnit(_Chat, ChatModelUnitTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {}


class TestChatIntegration(_Chat, ChatModelIntegrationTests):
    pass


class TestChatWithMemory(_Chat, ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _memory(self, memory: DocumentMemory) -> None:
        self.memory = memory

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Properties are read before fixtures run where tests are collected.
        memory = getattr(self, "memory", None) or DocumentMemory.from_text(long_pages(INK, 1))
        return {"memory": memory, "max_tokens": 24}
