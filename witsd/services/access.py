"""Credentials: scoped tokens, single-use browser tickets, browser sessions, and who is connected with which.

Only hashes are kept. A credential that ends, by revocation, logout or age, ends its connections.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

import attrs
import msgspec
import trio

from witsd.journal.event import entry
from witsd.values.actor import ANONYMOUS, Actor, Scope
from witsd.values.clock import Clock, rfc3339
from witsd.values.errors import (
    InvalidParams,
    InvalidState,
    LimitExceeded,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
)
from witsd.values.ids import Ids
from witsd.values.wire.auth import (
    Ticket,
    Token,
    TokenCreated,
    TokenPage,
    TokensCreateParams,
    TokensListParams,
    TokensRevokeParams,
)
from witsd.values.wire.common import UNSET, Empty
from witsd.values.wire.event_types import AuditData

if TYPE_CHECKING:
    import apsw

    from witsd.journal.journal import Journal, Tx

TICKET_S = 30.0
#: Tickets waiting to be redeemed; beyond that ``auth/ticket`` answers overloaded.
MAX_TICKETS = 32
BROWSER_SESSION_S = 7 * 86_400
#: Browser sessions alive; a further one ends the oldest.
MAX_BROWSER_SESSIONS = 32
MAX_TOKEN_S = 100 * 366 * 86_400
#: How exact ``last_used_at`` is.
LAST_USED_US = 60_000_000
#: What a connection whose credential ended has left to deliver the answer that says so.
_FAREWELL_S = 0.25

_TOKEN_PREFIX = "witsd_"  # noqa: S105 - what tells a token from other secrets
#: Crockford's base 32: a ticket may be typed by a person, and no two of its letters read alike.
_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"
_READ_AS = str.maketrans({"o": "0", "i": "1", "l": "1", "-": None, " ": None})


_INSERT = "INSERT INTO tokens(token_id, name, hash, scopes, created_us, expires_us) VALUES (?,?,?,?,?,?)"


class Connected(Protocol):
    """The part of ``witsd.rpc.call.Connection`` that changes when a credential comes or goes."""

    def set_actor(self, actor: Actor) -> None: ...


class _TokenRow(msgspec.Struct, frozen=True):
    token_id: str
    name: str
    hash: bytes
    scopes: tuple[Scope, ...]
    created_us: int
    expires_us: int | None
    last_used_us: int | None

    @property
    def credential(self) -> str:
        return self.token_id


class _BrowserRow(msgspec.Struct, frozen=True):
    session_hash: bytes
    tab_hash: bytes
    created_us: int
    expires_us: int

    @property
    def credential(self) -> str:
        return "browser_" + self.session_hash.hex()[:16]


class BrowserKeys(msgspec.Struct, frozen=True):
    """What a redeemed ticket becomes: the cookie's value and the secret of the tab, each shown once."""

    cookie: str
    tab_secret: str
    #: The session's id, which is no secret.
    credential: str


@attrs.define(eq=False)
class Visit:
    """One connection, from its beginning to its end. Cancelling ``scope`` ends it."""

    scope: trio.CancelScope
    #: Values of cookies that came with an exact Origin: half of a browser's credential.
    cookies: tuple[str, ...] = ()
    connection: Connected | None = None
    authenticated: trio.Event = attrs.field(factory=trio.Event)
    credential: str | None = None


