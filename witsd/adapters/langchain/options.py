"""``[options]`` of an agent of kind ``langchain``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from witsd_client import AgentFailed


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Either ``runnable``, or the parts to build an agent of; ``offer`` alone brings tools.

    ``runnable``: the import path of a Runnable, a LangGraph graph, or a function without parameters that makes one.
    ``input``: how it is asked, where its schema does not say: the ``text``, the ``messages`` of the conversation, or a
    ``state`` with these messages; ``input_key`` and ``output_key``: by which names, of one that takes and gives a dict.
    ``config``: what goes to it as LangChain's ``configurable``.

    ``model``, ``system``, ``tools``, ``temperature``, ``max_tokens``: an agent without code. ``tools`` are patterns of
    the daemon's and import paths of LangChain's tools, lists or toolkits. ``max_steps`` bounds the calls of a model in
    one answer.

    ``offer``: import paths of tools that this agent brings to all others.

    ``chat_model``: the import path of a chat model, made with ``chat_model_options``, that the daemon offers as a
    provider of kind ``langchain``.
    """

    runnable: str = ""
    input: Literal["", "text", "messages", "state"] = ""
    input_key: str = ""
    output_key: str = ""
    config: dict[str, Any] = {}
    model: str = "auto"
    system: str = ""
    tools: tuple[str, ...] = ()
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_steps: Annotated[int, Meta(ge=1, le=1000)] = 25
    offer: tuple[str, ...] = ()
    chat_model: str = ""
    chat_model_options: dict[str, Any] = {}


def read_options(given: Mapping[str, Any]) -> Options:
    """Raises ``AgentFailed`` naming the option that is wrong."""
    try:
        return msgspec.convert(dict(given), Options)
    except msgspec.ValidationError as error:
        text = f"[options] of the agent's definition: {error}"
        raise AgentFailed(text, {"reason": text}) from None
