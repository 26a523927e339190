from witsd_client import Agent

agent = Agent("words")


@agent.tool(read_only=True)
def count(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


agent.serve()
