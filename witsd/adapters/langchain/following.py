"""What a Runnable does, as it does it: its stream of events becomes deltas and items of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from witsd_client import Run
from witsd_client.generated import ItemStatus

from witsd.adapters.langchain.asking import plain

#: What is not said: a model of which the runnable only wants to know something. LangGraph's own tag is the first.
SILENT = frozenset({"nostream", "langsmith:hidden", "silent"})
_ENDS = frozenset({"on_chain_end", "on_chat_model_end", "on_llm_end"})
#: Results of tools are shown up to here; the model gets them whole.
MAX_SHOWN_CHARS = 20_000


class Follower:
    """Tells one run of the events of one runnable."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._tools: dict[str, tuple[str, dict[str, Any]]] = {}  # event's run id -> item id, fields
        self._broken = False  # what is said next begins a paragraph

    async def follow(self, runnable: Runnable[Any, Any], question: Any, config: RunnableConfig) -> Any:
        """Run it to its end; its output."""
        output: Any = None
        root = ""
        async for event in runnable.astream_events(question, config, version="v2"):
            root = root or event["run_id"]
            if event["run_id"] == root and event["event"] in _ENDS:
                output = event["data"].get("output")
            await self._take(event)
        return output

    async def _take(self, event: Mapping[str, Any]) -> None:
        data = event["data"]
        match event["event"]:
            case "on_chat_model_stream":
                await self._piece(data["chunk"], event)
            case "on_llm_stream":
                await self._say(_text(data["chunk"]), event)
            case "on_tool_start" if not _shown_already(event):
                fields = {"tool": event["name"], "arguments": _arguments(data.get("input"))}
                item_id = await self._run.item("tool_call", status="in_progress", **fields)
                self._tools[event["run_id"]] = (item_id, fields)
            case "on_tool_start" | "on_tool_end" if _shown_already(event):
                self._broken = True
            case "on_tool_end":
                output = data.get("output")
                failed = isinstance(output, ToolMessage) and output.status == "error"
                await self._end_tool(event["run_id"], _shown(output), failed=failed)
            case "on_tool_error":
                error = data.get("error")
                await self._end_tool(event["run_id"], f"{type(error).__name__}: {error}", failed=True)
            case "on_custom_event":
                await self._run.item("custom", name=event["name"], data=plain(data))

    async def _piece(self, chunk: Any, event: Mapping[str, Any]) -> None:
        if not isinstance(chunk, BaseMessage) or SILENT & set(event.get("tags") or ()):
            return
        for block in chunk.content_blocks:
            if block["type"] == "reasoning" and block.get("reasoning"):
                await self._run.think(str(block["reasoning"]))
        await self._say(str(chunk.text), event)

    async def _say(self, text: str, event: Mapping[str, Any]) -> None:
        if not text or SILENT & set(event.get("tags") or ()):
            return
        if self._broken and self._run.said:
            await self._run.say("\n\n")
        self._broken = False
        await self._run.say(text)

    async def _end_tool(self, run_id: str, result: Any, *, failed: bool) -> None:
        self._broken = True
        known = self._tools.pop(run_id, None)
        if known is not None:
            item_id, fields = known
            status: ItemStatus = "failed" if failed else "completed"
            await self._run.item(
                "tool_call", item_id=item_id, status=status, result=result, is_error=failed, **fields
            )


def _shown_already(event: Mapping[str, Any]) -> bool:
    """A tool of the daemon's is an item of the run by itself."""
    return bool((event.get("metadata") or {}).get("witsd"))


def _arguments(given: Any) -> dict[str, Any]:
    value = plain(given)
    return value if isinstance(value, dict) else {"input": value}


def _shown(output: Any) -> Any:
    value = output.content if isinstance(output, ToolMessage) else plain(output)
    if isinstance(value, str) and len(value) > MAX_SHOWN_CHARS:
        return value[:MAX_SHOWN_CHARS] + f" [… {len(value) - MAX_SHOWN_CHARS} more characters]"
    return value


def _text(chunk: Any) -> str:
    return chunk if isinstance(chunk, str) else str(getattr(chunk, "text", ""))
