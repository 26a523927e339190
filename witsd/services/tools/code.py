"""Foreign code as tools run it: in the sandbox, within what the caller was granted, its outcome as an answer."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

from witsd.services.tools.places import roots
from witsd.services.tools.tool import Answer, ToolContext, ToolFailed
from witsd.supervise.sandbox import Outcome
from witsd.supervise.sandbox_ways import SandboxError
from witsd.values.actor import Scope
from witsd.values.errors import LimitExceeded
from witsd.values.wire.tools import Content, TextContent

#: A tool that runs code waits as long as ``sandbox.time_s`` says, and not for a time of its own.
TIMEOUT_S = 86_400.0
#: What comes back of files, at most.
COLLECT_BYTES = 16 << 20


async def run(
    context: ToolContext, *, time_s: float | None, writes: bool = False, stdin: str = "", **what: Any
) -> Outcome:
    """Run ``what`` (``argv`` or ``code``) where it may read what the caller may, and write if it ``writes``.

    Raises ``ToolFailed`` where it cannot be run.
    """
    sandboxes = context.reach.sandboxes
    network = writes and context.options.get("network") is True
    try:
        found = await sandboxes.found()
        owner = context.actor.agent is None and Scope.ADMIN in context.actor.scopes
        if found.way == "none" and not owner and context.options.get("unwalled") is not True:
            raise ToolFailed(
                "nothing walls in code on this machine. The owner may call this tool; for others the owner has to set "
                "unwalled = true in the tool's options"
            )
        readable, writable = _granted(context, write=False), _granted(context, write=True) if writes else ()
        cwd = _start(context, (*readable, *writable)) if writes else None
        it = sandboxes.sandbox(
            time_s=time_s,
            readable=readable,
            writable=writable,
            cwd=cwd,
            network=network,
            collect_bytes=COLLECT_BYTES if cwd is None else 0,
            **what,
        )
        return await sandboxes.run(it, stdin.encode())
    except SandboxError as error:
        raise ToolFailed(str(error)) from error


def _granted(context: ToolContext, *, write: bool) -> tuple[Path, ...]:
    """The owner's code gets the folder that the owner is in, and none else."""
    granted = roots(context, write=write)
    if granted == (Path("/"),):
        cwd = context.cwd
        return (cwd,) if cwd is not None and cwd.is_dir() and cwd != Path("/") else ()
    return granted


def _start(context: ToolContext, granted: tuple[Path, ...]) -> Path | None:
    """Its working folder, if that is granted; else the first that is; else one of its own."""
    cwd = context.cwd
    if cwd is not None and any(cwd.is_relative_to(root) for root in granted):
        return cwd
    return next(iter(granted), None)


async def answer(context: ToolContext, outcome: Outcome) -> Answer:
    """As a model reads it, and each part for itself. Files become artifacts of the run, where there is one."""
    said = {
        "stdout": outcome.stdout.decode("utf-8", "replace"),
        "stderr": outcome.stderr.decode("utf-8", "replace"),
    }
    text = [said["stdout"].rstrip("\n")]
    if outcome.value is not None:
        text.append(outcome.value)
    text.append(said["stderr"].rstrip("\n"))
    text += [f"[{name} was cut: sandbox.output_bytes]" for name in sorted(outcome.truncated)]
    if outcome.limit:
        text.append(f"[{outcome.reason}]")
    elif outcome.signal is not None:
        text.append(f"[it was killed by signal {outcome.signal}]")
    elif outcome.exit_code:
        text.append(f"[exit code {outcome.exit_code}]")
    links, notes = await kept(context, outcome)
    content: tuple[Content, ...] = (TextContent(text="\n".join(part for part in (*text, *notes) if part)), *links)
    structured = {
        "status": outcome.status,
        "exit_code": outcome.exit_code,
        "value": outcome.value,
        **said,
        "files": [name for name, _ in outcome.files],
        **({"limit": outcome.limit, "reason": outcome.reason} if outcome.limit else {}),
        **({"truncated": sorted(outcome.truncated)} if outcome.truncated else {}),
    }
    present = {name: value for name, value in structured.items() if value is not None}
    return Answer(content, present, outcome.status != "done")


async def kept(context: ToolContext, outcome: Outcome) -> tuple[list[Content], list[str]]:
    """Keep its files as artifacts: the links to them, and what is to be said of each."""
    links: list[Content] = []
    notes = [f"[{name} was left out: too large, or too many files]" for name in outcome.left_out]
    for name, data in outcome.files:
        try:
            link = await context.keep(name, mimetypes.guess_type(name)[0] or "application/octet-stream", data)
        except LimitExceeded as error:
            notes.append(f"[{name} was not kept: {error.message}]")
            continue
        if link is None:
            notes.append(f"[it wrote {name}, {len(data)} bytes, which are kept of runs only]")
        else:
            links.append(link)
            notes.append(f"[it wrote {name}, {len(data)} bytes]")
    return links, notes
