"""The daemon's tools as LangChain's."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForToolRun, CallbackManagerForToolRun
from langchain_core.tools import BaseTool, ToolException
from pydantic import ConfigDict, Field

from witsd_client.langchain.bridge import bridge, current_run_id
from witsd_client.sync import SyncClient


class WitsTool(BaseTool):
    """One tool of the daemon, with its own argument schema. Made by ``wits_tools``.

    What it refuses or fails at becomes the answer that the model sees (``handle_tool_error``); what the caller may
    not do, and a lost connection, raise ``WitsdError``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    handle_tool_error: Any = True
    #: By which those who follow a run know that the daemon shows the call already.
    metadata: dict[str, Any] | None = {"witsd": True}
    response_format: Any = "content_and_artifact"
    client: SyncClient | None = Field(default=None, exclude=True, repr=False)

    def _run(
        self, *args: Any, run_manager: CallbackManagerForToolRun | None = None, **arguments: Any
    ) -> tuple[str, dict[str, Any]]:
        return _outcome(self.name, bridge(self.client).call("tools/call", self._params(arguments)))

    async def _arun(
        self, *args: Any, run_manager: AsyncCallbackManagerForToolRun | None = None, **arguments: Any
    ) -> tuple[str, dict[str, Any]]:
        return _outcome(self.name, await bridge(self.client).acall("tools/call", self._params(arguments)))

    def _params(self, arguments: dict[str, Any]) -> dict[str, Any]:
        params: dict[str, Any] = {"name": self.name, "arguments": arguments}
        run_id = current_run_id()
        return {**params, "run_id": run_id} if run_id else params


def wits_tools(*patterns: str, client: SyncClient | None = None) -> list[WitsTool]:
    """The daemon's tools whose names fit one of ``patterns`` (``calculator``, ``memory_*``); without any, all that
    the caller may use. Not from a coroutine: see ``awits_tools``.
    """
    over = bridge(client)
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = over.call("tools/list", _page(cursor))
        found += page["items"]
        cursor = page.get("next_cursor")
        if cursor is None:
            return _made(found, patterns, client)


async def awits_tools(*patterns: str, client: SyncClient | None = None) -> list[WitsTool]:
    """See ``wits_tools``."""
    over = bridge(client)
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = await over.acall("tools/list", _page(cursor))
        found += page["items"]
        cursor = page.get("next_cursor")
        if cursor is None:
            return _made(found, patterns, client)


def _page(cursor: str | None) -> dict[str, Any]:
    return {"available": True} if cursor is None else {"available": True, "cursor": cursor}


def _made(found: list[dict[str, Any]], patterns: tuple[str, ...], client: SyncClient | None) -> list[WitsTool]:
    names = [tool["name"] for tool in found]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names) or "none"
            raise ValueError(f"no tool of the daemon that may be used here fits {pattern!r}; there are: {shown}")
    return [
        WitsTool(
            name=tool["name"],
            description=tool.get("description") or tool["name"],
            args_schema=_schema(tool),
            client=client,
        )
        for tool in found
        if not patterns or any(fnmatchcase(tool["name"], pattern) for pattern in patterns)
    ]


def _schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """As LangChain wants a JSON Schema: with a title and its properties."""
    schema = dict(tool.get("input_schema") or {"type": "object"})
    schema.setdefault("title", tool["name"])
    schema.setdefault("properties", {})
    if tool.get("description"):
        schema.setdefault("description", tool["description"])
    return schema


def _outcome(name: str, result: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    text = "\n".join(_block_text(block) for block in result.get("content", ()))
    if result.get("is_error"):
        raise ToolException(text or f"{name} failed and did not say why")
    return text, dict(result)


def _block_text(block: Mapping[str, Any]) -> str:
    if block.get("type") == "text":
        return str(block.get("text", ""))
    return f"[{block.get('type')}: {block.get('name') or block.get('mime_type') or ''}]"
