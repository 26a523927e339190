"""LangChain's own standard tests, of ``langchain-tests``, for what ``witsd_client.langchain`` brings."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.tools import BaseTool
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    ToolsIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import ChatModelUnitTests
from witsd_client.langchain import WitsChatModel, WitsTool, WitsVectorStore, wits_tools
from witsd_client.sync import SyncClient


class TestChatModelOffline(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return WitsChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "auto"}


class TestChatModel(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _connected(self, client: SyncClient) -> None:
        self._client = client

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return WitsChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "auto", "client": self._client}

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "another"


class TestTool(ToolsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _connected(self, client: SyncClient) -> None:
        (self._tool,) = wits_tools("calculator", client=client)

    @property
    def tool_constructor(self) -> type[BaseTool] | BaseTool:
        return self._tool

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"expression": "15 * 23 + 17"}

    def test_it_calculates(self, tool: BaseTool) -> None:
        assert isinstance(tool, WitsTool)
        assert "362" in tool.invoke(self.tool_invoke_params_example)


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, client: SyncClient) -> Iterator[VectorStore]:  # type: ignore[override]
        store = WitsVectorStore(f"test-{uuid.uuid4().hex[:12]}", client=client)
        try:
            yield store
        finally:
            store.delete()
