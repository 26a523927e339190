"""An agent's definition: the same keys in ``agents/<name>.toml`` and in ``agents/define``.

These are ``msgspec.Struct`` and not attrs classes because a definition refuses unknown keys, which
msgspec enforces for its own structs only.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

#: Also what keeps a name safe as a file name, a stream name and a metric label.
#: ``digest@work`` is an instance of ``digest``.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}(@[a-z0-9][a-z0-9_-]{0,62})?$"
#: The same in words.
NAME_RULE = "a name has at most 63 characters, all of them a-z, 0-9, - or _, and begins with a letter or a digit"
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]
Positive = Annotated[int, Meta(ge=1)]
#: 100 is one core; the bound keeps out what no JSON and no kernel has a number for.
Percent = Annotated[float, Meta(ge=0, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]

Kind = Literal["native", "exec", "assistant", "langchain", "external"]
Start = Literal["boot", "on_demand", "manual"]
RestartPolicy = Literal["always", "on_failure", "never"]
#: Who answers for a text, from least to most: found somewhere, said by a tool, by an agent, by a person.
MemoryTrust = Literal["untrusted", "tool", "agent", "person"]


class Skill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One thing the agent says it can do."""

    name: str
    description: str = ""
    input_schema: dict[str, Any] | None = None


class Restart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When an exit is followed by a new start, and how fast. ``backoff_s = 0`` restarts at once.

    ``max_restarts`` of 1000 or more within ``window_s``: it is never given up.
    """

    policy: RestartPolicy = "on_failure"
    backoff_s: Seconds = 1
    backoff_max_s: Seconds = 60
    max_restarts: Annotated[int, Meta(ge=0)] = 5
    window_s: Seconds = 300


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When a started process counts as ready, and how long it may take.

    A native agent is ready when it has answered ``initialize``. For an exec agent ``when`` says:
    ``started`` (after ``after_s``), ``notify`` (READY=1 on its NOTIFY_SOCKET), ``log`` (a line that matches
    the regular expression ``pattern``), ``tcp`` (``address`` accepts) or ``http`` (``url`` answers below 400).
    """

    when: Literal["started", "notify", "log", "tcp", "http"] = "started"
    pattern: str = ""
    address: str = ""
    url: str = ""
    timeout_s: Seconds = 30
    after_s: Seconds = 0

    def __post_init__(self) -> None:
        wanted = {"log": "pattern", "tcp": "address", "http": "url"}.get(self.when)
        if wanted and not getattr(self, wanted):
            raise ValueError(f'`{wanted}` is required where `when = "{self.when}"`')
        if self.when == "log":
            import regex  # which, other than `re`, can be told when to give up

            try:
                regex.compile(self.pattern)
            except regex.error as error:
                raise ValueError(f"`pattern` is no regular expression: {error}") from None
        if self.when == "tcp" and not _is_port(self.address.rpartition(":")[2]):
            raise ValueError("`address` is to be HOST:PORT, as in 127.0.0.1:8000")
        if self.when == "http" and not _is_url(self.url):
            raise ValueError("`url` is to be as in http://127.0.0.1:8000/health: http alone, with a host")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text[:6]) < 1 << 16


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme == "http" and bool(parts.hostname) and parts.port != 0 and text.isprintable()
    except ValueError:  # of a port that is none, or of brackets
        return False


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``grace_s`` bounds the whole stop, from the first request to SIGKILL."""

    grace_s: Seconds = 10


class Health(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Proof of life: how often it is asked for, how long an answer may take, and what follows.

    ``watchdog_s``, for exec agents: WATCHDOG=1 is to come on the agent's NOTIFY_SOCKET at least that often (0: need
    not). It finds the span in ``WATCHDOG_USEC``, as under systemd (sd_watchdog_enabled(3)).
    """

    interval_s: Seconds = 10
    timeout_s: Seconds = 5
    watchdog_s: Seconds = 0
    action: Literal["restart", "report"] = "restart"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an agent's whole process tree may use; 0 is no limit.

    ``cpu_percent``: 100 is one core. ``tasks``: processes and threads. ``open_files``: of each process.
    ``output_bytes_per_s``: of log lines; who writes faster is slowed by its own pipe.
    ``concurrency``: runs at once; the rest wait in order.
    """

    concurrency: Annotated[int, Meta(ge=1, le=1000)] = 4
    run_timeout_s: Seconds = 0
    memory_bytes: Bytes = 0
    cpu_percent: Percent = 0
    tasks: Annotated[int, Meta(ge=0, le=2**22)] = 0
    open_files: Annotated[int, Meta(ge=0, le=2**30)] = 0
    output_bytes_per_s: Bytes = 0


class Alerts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Thresholds that raise ``agent.alert``; 0 is none. ``error_rate`` is a fraction of requests."""

    cpu_percent: Percent = 0
    memory_bytes: Bytes = 0
    error_rate: Annotated[float, Meta(ge=0, le=1)] = 0
    restarts: Annotated[int, Meta(ge=0)] = 0
    silence_s: Seconds = 0


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What may be spent, with everything that is delegated; 0 is no limit.

    ``tokens``: in and out. ``calls``: of models, each try of one. ``wall_s``: while it, or what it has delegated, runs.
    """

    tokens: Annotated[int, Meta(ge=0, le=2**53)] = 0
    cost_usd: Annotated[float, Meta(ge=0, le=1e12)] = 0
    calls: Annotated[int, Meta(ge=0, le=2**53)] = 0
    wall_s: Seconds = 0


class AgentBudget(Budget, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``per``: each run has as much, or all runs together in an hour or a day (of UTC), or for good."""

    per: Literal["run", "hour", "day", "total"] = "day"


