"""THE table: wire name -> params, result, scope, and the one service call that answers it.

``dispatch`` reads it to serve, ``protocol/`` is generated from it, and nothing else names a method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from witsd.values.actor import Scope
from witsd.values.wire import agents as a
from witsd.values.wire import approvals as ap
from witsd.values.wire import artifacts as ar
from witsd.values.wire import auth as u
from witsd.values.wire import doctor as d
from witsd.values.wire import events as e
from witsd.values.wire import memory as w
from witsd.values.wire import metrics as x
from witsd.values.wire import models as m
from witsd.values.wire import native as n
from witsd.values.wire import runs as r
from witsd.values.wire import sessions as s
from witsd.values.wire import system as y
from witsd.values.wire import tools as t
from witsd.values.wire.common import Empty

if TYPE_CHECKING:
    from witsd.rpc.call import Call
    from witsd.services.access import Access
    from witsd.services.agents import Agents
    from witsd.services.approvals import Approvals
    from witsd.services.artifacts import Artifacts
    from witsd.services.backup import Backups
    from witsd.services.events import Events
    from witsd.services.memory.blocks import Blocks
    from witsd.services.memory.memory import Memory
    from witsd.services.models.embedders import Embedders
    from witsd.services.models.gateway import Models
    from witsd.services.runs import Runs
    from witsd.services.sessions import Sessions
    from witsd.services.system import System
    from witsd.services.tools.defined import Defined
    from witsd.services.tools.tools import Tools


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """What the methods call. Built once, by the composition root."""

    system: System
    agents: Agents
    runs: Runs
    sessions: Sessions
    events: Events
    models: Models
    embedders: Embedders
    memory: Memory
    blocks: Blocks
    tools: Tools
    defined: Defined
    approvals: Approvals
    artifacts: Artifacts
    access: Access
    backups: Backups


@attrs.frozen
class Method:
    """One method.

    ``scope`` None means that any authenticated caller may use it; ``anonymous`` that no credential is
    needed at all. An agent may call it when ``agents`` is set, within its grants, which the service
    checks. ``mutates`` has each call audited with the params field ``target`` naming what it acts on.
    """

    name: str
    params: type
    result: type
    summary: str
    call: Callable[[Call, Any], Awaitable[Any]]
    scope: Scope | None = attrs.field(default=None, kw_only=True)
    agents: bool = attrs.field(default=False, kw_only=True)
    anonymous: bool = attrs.field(default=False, kw_only=True)
    mutates: bool = attrs.field(default=False, kw_only=True)
    target: str = attrs.field(default="", kw_only=True)


@attrs.frozen
class Notification:
    """A notification a peer may send; ``agents`` ones count only from an agent's own stdio."""

    name: str
    params: type
    summary: str
    call: Callable[[Call, Any], None]
    agents: bool = attrs.field(default=False, kw_only=True)


