"""LangChain over witsd: its models, tools and memory as LangChain's own classes. Needs ``langchain-core``.

::

    from witsd_client.langchain import WitsChatModel, wits_tools

    model = WitsChatModel(model="auto").bind_tools(wits_tools("calculator"))

Inside an agent everything goes over its own connection, within its grants and its run's budget; elsewhere a
connection to this machine's daemon is made with the first call. Sync and async (on asyncio) alike.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from witsd_client.langchain.chat import WitsChatModel
    from witsd_client.langchain.history import WitsChatMessageHistory
    from witsd_client.langchain.tools import WitsTool, wits_tools
    from witsd_client.langchain.vectorstore import WitsVectorStore

_HOME = {
    "WitsChatModel": "chat",
    "WitsChatMessageHistory": "history",
    "WitsTool": "tools",
    "wits_tools": "tools",
    "WitsVectorStore": "vectorstore",
}

__all__ = ["WitsChatMessageHistory", "WitsChatModel", "WitsTool", "WitsVectorStore", "wits_tools"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("langchain_core") is None:
        raise ImportError(f"{__name__} needs langchain-core: pip install 'witsd-client[langchain]'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
