"""The program behind ``kind = "langchain"``; its options are in ``options``."""

from __future__ import annotations

import importlib.util
import sys

from witsd_client import Agent, Run, Session


def main() -> None:
    """Serve the daemon; ends with what to install where LangChain is not there."""
    if importlib.util.find_spec("langchain_core") is None:
        sys.exit(
            f"an agent of kind langchain needs langchain-core, and the Python of {sys.prefix} has none: "
            "pip install 'witsd[langchain]' there, or name another Python in the definition: "
            'command = ["/path/to/python", "-m", "witsd.adapters.langchain"]'
        )
    from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

    from witsd.adapters.langchain.hosting import Host, open_host, remembered

    agent = Agent("langchain")
    opened: list[Host] = []

    @agent.prepare
    async def prepare() -> None:
        opened.append(await open_host(agent))

    @agent.run
    async def answer_once(run: Run) -> object:
        past = [remembered(turn.role, turn.text) for turn in run.history]
        return await opened[0].answer(run, [*past, HumanMessage(run.text)])

    @agent.session
    async def converse(session: Session) -> None:
        messages: list[BaseMessage] = [remembered(turn.role, turn.text) for turn in session.history]
        async for message in session:
            answer: object = None
            async with message:
                messages.append(HumanMessage(message.text))
                answer = await opened[0].answer(message, messages)
                message.finish(answer)
            # Also what a cancelled or broken answer had said: the person has seen it.
            text = message.said or (answer if isinstance(answer, str) else "")
            if text:
                messages.append(AIMessage(text))
            del messages[: -agent.history_messages - 1]

    agent.serve(backend="asyncio")


if __name__ == "__main__":
    main()
