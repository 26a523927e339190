"""Tokens, tickets and browser sessions over a real journal: what is kept, for how long, and for whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from tests.support.door import FakeClock
from witsd.door.auth import Policy, bearer_token, our_cookies
from witsd.journal.journal import open_journal
from witsd.journal.store import open_store
from witsd.services import access as rules
from witsd.services.access import Access, open_access
from witsd.values.actor import ANONYMOUS, OWNER, Actor, Scope
from witsd.values.clock import SystemClock
from witsd.values.errors import (
    InvalidParams,
    InvalidState,
    NotFound,
    Overloaded,
    PermissionDenied,
)
from witsd.values.ids import TimeOrderedIds
from witsd.values.wire.auth import TokensCreateParams, TokensListParams, TokensRevokeParams
from witsd.values.wire.common import UNSET, Empty

CLERK = Actor(kind="client", label="token:clerk", scopes=frozenset({Scope.ADMIN, Scope.READ}))


@asynccontextmanager
async def opened(tmp_path: Path, clock: FakeClock | None = None) -> AsyncIterator[Access]:
    clock = clock or FakeClock()
    async with (
        open_store(tmp_path / "test.db") as store,
        open_journal(store, clock, epoch="e") as journal,
    ):
        access = await open_access(journal, clock, TimeOrderedIds(SystemClock().wall_us))
        access.http_url = "http://127.0.0.1:9487"
        yield access


def create(*scopes: Scope, expires_s: float | None = None) -> TokensCreateParams:
    return TokensCreateParams(name="ci", scopes=scopes or (Scope.READ,), expires_s=expires_s)


async def test_credentials_survive_a_restart_and_tickets_do_not(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as access:
        made = await access.create_token(OWNER, create(Scope.CHAT, Scope.READ))
        keys = await access.redeem_ticket((await access.ticket(OWNER, Empty())).ticket)
        assert keys is not None
        waiting = (await access.ticket(OWNER, Empty())).ticket
    async with opened(tmp_path, clock) as access:
        actor = access.authenticate_token(made.token)
        assert actor is not None
        assert (actor.kind, actor.label, actor.credential) == ("client", "token:ci", made.token_id)
        assert actor.scopes == {Scope.CHAT, Scope.READ}
        browser = access.authenticate_browser(["x", keys.cookie], keys.tab_secret)
        assert browser is not None
        assert (browser.label, browser.scopes) == ("browser", frozenset(Scope))
        assert await access.redeem_ticket(waiting) is None
        await access.logout(browser, Empty())
        await access.revoke_token(OWNER, TokensRevokeParams(token_id=made.token_id))
    async with opened(tmp_path, clock) as access:
        assert access.authenticate_token(made.token) is None
        assert access.authenticate_browser([keys.cookie], keys.tab_secret) is None


async def test_the_file_holds_no_secret(tmp_path: Path) -> None:
    async with opened(tmp_path) as access:
        token = (await access.create_token(OWNER, create())).token
        keys = await access.redeem_ticket((await access.ticket(OWNER, Empty())).ticket)
        assert keys is not None
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"token_" in stored  # it is the right file
    for secret in (token, token.removeprefix("witsd_"), keys.cookie, keys.tab_secret):
        assert secret.encode() not in stored


async def test_signing_in_is_audited(tmp_path: Path) -> None:
    async with opened(tmp_path) as access:
        keys = await access.redeem_ticket((await access.ticket(OWNER, Empty())).ticket)
        rows = await access._journal.store.read(
            lambda db: db.execute(
                "SELECT type, data FROM events JOIN streams USING (stream_id) WHERE name = 'audit'"
            ).fetchall()
        )
        assert keys is not None
        assert [kind for kind, _ in rows] == ["audit.call"]
        assert isinstance(rows[0][1], bytes)
        assert keys.credential.encode() in rows[0][1]


async def test_no_one_gives_away_more_than_they_have(tmp_path: Path) -> None:
    async with opened(tmp_path) as access:
        await access.create_token(CLERK, create(Scope.READ))
        with pytest.raises(PermissionDenied) as refused:
            await access.create_token(CLERK, create(Scope.READ, Scope.CHAT))
        assert refused.value.data["needs"] == "chat"
        with pytest.raises(PermissionDenied):  # a browser session has every scope
            await access.ticket(CLERK, Empty())


async def test_expiry(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as access:
        token = (await access.create_token(OWNER, create(expires_s=10))).token
        keys = await access.redeem_ticket((await access.ticket(OWNER, Empty())).ticket)
        assert keys is not None
        clock.now += 9.9
        assert access.authenticate_token(token) is not None
        clock.now += 0.1
        assert access.authenticate_token(token) is None
        clock.now += rules.BROWSER_SESSION_S - 11
        assert access.authenticate_browser([keys.cookie], keys.tab_secret) is not None
        clock.now += 1
        assert access.authenticate_browser([keys.cookie], keys.tab_secret) is None
        assert not access.knows_cookie(keys.cookie)
        with pytest.raises(InvalidParams):
            await access.create_token(OWNER, create(expires_s=1e300))


async def test_last_used_is_written_at_most_once_a_minute(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as access:
        made = await access.create_token(OWNER, create())

        async def used() -> object:
            return (await access.list_tokens(OWNER, TokensListParams())).items[0].last_used_at

        assert await used() is UNSET
        access.authenticate_token(made.token)
        first = await used()
        assert first is not UNSET
        clock.now += 59
        access.authenticate_token(made.token)
        assert await used() == first
        clock.now += 1
        access.authenticate_token(made.token)
        later = await used()
        assert later != first
    async with opened(tmp_path, clock) as access:
        assert (await access.list_tokens(OWNER, TokensListParams())).items[0].last_used_at == later


async def test_tokens_are_listed_page_by_page(tmp_path: Path) -> None:
    async with opened(tmp_path) as access:
        made = [(await access.create_token(OWNER, create())).token_id for _ in range(5)]
        seen: list[str] = []
        cursor: str | None = None
        for size in (2, 2, 1):
            page = await access.list_tokens(OWNER, TokensListParams(cursor=cursor, limit=2))
            assert len(page.items) == size
            seen += [token.token_id for token in page.items]
            cursor = None if isinstance(page.next_cursor, type(UNSET)) else page.next_cursor
        assert cursor is None
        assert seen == sorted(made)
        with pytest.raises(NotFound):
            await access.revoke_token(OWNER, TokensRevokeParams(token_id="token_none"))


async def test_outstanding_tickets_are_bounded(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as access:
        for _ in range(rules.MAX_TICKETS):
            await access.ticket(OWNER, Empty())
        with pytest.raises(Overloaded) as refused:
            await access.ticket(OWNER, Empty())
        clock.now += refused.value.data["retry_after_ms"] / 1000
        await access.ticket(OWNER, Empty())


async def test_browser_sessions_are_bounded_and_the_oldest_goes(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as access:

        async def sign_in() -> rules.BrowserKeys:
            clock.now += 1
            keys = await access.redeem_ticket((await access.ticket(OWNER, Empty())).ticket)
            assert keys is not None
            return keys

        oldest = await sign_in()
        browser = access.authenticate_browser([oldest.cookie], oldest.tab_secret)
        assert browser is not None
        scope = trio.CancelScope()
        with access.visit(scope, browser):
            others = [await sign_in() for _ in range(rules.MAX_BROWSER_SESSIONS - 1)]
            assert access.knows_cookie(oldest.cookie)
            assert scope.deadline > trio.current_time() + 3600
            others.append(await sign_in())
            # Its connection goes with it, within a moment.
            assert scope.deadline <= trio.current_time() + 1
        assert not access.knows_cookie(oldest.cookie)
        assert all(access.knows_cookie(keys.cookie) for keys in others)


async def test_a_ticket_raced_for_is_won_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as access:
        ticket = (await access.ticket(OWNER, Empty())).ticket
        won: list[object] = []

        async def redeem() -> None:
            won.append(await access.redeem_ticket(ticket))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(redeem)
        assert sum(keys is not None for keys in won) == 1


async def test_without_http_there_is_no_ticket_and_no_logout_without_a_browser(tmp_path: Path) -> None:
    async with opened(tmp_path) as access:
        access.http_url = None
        with pytest.raises(InvalidState):
            await access.ticket(OWNER, Empty())
        for actor in (OWNER, ANONYMOUS, msgspec.structs.replace(CLERK, credential="token_x")):
            with pytest.raises(InvalidState):
                await access.logout(actor, Empty())


# ---- headers --------------------------------------------------------------------------------------


def policy(port: int = 9487, **given: tuple[str, ...]) -> Policy:
    return Policy.make(
        address="127.0.0.1",
        port=port,
        allowed_hosts=given.get("hosts", ()),
        allowed_origins=given.get("origins", ()),
    )


def test_hosts() -> None:
    plain = policy()
    assert plain.answers_to("LOCALHOST:9487")
    for foreign in ("", "localhost", "localhost:80", "localhost:9487.evil.example", "127.0.0.2:9487"):
        assert not plain.answers_to(foreign), foreign
    assert policy(80).answers_to("localhost")
    named = policy(hosts=("Box.lan", "other.lan:443"))
    for ours in ("box.lan", "box.lan:9487", "other.lan:443"):
        assert named.answers_to(ours), ours
    for foreign in ("other.lan", "box.lan:1", "xbox.lan"):
        assert not named.answers_to(foreign), foreign


@pytest.mark.parametrize(
    ("origin", "host", "verdict"),
    [
        (None, "127.0.0.1:9487", "absent"),
        ("http://127.0.0.1:9487", "127.0.0.1:9487", "own"),
        ("http://localhost:9487", "127.0.0.1:9487", "foreign"),
        ("https://127.0.0.1:9487", "127.0.0.1:9487", "foreign"),
        ("https://box.lan", "box.lan", "own"),
        ("http://app.example", "127.0.0.1:9487", "allowed"),
        ("http://app.example.evil", "127.0.0.1:9487", "foreign"),
        ("null", "127.0.0.1:9487", "null"),
        ("", "127.0.0.1:9487", "foreign"),
    ],
)
def test_origins(origin: str | None, host: str, verdict: str) -> None:
    assert policy(hosts=("box.lan",), origins=("http://App.example/",)).judge_origin(origin, host) == verdict


def test_tokens_and_cookies_in_headers() -> None:
    assert bearer_token([(b"authorization", b"bearer  abc ")]) == "abc"
    for none in (b"", b"Bearer", b"Bearer ", b"Basic abc", b"abc"):
        assert bearer_token([(b"authorization", none)]) is None
    headers = [(b"cookie", b"witsd_9487_a=1; witsd_9488_b=2;x=3"), (b"cookie", b"witsd_9487_c=4=5")]
    assert our_cookies(headers, 9487) == {"witsd_9487_a": "1", "witsd_9487_c": "4=5"}