class Grants(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Patterns (``*`` matches any run of characters). Nothing granted means nothing allowed.

    ``memory_trust``: memories that are trusted less than this never reach the agent.
    """

    tools: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    #: Folders that its file tools may read, and those that they may write to, too.
    files: tuple[str, ...] = ()
    files_write: tuple[str, ...] = ()
    memory_trust: MemoryTrust = "untrusted"


class ToolPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``[tools.NAME]``, of an agent's definition or of ``witsd.toml``; NAME may be a pattern of names.

    ``policy`` holds for calls whose arguments fit any of ``patterns`` (none: for all), each ``ARGUMENT=GLOB``, or a
    glob that any of the arguments may fit (to allow: every text among them); ``options`` are the tool's own.
    """

    policy: Literal["allow", "ask", "deny"] | None = None
    patterns: tuple[str, ...] = ()
    options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.patterns and self.policy is None:
            raise ValueError("`patterns` say which calls `policy` is for: give that, too")


class AgentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One agent. Only ``name``, ``kind`` and, for native and exec, ``command`` are required.

    ``langchain`` hosts what ``options`` name (``witsd.adapters.langchain``); ``command`` runs it by another Python.
    """

    name: Name
    kind: Kind
    command: tuple[str, ...] = ()
    #: external: the process to watch, or the file that its number is written to.
    pid: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    pid_file: str = ""
    cwd: str = "~"
    start: Start = "boot"
    idle_stop_s: Seconds = 300
    env: dict[str, str] = {}
    pass_env: tuple[str, ...] = ()
    #: Started before this one, which waits until they are active, and stopped after it.
    requires: tuple[Name, ...] = ()
    #: Order alone: where both are started, these come first; where both are stopped, last.
    after: tuple[Name, ...] = ()
    skills: tuple[Skill, ...] = ()
    description: str = ""
    run_per_request: bool = False
    stream: bool = True
    #: ``off``: what is said in its sessions is not remembered.
    memory: Literal["on", "off"] = "on"
    #: How many messages of a conversation it is given when it takes it up; the rest is for memory.
    history_messages: Annotated[int, Meta(ge=0, le=1000)] = 200
    restart: Restart = Restart()
    ready: Ready = Ready()
    stop: Stop = Stop()
    health: Health = Health()
    limits: Limits = Limits()
    alerts: Alerts = Alerts()
    grants: Grants = Grants()
    #: What becomes of its calls of tools, by name or pattern of one.
    tools: dict[str, ToolPolicy] = {}
    budget: AgentBudget = AgentBudget()
    options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.name.endswith("\n"):  # which `$` of a pattern lets pass
            raise ValueError("`name` ends with a newline")
        if self.kind in ("native", "exec") and not self.command:
            raise ValueError(f"`command` is required for kind {self.kind!r}")
        if self.ready.when != "started" and self.kind != "exec":
            raise ValueError("`ready.when` is for kind 'exec': a native agent is ready when it answers initialize")
        if self.kind == "external":
            self._check_external()
        elif self.pid or self.pid_file:
            raise ValueError("`pid` and `pid_file` are for kind 'external'")
        if self.health.watchdog_s and (self.kind != "exec" or self.run_per_request):
            raise ValueError("`health.watchdog_s` is for kind 'exec' that runs all the time: a native agent is pinged")
        if self.kind == "assistant" and self.command:
            raise ValueError("`command` has no meaning for kind 'assistant': remove it")
        for name, value in self.env.items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(f"`env`: {name!r} cannot be the name of a variable, or its value holds a NUL")
        if any("\0" in part for part in (*self.command, self.cwd)):
            raise ValueError("`command` and `cwd` cannot hold a NUL")
        if self.run_per_request and self.kind != "exec":
            raise ValueError("`run_per_request` is for kind 'exec'")

    def _check_external(self) -> None:
        if bool(self.pid) == bool(self.pid_file):
            raise ValueError("kind 'external' needs `pid` or `pid_file`, and not both")
        if "\0" in self.pid_file:
            raise ValueError("`pid_file` cannot hold a NUL")
        kept = {"command": (), "start": "boot", "requires": (), "after": (), "limits": Limits(), "grants": Grants()}
        for key, nothing in kept.items():
            if getattr(self, key) != nothing:
                raise ValueError(f"`{key}` has no meaning for kind 'external', which is watched and nothing else")
