"""A Langroid agent: one `Task.run` for a whole conversation, alive between its prompts.

    witsd agent add guide -- python examples/langroid_agent.py
    witsd chat guide

Where the model ends with a question, Langroid's question to its user becomes an input request of the run, and the
answer goes back into the task; any other answer ends the run, and the next prompt is the user's next turn.
"""

from __future__ import annotations

import os

import langroid as lr
from langroid.language_models import OpenAIGPTConfig
from witsd_client import Agent, SyncMessage, SyncSession

agent = Agent("guide")


@agent.session
def converse(session: SyncSession) -> None:
    """One conversation; this thread is Langroid's."""
    prompts = iter(session)
    message: SyncMessage | None = next(prompts, None)
    if message is None:
        return
    # The daemon's /v1, with the key that it gave this process: any of its models by name.
    model = OpenAIGPTConfig(chat_model="auto", api_base=os.environ["OPENAI_BASE_URL"], stream=False)
    chat = lr.ChatAgent(lr.ChatAgentConfig(llm=model, system_message="You are a guide. Be brief."))

    def user_turn(prompt: str = "") -> str:
        nonlocal message
        if message is None:
            return "q"
        said = chat.message_history[-1].content
        if said.rstrip().endswith("?"):
            return str(message.ask_user(said))
        message.reply(said)
        message = next(prompts, None)
        return "q" if message is None else message.text

    chat.callbacks.get_user_response = user_turn
    lr.Task(chat, interactive=True).run(message.text)


if __name__ == "__main__":
    agent.serve()
