"""What a Runnable is given, and what of its output is the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable

from witsd.adapters.langchain.loading import wrong
from witsd.adapters.langchain.options import Options

Way = Literal["text", "messages", "state"]
#: Names under which Runnables that take or give a dict have the text.
_ASKED = ("input", "question", "query", "text", "prompt", "topic")
_ANSWERED = ("output", "answer", "result", "text", "response", "content")
_PAST = ("chat_history", "history")


class Form:
    """How ``runnable`` is asked: found from its input schema unless ``options`` say."""

    def __init__(self, runnable: Runnable[Any, Any], options: Options) -> None:
        schema = _schema(runnable)
        self._properties: dict[str, Any] = schema.get("properties") or {}
        self._key = options.input_key
        self._output_key = options.output_key
        self.way: Way = options.input or self._guess(runnable, schema)
        if self.way == "text" and not self._key and self._properties:
            self._key = self._text_key()

    def _guess(self, runnable: Runnable[Any, Any], schema: dict[str, Any]) -> Way:
        if self._key:
            return "text"
        if "messages" in self._properties:
            return "state"
        if isinstance(runnable, BaseLanguageModel) or "ChatPromptValue" in json.dumps(schema):
            return "messages"
        first = getattr(runnable, "first", None)
        if isinstance(first, BaseLanguageModel):
            return "messages"
        return "text"

    def _text_key(self) -> str:
        names = [name for name in self._properties if name not in _PAST]
        if len(names) == 1:
            return names[0]
        known = [name for name in _ASKED if name in names]
        if len(known) == 1:
            return known[0]
        raise wrong("input_key", f"the runnable takes {', '.join(names)}: say which of them is the text")

    def question(self, messages: Sequence[BaseMessage], data: Any) -> Any:
        """Its input; ``data`` are further fields of one that takes a dict."""
        more = data if isinstance(data, dict) else {}
        if self.way == "messages":
            return list(messages)
        if self.way == "state":
            return {**more, (self._key or "messages"): list(messages)}
        text = str(messages[-1].text)
        if not self._key:
            return text
        past = {name: list(messages[:-1]) for name in _PAST if name in self._properties}
        return {**past, **more, self._key: text}

    def answer(self, output: Any) -> Any:
        """Its output as an agent's: text where it has one, else what JSON can say of it."""
        if self._output_key and isinstance(output, dict):
            output = output.get(self._output_key)
        if isinstance(output, BaseMessage):
            return str(output.text)
        if isinstance(output, dict):
            structured = output.get("structured_response")
            if structured is not None:
                return plain(structured)
            messages = output.get("messages")
            if isinstance(messages, list) and messages:
                last = next((m for m in reversed(messages) if isinstance(m, AIMessage)), None)
                return "" if last is None else str(last.text)
            for name in _ANSWERED:
                if isinstance(output.get(name), str | BaseMessage):
                    return self.answer(output[name])
        if isinstance(output, list) and output and isinstance(output[-1], BaseMessage):
            return str(output[-1].text)
        return plain(output)


def plain(value: Any) -> Any:
    """``value`` as JSON has it; what JSON cannot say is its text."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    try:
        return json.loads(json.dumps(value, default=_said))
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _said(value: Any) -> Any:
    if isinstance(value, BaseMessage):
        return str(value.text)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def _schema(runnable: Runnable[Any, Any]) -> dict[str, Any]:
    try:
        return runnable.get_input_jsonschema()
    except Exception:  # noqa: BLE001  some have none, each in a way of its own
        return {}
