"""A chat model of LangChain's that is one of the daemon's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field

from witsd_client.generated import ModelsCompleteResult
from witsd_client.langchain.bridge import bridge, current_run_id
from witsd_client.langchain.messages import (
    about,
    calls_of,
    extras_of,
    to_wire,
    tool_choice_to_wire,
    tools_to_wire,
    usage_of,
)
from witsd_client.messages import Progress
from witsd_client.sync import SyncClient


class WitsChatModel(BaseChatModel):
    """Any model the daemon has: ``model`` is ``auto``, PROVIDER, PROVIDER/MODEL or MODEL (``witsd model list``).

    Errors are the daemon's: ``ModelError``, ``LimitExceeded`` where a budget is spent, ``PermissionDenied`` without
    the grant. ``client``: a connection of your own (``witsd_client.sync.connect``).
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True)

    model: str = Field(default="auto", alias="model_name")
    temperature: float | None = None
    max_tokens: int | None = None
    timeout_s: float | None = Field(default=None, alias="timeout")
    #: The answer ends before the first of these.
    stop: list[str] | None = None
    client: SyncClient | None = Field(default=None, exclude=True, repr=False)

    @property
    def _llm_type(self) -> str:
        return "witsd"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="witsd", ls_model_name=str(kwargs.get("model", self.model)), ls_model_type="chat"
        )
        temperature = kwargs.get("temperature", self.temperature)
        if temperature is not None:
            params["ls_temperature"] = temperature
        max_tokens = kwargs.get("max_tokens", self.max_tokens)
        if max_tokens is not None:
            params["ls_max_tokens"] = max_tokens
        words = stop if stop is not None else self.stop
        if words:
            params["ls_stop"] = words
        return params

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with ``tools`` to call: LangChain's, functions, pydantic models or JSON Schemas."""
        if tool_choice:
            kwargs["tool_choice"] = tool_choice
        kwargs.pop("strict", None)  # the daemon checks arguments itself
        return self.bind(tools=tools_to_wire(tools), **kwargs)

    # ---- one call -------------------------------------------------------------------------------------

    def _params(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any], *, stream: bool
    ) -> dict[str, Any]:
        tools = kwargs.get("tools") or ()
        given = {
            "messages": to_wire(messages),
            "model": kwargs.get("model", self.model),
            "tools": [tool if "input_schema" in tool else tools_to_wire([tool])[0] for tool in tools],
            "temperature": kwargs.get("temperature", self.temperature),
            "max_tokens": kwargs.get("max_tokens", self.max_tokens),
            "timeout_s": kwargs.get("timeout_s", self.timeout_s),
            "response_format": kwargs.get("response_format"),
            "options": {"stop": words} if (words := stop or self.stop) else None,
            "stream": stream,
            "run_id": current_run_id(),
        }
        if kwargs.get("tool_choice") and tools:
            given["tool_choice"] = tool_choice_to_wire(kwargs["tool_choice"])
        return {name: value for name, value in given.items() if value not in (None, [])}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        params = self._params(messages, stop, kwargs, stream=False)
        result = bridge(self.client).call("models/complete", params, ModelsCompleteResult)
        return _whole(result, _Stopper(stop or self.stop))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        params = self._params(messages, stop, kwargs, stream=False)
        result = await bridge(self.client).acall("models/complete", params, ModelsCompleteResult)
        return _whole(result, _Stopper(stop or self.stop))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        params = self._params(messages, stop, kwargs, stream=True)
        stopper = _Stopper(stop or self.stop)
        for news in bridge(self.client).stream("models/complete", params, ModelsCompleteResult):
            for chunk in _chunks(news, stopper):
                if run_manager is not None and chunk.text:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        params = self._params(messages, stop, kwargs, stream=True)
        stopper = _Stopper(stop or self.stop)
        async for news in bridge(self.client).astream("models/complete", params, ModelsCompleteResult):
            for chunk in _chunks(news, stopper):
                if run_manager is not None and chunk.text:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk


class _Stopper:
    """Ends a text before the first of ``words``. What might be the beginning of one is held back."""

    def __init__(self, words: Sequence[str] | None) -> None:
        self.words = [word for word in words or () if word]
        self._held = ""
        self.given = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be shown of the text so far."""
        if self.stopped:
            return ""
        self._held += text
        starts = [at for word in self.words if (at := self._held.find(word)) >= 0]
        if starts:
            self.stopped = True
            return self._give(min(starts))
        keep = 0
        for word in self.words:
            for size in range(min(len(word) - 1, len(self._held)), keep, -1):
                if self._held.endswith(word[:size]):
                    keep = size
                    break
        return self._give(len(self._held) - keep)

    def rest(self) -> str:
        """What was held back."""
        return "" if self.stopped else self._give(len(self._held))

    def _give(self, size: int) -> str:
        out, self._held = self._held[:size], self._held[size:]
        self.given += out
        return out


def _whole(result: ModelsCompleteResult, stopper: _Stopper) -> ChatResult:
    calls, invalid = calls_of(result)
    extras = extras_of(result)
    reasoning = "".join(thought.text for thought in result.message.thoughts or ())
    if reasoning:
        extras["reasoning_content"] = reasoning
    message = AIMessage(
        content=stopper.feed(result.message.content) + stopper.rest(),
        additional_kwargs=extras,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata=usage_of(result),
        response_metadata=about(result),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunks(news: Progress | ModelsCompleteResult, stopper: _Stopper) -> Iterator[ChatGenerationChunk]:
    """What one piece of news adds to the answer; the result adds all that was not streamed."""
    if isinstance(news, Progress):
        if news.thought:
            extras = {"reasoning_content": news.thought}
            yield ChatGenerationChunk(message=AIMessageChunk(content="", additional_kwargs=extras))
        if news.delta and (text := stopper.feed(news.delta)):
            yield ChatGenerationChunk(message=AIMessageChunk(content=text))
        return
    if not stopper.given and not stopper.stopped:
        # It came in one piece; or nothing was shown, and what was held back is in it.
        stopper = _Stopper(stopper.words)
        text = stopper.feed(news.message.content) + stopper.rest()
    else:
        text = stopper.rest()
    last = AIMessageChunk(
        content=text,
        additional_kwargs=extras_of(news),
        tool_call_chunks=[
            tool_call_chunk(name=call.name, args=call.arguments or "{}", id=call.id, index=index)
            for index, call in enumerate(news.message.tool_calls or ())
        ],
        usage_metadata=usage_of(news),
        response_metadata=about(news),
        chunk_position="last",
    )
    yield ChatGenerationChunk(message=last)