@attrs.define(eq=False)
class Access:
    """The ``auth/*`` and ``tokens/*`` methods, and what the door asks. Made by ``open_access``."""

    _journal: Journal
    _clock: Clock
    _ids: Ids
    _tokens: dict[bytes, _TokenRow] = attrs.field(factory=dict)
    _browsers: dict[bytes, _BrowserRow] = attrs.field(factory=dict)
    #: Hash -> when it ends, monotonic seconds. In memory only: a restart ends them all.
    _tickets: dict[bytes, float] = attrs.field(factory=dict)
    _visits: set[Visit] = attrs.field(factory=set)
    #: Where browsers go, ``http://127.0.0.1:9487``; None while HTTP is off. The door sets it.
    http_url: str | None = None

    # ---- methods ----------------------------------------------------------------------------------

    async def ticket(self, actor: Actor, params: Empty) -> Ticket:
        """A ticket becomes a session with all scopes, so its maker needs them all."""
        for scope in Scope:
            actor.require(scope)
        if self.http_url is None:
            raise InvalidState("HTTP is off: set listen.http and start again", state="http_off")
        now = self._clock.monotonic()
        self._tickets = {key: end for key, end in self._tickets.items() if end > now}
        if len(self._tickets) >= MAX_TICKETS:
            wait_s = min(self._tickets.values()) - now
            raise Overloaded("too many tickets are waiting to be used", retry_after_ms=int(wait_s * 1000) + 1)
        bits = int.from_bytes(os.urandom(13), "big")
        letters = "".join(_LETTERS[bits >> shift & 31] for shift in range(0, 100, 5))
        self._tickets[_hash(letters)] = now + TICKET_S
        grouped = "-".join(letters[at : at + 5] for at in range(0, 20, 5))
        return Ticket(ticket=grouped, url=f"{self.http_url}/session", expires_s=TICKET_S)

    async def logout(self, actor: Actor, params: Empty) -> Empty:
        """End the caller's browser session, in all its tabs."""
        row = next((row for row in self._browsers.values() if row.credential == actor.credential), None)
        if row is None:
            raise InvalidState(f"{actor.label} is not signed in through a browser", state=actor.kind)
        delete = ("DELETE FROM browser_sessions WHERE session_hash = ?", (row.session_hash,))

        def ended(_: object) -> None:
            self._browsers.pop(row.session_hash, None)
            self._end(row.credential)

        await self._journal.write(lambda tx: tx.execute(*delete), then=ended)
        return Empty()

    async def create_token(self, actor: Actor, params: TokensCreateParams) -> TokenCreated:
        """Nobody gives away a scope that they do not hold themselves."""
        for scope in params.scopes:
            actor.require(scope)
        if params.expires_s is not None and params.expires_s > MAX_TOKEN_S:
            raise InvalidParams(
                f"expires_s may be at most {MAX_TOKEN_S}: leave it out for no end", path="params.expires_s"
            )
        secret = _TOKEN_PREFIX + _secret()
        now = self._clock.wall_us()
        scopes = tuple(scope for scope in Scope if scope in params.scopes)
        expires = None if params.expires_s is None else now + int(params.expires_s * 1_000_000)
        row = _TokenRow(self._ids.new("token"), params.name, _hash(secret), scopes, now, expires, None)
        values = (row.token_id, row.name, row.hash, json.dumps(scopes), now, expires)

        def created(_: object) -> None:
            self._tokens[row.hash] = row

        await self._journal.write(lambda tx: tx.execute(_INSERT, values), then=created)
        return TokenCreated(token_id=row.token_id, token=secret)

    async def list_tokens(self, actor: Actor, params: TokensListParams) -> TokenPage:
        """In the order of creation; expired ones stay until they are revoked."""
        rows = sorted(self._tokens.values(), key=lambda row: row.token_id)
        if params.cursor is not None:
            rows = [row for row in rows if row.token_id > params.cursor]
        more = len(rows) > params.limit
        rows = rows[: params.limit]
        return TokenPage(
            items=tuple(
                Token(
                    token_id=row.token_id,
                    name=row.name,
                    scopes=row.scopes,
                    created_at=rfc3339(row.created_us),
                    expires_at=UNSET if row.expires_us is None else rfc3339(row.expires_us),
                    last_used_at=UNSET if row.last_used_us is None else rfc3339(row.last_used_us),
                )
                for row in rows
            ),
            next_cursor=rows[-1].token_id if more else UNSET,
        )

    async def revoke_token(self, actor: Actor, params: TokensRevokeParams) -> Empty:
        """The token is dead when this returns, and its connections close. Raises ``NotFound``."""
        row = next((row for row in self._tokens.values() if row.token_id == params.token_id), None)
        if row is None:
            raise NotFound(f"there is no token {params.token_id!r}", kind="token", id=params.token_id)

        def ended(_: object) -> None:
            self._tokens.pop(row.hash, None)
            self._end(row.token_id)

        delete = ("DELETE FROM tokens WHERE token_id = ?", (row.token_id,))
        await self._journal.write(lambda tx: tx.execute(*delete), then=ended)
        return Empty()

    # ---- what the door asks -----------------------------------------------------------------------

    def authenticate_token(self, secret: str) -> Actor | None:
        """The client that holds this token; None for one that is unknown, revoked or expired."""
        digest = _hash(secret)
        row = self._tokens.get(digest)
        now = self._clock.wall_us()
        if row is None or not hmac.compare_digest(row.hash, digest):
            return None
        if row.expires_us is not None and row.expires_us <= now:
            return None
        if row.last_used_us is None or now - row.last_used_us >= LAST_USED_US:
            self._tokens[digest] = msgspec.structs.replace(row, last_used_us=now)
            with suppress(LimitExceeded):  # the journal is closing: not worth refusing anybody for
                used = ("UPDATE tokens SET last_used_us = ? WHERE token_id = ?", (now, row.token_id))
                self._journal.append_nowait(statements=[used], keep=False)
        return Actor(
            kind="client",
            label=f"token:{row.name}",
            scopes=frozenset(row.scopes),
            credential=row.token_id,
        )

    async def redeem_ticket(self, ticket: str) -> BrowserKeys | None:
        """Turn a ticket into a browser session, once; None for one that is unknown, used or too old."""
        ends = self._tickets.pop(_hash(ticket.strip().lower().translate(_READ_AS)), None)
        if ends is None or ends <= self._clock.monotonic():
            return None
        cookie, tab_secret = _secret(), _secret()
        now = self._clock.wall_us()
        ends_us = now + BROWSER_SESSION_S * 1_000_000
        row = _BrowserRow(_hash(cookie), _hash(tab_secret), now, ends_us)
        over = [old for old in self._browsers.values() if old.expires_us <= now]
        living = sorted((o for o in self._browsers.values() if o not in over), key=lambda o: o.created_us)
        over += living[: max(0, len(living) + 1 - MAX_BROWSER_SESSIONS)]

        def keep(tx: Tx) -> None:
            for old in over:
                tx.execute("DELETE FROM browser_sessions WHERE session_hash = ?", (old.session_hash,))
            tx.execute(
                "INSERT INTO browser_sessions VALUES (?,?,?,?)",
                (row.session_hash, row.tab_hash, row.created_us, row.expires_us),
            )
            tx.emit(
                entry(
                    "audit",
                    "audit.call",
                    AuditData(actor="browser", method="POST /session", target=row.credential),
                )
            )

        def kept(_: object) -> None:
            for old in over:
                self._browsers.pop(old.session_hash, None)
                self._end(old.credential)
            self._browsers[row.session_hash] = row

        await self._journal.write(keep, then=kept)
        return BrowserKeys(cookie, tab_secret, row.credential)

    def authenticate_browser(self, cookies: Sequence[str], tab_secret: str) -> Actor | None:
        """The browser session of which one of ``cookies`` and the tab's secret are the two halves.

        Several, because each tab that came with a ticket of its own has a session and a cookie of its own.
        """
        tab_hash = _hash(tab_secret)
        for cookie in cookies:
            row = self._browser(cookie)
            if row is not None and hmac.compare_digest(row.tab_hash, tab_hash):
                return Actor(
                    kind="client", label="browser", scopes=frozenset(Scope), credential=row.credential
                )
        return None

    def knows_cookie(self, cookie: str) -> bool:
        """Whether a live session has this cookie: says nothing about who holds it."""
        return self._browser(cookie) is not None

    def _browser(self, cookie: str) -> _BrowserRow | None:
        row = self._browsers.get(_hash(cookie))
        return None if row is None or row.expires_us <= self._clock.wall_us() else row

    def enter(self, connection: Connected, actor: Actor, secret: str | None) -> Actor:
        """``initialize`` with or without a token: who this connection speaks for from now on.

        Raises ``Unauthenticated`` for a bad secret and where there is neither an actor nor a secret,
        ``PermissionDenied`` for an agent, which cannot become somebody else.
        """
        if secret is None:
            if actor.kind == "anonymous":
                raise Unauthenticated(
                    "this connection has no credential: send a token as initialize.token, or in the header "
                    "Authorization: Bearer (witsd token create NAME makes one)"
                )
            return actor
        if actor.kind == "agent":
            raise PermissionDenied(f"{actor.label} is an agent and stays one", needs="owner")
        visit = next((visit for visit in self._visits if visit.connection is connection), None)
        found = self.authenticate_token(secret)
        if found is None and visit is not None:
            found = self.authenticate_browser(visit.cookies, secret)
        if found is None:
            raise Unauthenticated("this token is not known here: it may be mistyped, revoked or expired")
        connection.set_actor(found)
        if visit is not None:
            self.admit(visit, found)
        return found

    @contextmanager
    def visit(self, scope: trio.CancelScope, actor: Actor, cookies: Sequence[str] = ()) -> Iterator[Visit]:
        """Hold a connection for as long as it lasts, so that it can be ended with its credential."""
        visit = Visit(scope, tuple(cookies))
        self._visits.add(visit)
        try:
            if actor.kind != "anonymous":
                self.admit(visit, actor)
            yield visit
        finally:
            self._visits.discard(visit)

    def admit(self, visit: Visit, actor: Actor) -> None:
        """This connection now speaks for ``actor``, and for no longer than the credential lasts."""
        visit.credential = actor.credential
        ends = self._expires_us(actor.credential)
        left = float("inf") if ends is None else (ends - self._clock.wall_us()) / 1_000_000
        visit.scope.deadline = trio.current_time() + left
        visit.authenticated.set()

    def connections_of(self, credential: str) -> tuple[Visit, ...]:
        """The connections that speak for this token id or browser session."""
        return tuple(visit for visit in self._visits if visit.credential == credential)

    def _expires_us(self, credential: str | None) -> int | None:
        if credential is None:
            return None
        rows: list[_TokenRow | _BrowserRow] = [*self._tokens.values(), *self._browsers.values()]
        return next((row.expires_us for row in rows if row.credential == credential), None)

    def _end(self, credential: str) -> None:
        """Nothing more is allowed from now on; the answer on its way still gets out."""
        for visit in self.connections_of(credential):
            if visit.connection is not None:
                visit.connection.set_actor(ANONYMOUS)
            visit.scope.deadline = min(visit.scope.deadline, trio.current_time() + _FAREWELL_S)


async def open_access(journal: Journal, clock: Clock, ids: Ids) -> Access:
    """Load what is stored."""

    def load(db: apsw.Connection) -> tuple[list[_TokenRow], list[_BrowserRow]]:
        tokens = [
            _TokenRow(token_id, name, digest, tuple(Scope(s) for s in json.loads(scopes)), made, ends, used)
            for token_id, name, digest, scopes, made, ends, used in db.execute(
                "SELECT token_id, name, hash, scopes, created_us, expires_us, last_used_us FROM tokens"
            )
        ]
        browsers = [
            _BrowserRow(*row)
            for row in db.execute(
                "SELECT session_hash, tab_hash, created_us, expires_us FROM browser_sessions"
            )
        ]
        return tokens, browsers

    tokens, browsers = await journal.store.read(load)
    access = Access(journal, clock, ids)
    access._tokens = {row.hash: row for row in tokens}
    access._browsers = {row.session_hash: row for row in browsers}
    return access


def _hash(secret: str) -> bytes:
    """Secrets are 100 random bits and more, so a plain hash is as good as a slow one."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _secret() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode()
