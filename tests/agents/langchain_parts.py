"""What LangChain agents of the tests are made of: chains, tools, and things that are none."""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_core.callbacks import adispatch_custom_event
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tools import BaseTool, ToolException, tool
from pydantic import BaseModel, Field
from witsd_client.langchain import WitsChatModel

model = WitsChatModel()
prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
chain = prompt | model | StrOutputParser()
shouting = chain | RunnableLambda(str.upper)
with_history = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("human", "{input}")]) | model


async def busy(text: str, config: RunnableConfig) -> dict[str, Any]:
    """Uses a tool, tells of something, and gives what is no text."""
    product = await multiply.ainvoke({"a": 6, "b": 7}, config)
    await adispatch_custom_event("half", {"at": 0.5}, config=config)
    return {"asked": text, "product": product}


async def slow(text: str) -> str:
    """Never ends by itself."""
    await asyncio.Event().wait()
    return text


def raising(text: str) -> str:
    """Fails."""
    raise ZeroDivisionError(f"cannot divide {text}")


busy_chain = RunnableLambda(busy)
slow_chain = RunnableLambda(slow)
raising_chain = RunnableLambda(raising)
number = 7


def make() -> Runnable[Any, Any]:
    """A function without parameters that makes one."""
    return RunnableLambda(lambda text: AIMessage(f"made for {text}"))


class Echo(BaseChatModel):
    """A chat model that says what it was told, and calls the first of its tools with it."""

    prefix: str = "you said"

    @property
    def _llm_type(self) -> str:
        return "echo"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=tools, **kwargs)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        said = str(messages[-1].text)
        if said == "fail":
            raise ConnectionError("the model is away")
        tools = kwargs.get("tools") or ()
        calls = [
            ToolCall(name=tool["function"]["name"], args={"x": said}, id="c1", type="tool_call") for tool in tools[:1]
        ]
        usage = UsageMetadata(input_tokens=3, output_tokens=2, total_tokens=5)
        answer = AIMessage(f"{self.prefix}: {said}", tool_calls=calls, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=answer)])


class Pair(BaseModel):
    """Two numbers."""

    a: int = Field(description="the first factor")
    b: int = Field(description="the second factor", le=1000)


@tool(args_schema=Pair)
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
async def greet(name: str, times: int = 1) -> str:
    """Greet somebody.

    Args:
        name: who is greeted
        times: how often
    """
    if name == "nobody":
        raise ToolException("there is nobody to greet")
    return " ".join([f"Hello {name}!"] * times)


def divide(a: float, b: float) -> float:
    """Divide a by b."""
    return a / b


tools: list[BaseTool] = [multiply, greet]
