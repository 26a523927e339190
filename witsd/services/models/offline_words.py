"""The fixed words of ``offline``: who it is, how to connect a model, what witsd's own words mean."""

from __future__ import annotations

CONNECT = (
    "To talk to a real model, set OPENAI_API_KEY (and OPENAI_BASE_URL for another server) for the "
    "daemon, start Ollama on this machine, or add a [providers.NAME] section to witsd.toml; "
    "`witsd model list` shows what is there."
)
HONEST = "I am witsd's built-in offline answerer, a set of rules and no language model"
COMMANDS = (
    "`witsd ask AGENT TEXT` and `witsd chat`, `witsd agent list`, `witsd run list`, `witsd "
    "session list`, `witsd events -f`, `witsd model list`, `witsd status`"
)

#: What witsd's own words mean, by their singular.
CONCEPTS = {
    "witsd": (
        "witsd is an init system for AI agents: one small local daemon that starts, supervises "
        "and remembers for background agents, and that editors, scripts and browsers talk to "
        "through one protocol."
    ),
    "agent": (
        "An agent is a named background program that witsd runs, declared in a TOML file: an "
        "assistant, a native one that speaks witsd's protocol, or any command (exec)."
    ),
    "run": (
        "A run is one piece of work asked of an agent: an input, the items it produced, and one "
        "outcome: completed, failed, cancelled or interrupted."
    ),
    "item": ("An item is a part of a run: a message, a thought, a tool call, a usage record and so on."),
    "session": (
        "A session is a lasting conversation with one agent. Each prompt starts a run; it survives restarts."
    ),
    "event": (
        "An event is one entry of the journal: what happened, in which stream, with its number (seq) there."
    ),
    "stream": ("A stream is one numbered sequence of events, such as run:ID, session:ID or agent:NAME."),
    "seq": (
        "seq is an event's number within its stream; it has no gaps, so a client sees that it missed nothing."
    ),
    "journal": (
        "The journal is the append-only record of everything observable. Clients that come back "
        "read on from where they were."
    ),
    "model": (
        "A model is a chat or embedding model behind witsd's gateway. `auto` takes the first that "
        "is available; the last of them is offline, which is me."
    ),
    "tool": ("A tool is a function with a JSON Schema that an agent or a model may call."),
    "memory": ("Memory is records in a namespace that are found again by words and by meaning."),
    "actor": ("An actor is who is calling: the owner, a client with a token, or an agent with its grants."),
    "grant": ("Grants are what an agent's definition lets it use: tools, memory, models and other agents."),
    "approval": ("An approval is a person's yes or no to something a tool is about to do."),
    "workflow": ("A workflow is a durable graph of steps; one running of it is an execution."),
    "execution": ("An execution is one running of a workflow."),
    "daemon": (
        "The daemon is the one long-running process of witsd (`witsd up`); everything else is its client."
    ),
    "offline": f"{HONEST}. {CONNECT}",
}
