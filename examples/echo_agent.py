from witsd_client import Agent, Run

agent = Agent("echo")

@agent.run
async def echo(run: Run) -> None:
    for word in run.text.split():
        await run.say(word + " ")

agent.serve()