def method_table(v: Services) -> dict[str, Method]:
    """The methods bound to their services, by wire name, in the order the reference shows them."""
    read, chat, memory, agents, admin = Scope.READ, Scope.CHAT, Scope.MEMORY, Scope.AGENTS, Scope.ADMIN
    tools, approve = Scope.TOOLS, Scope.APPROVE
    rows = (
        Method("initialize", y.InitializeParams, y.InitializeResult,
               "Agree on the version, learn the limits, present a token",
               lambda c, p: v.system.initialize(c, p), agents=True, anonymous=True),
        Method("ping", Empty, Empty, "Answer at once",
               lambda c, p: v.system.ping(c.actor, p), agents=True),
        Method("rpc.discover", Empty, dict, "The OpenRPC document of this protocol",
               lambda c, p: v.system.discover(c.actor, p), agents=True),
        Method("system/status", Empty, y.SystemStatus, "How the daemon is doing and where it listens",
               lambda c, p: v.system.status(c.actor, p), scope=read),
        Method("system/reload", Empty, y.ReloadResult, "Read the definitions again",
               lambda c, p: v.system.reload(c.actor, p), scope=admin, mutates=True),
        Method("system/doctor", Empty, d.DoctorReport, "Look at everything that may go wrong and say what to do",
               lambda c, p: v.system.doctor(c.actor, p), scope=admin),
        Method("system/backup", y.BackupParams, y.Backup, "Copy the database to a file while it is in use",
               lambda c, p: v.backups.make(c.actor, p, c.progress), scope=admin, mutates=True, target="path"),
        Method("system/shutdown", y.ShutdownParams, Empty, "Stop the agents and then the daemon",
               lambda c, p: v.system.shutdown(c.actor, p), scope=admin, mutates=True),
        Method("agents/list", a.AgentsListParams, a.AgentPage, "The agents and the state each is in",
               lambda c, p: v.agents.list(c.actor, p), scope=read),
        Method("agents/get", a.AgentNameParams, a.Agent, "One agent",
               lambda c, p: v.agents.get(c.actor, p), scope=read),
        Method("agents/define", a.AgentsDefineParams, a.Agent, "Write a definition; starts at once when start = boot",
               lambda c, p: v.agents.define(c.actor, p), scope=admin, mutates=True, target="spec.name"),
        Method("agents/remove", a.AgentNameParams, Empty, "Stop an agent and delete its definition",
               lambda c, p: v.agents.remove(c.actor, p), scope=admin, mutates=True, target="name"),
        Method("agents/start", a.AgentsControlParams, a.Agent, "Start an agent; running already is no error",
               lambda c, p: v.agents.start(c.actor, p), scope=agents, mutates=True, target="name"),
        Method("agents/stop", a.AgentsControlParams, a.Agent, "Stop an agent; stopped already is no error",
               lambda c, p: v.agents.stop(c.actor, p), scope=agents, mutates=True, target="name"),
        Method("agents/restart", a.AgentsControlParams, a.Agent, "Stop, then start",
               lambda c, p: v.agents.restart(c.actor, p), scope=agents, mutates=True, target="name"),
        Method("agents/logs", a.AgentsLogsParams, a.AgentsLogsResult, "Lines an agent has written; follow with stream log:NAME",
               lambda c, p: v.agents.logs(c.actor, p), scope=read),
        Method("agents/metrics", x.AgentsMetricsParams, x.AgentsMetricsResult, "What an agent's processes use and how its requests go",
               lambda c, p: v.agents.metrics(c.actor, p), scope=read),
        Method("agents/record", x.AgentsRecordParams, Empty, "Count a request that happened outside a run",
               lambda c, p: v.agents.record(c.actor, p), scope=agents, agents=True),
        Method("runs/start", r.RunsStartParams, r.RunStarted, "Give an agent a piece of work; answers at once",
               lambda c, p: v.runs.start(c.actor, p), scope=chat, agents=True, mutates=True, target="agent"),
        Method("runs/get", r.RunIdParams, r.Run, "One run with its items",
               lambda c, p: v.runs.get(c.actor, p), scope=read, agents=True),
        Method("runs/list", r.RunsListParams, r.RunPage, "Runs, latest first",
               lambda c, p: v.runs.list(c.actor, p), scope=read),
        Method("runs/wait", r.RunsWaitParams, r.Run, "The run once it is over",
               lambda c, p: v.runs.wait(c.actor, p), scope=read, agents=True),
        Method("runs/cancel", r.RunsCancelParams, r.Run, "End a run; over already is no error",
               lambda c, p: v.runs.cancel(c.actor, p), scope=chat, agents=True, mutates=True, target="run_id"),
        Method("runs/respond", r.RunsRespondParams, Empty, "Answer an input request",
               lambda c, p: v.runs.respond(c.actor, p), scope=chat, mutates=True, target="run_id"),
        Method("inputs/request", r.InputsRequestParams, r.InputsRequestResult, "From an agent: ask a person and wait",
               lambda c, p: v.runs.request_input(c.actor, p), agents=True),
        Method("sessions/create", s.SessionsCreateParams, s.Session, "Begin a conversation with an agent",
               lambda c, p: v.sessions.create(c.actor, p), scope=chat, mutates=True, target="agent"),
        Method("sessions/prompt", s.SessionsPromptParams, s.PromptResult, "Say something; answers at once with the run it starts",
               lambda c, p: v.sessions.prompt(c.actor, p), scope=chat, mutates=True, target="session_id"),
        Method("sessions/messages", s.SessionsMessagesParams, s.MessagePage, "A page of what was said",
               lambda c, p: v.sessions.messages(c.actor, p), scope=read, agents=True),
        Method("sessions/get", s.SessionIdParams, s.Session, "One session",
               lambda c, p: v.sessions.get(c.actor, p), scope=read),
        Method("sessions/list", s.SessionsListParams, s.SessionPage, "Sessions, latest first",
               lambda c, p: v.sessions.list(c.actor, p), scope=read),
        Method("sessions/update", s.SessionsUpdateParams, s.Session, "Change title or settings",
               lambda c, p: v.sessions.update(c.actor, p), scope=chat, mutates=True, target="session_id"),
        Method("sessions/search", s.SessionsSearchParams, s.SearchPage, "Find messages by their words",
               lambda c, p: v.sessions.search(c.actor, p), scope=read),
        Method("sessions/fork", s.SessionsForkParams, s.Session, "A new session that shares the past of this one",
               lambda c, p: v.sessions.fork(c.actor, p), scope=chat, mutates=True, target="session_id"),
        Method("sessions/clear", s.SessionIdParams, s.Session, "Forget the messages, keep the session",
               lambda c, p: v.sessions.clear(c.actor, p), scope=chat, mutates=True, target="session_id"),
        Method("sessions/delete", s.SessionIdParams, Empty, "Delete a session and its messages",
               lambda c, p: v.sessions.delete(c.actor, p), scope=chat, mutates=True, target="session_id"),
        Method("sessions/export", s.SessionsExportParams, s.SessionsExportResult, "A session as JSON Lines or Markdown",
               lambda c, p: v.sessions.export(c.actor, p), scope=read),
        Method("sessions/typing", s.SessionsTypingParams, Empty, "Tell the others that you are typing",
               lambda c, p: v.sessions.typing(c.actor, p), scope=chat),
        Method("events/subscribe", e.EventsSubscribeParams, e.EventsSubscribeResult, "State, cursor and what follows, in one call",
               lambda c, p: v.events.subscribe(c.actor, p, c.connection, c.answered), scope=read, agents=True),
        Method("events/unsubscribe", e.EventsUnsubscribeParams, Empty, "End a subscription",
               lambda c, p: v.events.unsubscribe(c.actor, p, c.connection), scope=read, agents=True),
        Method("events/read", e.EventsReadParams, e.EventsReadResult, "A page of one stream's past",
               lambda c, p: v.events.read(c.actor, p), scope=read, agents=True),
        Method("models/list", m.ModelsListParams, m.ModelPage, "The models, and why one is not available",
               lambda c, p: v.models.list(c.actor, p), scope=read, agents=True),
        Method("models/complete", m.ModelsCompleteParams, m.ModelsCompleteResult, "One model call; deltas come as progress",
               lambda c, p: v.models.complete(c.actor, p, c.progress), scope=chat, agents=True),
        Method("models/embed", m.ModelsEmbedParams, m.ModelsEmbedResult, "Texts as vectors, by the model that memory uses or another",
               lambda c, p: v.embedders.embed(c.actor, p), scope=chat, agents=True),
        Method("tools/list", t.ToolsListParams, t.ToolPage, "The tools the caller may use, and why one is not available",
               lambda c, p: v.tools.list(c.actor, p), scope=tools, agents=True),
        Method("tools/call", t.ToolsCallParams, t.ToolsCallResult, "Call a tool; one that fails says so in its answer",
               lambda c, p: v.tools.call(c.actor, p), scope=tools, agents=True),
        Method("tools/define", t.ToolsDefineParams, t.ToolDefined, "A tool made at run time: its code runs in the sandbox; an agent's after an approval",
               lambda c, p: v.defined.define(c.actor, p), scope=admin, agents=True, mutates=True, target="name"),
        Method("tools/remove", t.ToolsRemoveParams, Empty, "Remove a tool that was defined",
               lambda c, p: v.defined.remove(c.actor, p), scope=admin, agents=True, mutates=True, target="name"),
        Method("approvals/list", ap.ApprovalsListParams, ap.ApprovalPage, "What a person is asked before a tool acts, latest first",
               lambda c, p: v.approvals.list(c.actor, p), scope=read),
        Method("approvals/resolve", ap.ApprovalsResolveParams, ap.Approval, "Allow or deny one, and remember the answer if wanted",
               lambda c, p: v.approvals.resolve(c.actor, p), scope=approve, mutates=True, target="approval_id"),
        Method("approvals/rules", ap.ApprovalsRulesParams, ap.ToolRulePage, "The answers that are remembered",
               lambda c, p: v.approvals.rules(c.actor, p), scope=read),
        Method("approvals/revoke", ap.RuleIdParams, Empty, "Forget a remembered answer",
               lambda c, p: v.approvals.revoke(c.actor, p), scope=approve, mutates=True, target="rule_id"),
        Method("artifacts/put", ar.ArtifactsPutParams, ar.Artifact, "Keep a file that a run has made",
               lambda c, p: v.artifacts.put(c.actor, p), scope=chat, agents=True),
        Method("artifacts/get", ar.ArtifactsGetParams, ar.ArtifactPiece, "One of them, a piece at a time",
               lambda c, p: v.artifacts.get(c.actor, p), scope=read, agents=True),
        Method("artifacts/list", ar.ArtifactsListParams, ar.ArtifactPage, "What a run, or all of them, have made, latest first",
               lambda c, p: v.artifacts.list(c.actor, p), scope=read, agents=True),
        Method("memory/add", w.MemoryAddParams, w.MemoryAdded, "Remember a text; found by its words at once, by its meaning soon after",
               lambda c, p: v.memory.add(c.actor, p), scope=memory, agents=True),
        Method("memory/search", w.MemorySearchParams, w.MemorySearchResult, "Find by words and by meaning; each hit says why",
               lambda c, p: v.memory.asking.search(c.actor, p), scope=memory, agents=True),
        Method("memory/context", w.MemoryContextParams, w.MemoryContextResult, "What a prompt should carry, within so many tokens",
               lambda c, p: v.memory.asking.context(c.actor, p), scope=memory, agents=True),
        Method("memory/get", w.MemoryIdParams, w.Memory, "One record",
               lambda c, p: v.memory.get(c.actor, p), scope=memory, agents=True),
        Method("memory/update", w.MemoryUpdateParams, w.Memory, "Change a record; what it was goes into its history",
               lambda c, p: v.memory.update(c.actor, p), scope=memory, agents=True, mutates=True, target="memory_id"),
        Method("memory/delete", w.MemoryDeleteParams, w.MemoryDeleteResult, "Delete records and every trace of their text",
               lambda c, p: v.memory.delete(c.actor, p), scope=memory, agents=True, mutates=True, target="memory_id"),
        Method("memory/list", w.MemoryListParams, w.MemoryPage, "Records, latest first",
               lambda c, p: v.memory.list(c.actor, p), scope=memory, agents=True),
        Method("memory/history", w.MemoryIdParams, w.MemoryHistoryResult, "How a record has changed",
               lambda c, p: v.memory.history(c.actor, p), scope=memory, agents=True),
        Method("memory/clear", w.MemoryClearParams, w.MemoryClearResult, "Delete the records of a namespace, or of one of its sessions",
               lambda c, p: v.memory.clear(c.actor, p), scope=memory, agents=True, mutates=True, target="namespace"),
        Method("memory/revert", w.MemoryRevertParams, w.MemoryRevertResult, "Take back what a run wrote, and what derives from it",
               lambda c, p: v.memory.revert(c.actor, p), scope=memory, agents=True, mutates=True, target="run_id"),
        Method("memory/import", w.MemoryImportParams, w.MemoryImportResult, "Write down records that come from elsewhere, each once",
               lambda c, p: v.memory.import_(c.actor, p), scope=memory),
        Method("memory/export", w.MemoryExportParams, w.MemoryExportResult, "A piece of all records, as JSON Lines or Markdown",
               lambda c, p: v.memory.export(c.actor, p), scope=memory),
        Method("memory/namespaces", w.MemoryNamespacesParams, w.MemoryNamespacePage, "The namespaces the caller may use",
               lambda c, p: v.memory.namespaces(c.actor, p), scope=memory, agents=True),
        Method("memory/stats", w.MemoryStatsParams, w.MemoryStats, "How much there is, and how far its embedding is",
               lambda c, p: v.memory.stats(c.actor, p), scope=memory, agents=True),
        Method("memory/reindex", w.MemoryReindexParams, w.MemoryStats, "Use another embedder; embeds again in the background",
               lambda c, p: v.memory.reindex(c.actor, p), scope=admin, mutates=True, target="embedder"),
        Method("blocks/list", w.BlocksListParams, w.BlockPage, "The texts that are always in an agent's prompt",
               lambda c, p: v.blocks.list(c.actor, p), scope=memory, agents=True),
        Method("blocks/get", w.BlocksGetParams, w.Block, "One of them, or an earlier version of it",
               lambda c, p: v.blocks.get(c.actor, p), scope=memory, agents=True),
        Method("blocks/set", w.BlocksSetParams, w.Block, "Write one of them; the versions before it are kept",
               lambda c, p: v.blocks.set(c.actor, p), scope=memory, agents=True, mutates=True, target="agent"),
        Method("auth/ticket", Empty, u.Ticket, "A single-use ticket that lets a browser in",
               lambda c, p: v.access.ticket(c.actor, p), scope=admin, mutates=True),
        Method("auth/logout", Empty, Empty, "End the browser session this connection belongs to",
               lambda c, p: v.access.logout(c.actor, p), mutates=True),
        Method("tokens/create", u.TokensCreateParams, u.TokenCreated, "A scoped token for a program",
               lambda c, p: v.access.create_token(c.actor, p), scope=admin, mutates=True, target="name"),
        Method("tokens/list", u.TokensListParams, u.TokenPage, "The tokens, without their secrets",
               lambda c, p: v.access.list_tokens(c.actor, p), scope=admin),
        Method("tokens/revoke", u.TokensRevokeParams, Empty, "End a token and the connections that use it",
               lambda c, p: v.access.revoke_token(c.actor, p), scope=admin, mutates=True, target="token_id"),
    )
    return {row.name: row for row in rows}


def notification_table(v: Services) -> dict[str, Notification]:
    """What peers may tell the daemon. ``notifications/cancelled`` is the peer's own and not here."""
    rows = (
        Notification("notifications/item", n.ItemNotification, "Insert or replace an item of a run",
                     lambda c, p: v.runs.book.item(c.actor, p), agents=True),
        Notification("notifications/delta", n.DeltaNotification, "Append to an item's text",
                     lambda c, p: v.runs.book.delta(c.actor, p), agents=True),
    )
    return {row.name: row for row in rows}
