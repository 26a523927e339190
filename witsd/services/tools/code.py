"""Foreign code as tools run it: in the sandbox, within its limits, its outcome as an answer."""

from __future__ import annotations

import mimetypes
from typing import Any

from witsd.services.tools.tool import Answer, ToolContext, ToolFailed
from witsd.supervise.sandbox import Outcome
from witsd.supervise.sandbox_ways import SandboxError
from witsd.values.wire.tools import Content, TextContent

#: A tool that runs code waits as long as ``sandbox.time_s`` says, and not for a time of its own.
TIMEOUT_S = 86_400.0
#: What comes back of files, at most.
COLLECT_BYTES = 16 << 20


async def run(context: ToolContext, *, time_s: float | None, stdin: str = "", **what: Any) -> Outcome:
    """Run ``what`` (``argv`` or ``code``). Raises ``ToolFailed`` where it cannot be run."""
    sandboxes = context.reach.sandboxes
    try:
        found = await sandboxes.found()
        if found.way == "none" and context.agent is not None and context.options.get("unwalled") is not True:
            raise ToolFailed(
                "nothing walls in code on this machine. The owner may call this tool; for agents the owner has to set "
                "unwalled = true in the tool's options"
            )
        it = sandboxes.sandbox(time_s=time_s, collect_bytes=COLLECT_BYTES, **what)
        return await sandboxes.run(it, stdin.encode())
    except SandboxError as error:
        raise ToolFailed(str(error)) from error


async def kept(context: ToolContext, outcome: Outcome) -> Answer:
    """``answer``, with what the code wrote kept as artifacts of the run, if it is part of one."""
    links: list[Content] = []
    for name, data in outcome.files:
        link = await context.keep(name, mimetypes.guess_type(name)[0] or "application/octet-stream", data)
        if link is not None:
            links.append(link)
    said = answer(outcome)
    return Answer((*said.content, *links), said.structured, said.is_error)


def answer(outcome: Outcome) -> Answer:
    """As a model reads it, and each part for itself."""
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
    text += [f"[it wrote {name}, {len(data)} bytes]" for name, data in outcome.files]
    text += [f"[{name} was left out: too large, or too many files]" for name in outcome.left_out]
    content: tuple[Content, ...] = (TextContent(text="\n".join(part for part in text if part)),)
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
