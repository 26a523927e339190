"""A real browser: a page of another origin gets nowhere, and our own gets in with a ticket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from tests.support.door import House, open_house
from witsd.values.actor import OWNER, Scope
from witsd.values.wire.common import Empty

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt install chromium)")
#: A browser's first start on a slow, busy machine.
PATIENCE_S = 90


@asynccontextmanager
async def browser(profile: Path, url: str, *flags: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Chromium with an empty profile on ``url``; its whole process group is ended."""
    profile.mkdir()
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
            *flags,
            url,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(profile), "XDG_RUNTIME_DIR": str(profile)},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@attrs.define(eq=False)
class OtherSite:
    """A server on another port of the same host. Cookies ignore ports, so this is as near as one can get."""

    page: bytes = b""
    cookie: str = ""
    report: dict[str, str] | None = None
    reported: trio.Event = attrs.field(factory=trio.Event)

    async def serve(self, stream: trio.SocketStream) -> None:
        data = b""
        try:
            while b"\r\n\r\n" not in data:
                data += await self._more(stream)
            head, _, body = data.partition(b"\r\n\r\n")
            page = b""
            if head.startswith(b"POST /report"):
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                while len(body) < length:
                    body += await self._more(stream)
                self.report = json.loads(body)
                self.reported.set()
            elif head.startswith(b"GET / "):
                page = self.page
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
                b"Set-Cookie: %b; Path=/\r\nContent-Length: %d\r\n\r\n%b"
                % (self.cookie.encode(), len(page), page)
            )
        except (EOFError, trio.BrokenResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    @staticmethod
    async def _more(stream: trio.SocketStream) -> bytes:
        data = await stream.receive_some()
        if not data:
            raise EOFError
        return bytes(data)


ATTACK = """<!doctype html><title>elsewhere</title><script>
const door = "%(door)s", token = "%(token)s", secret = "%(secret)s";
const message = JSON.stringify({jsonrpc: "2.0", id: 1, method: "ping", params: {}});
async function attempt(work) {
  try { return String(await work()); } catch (error) { return "failed: " + error.name; }
}
function socket() {
  return new Promise((resolve) => {
    const ws = new WebSocket(door.replace("http", "ws") + "/ws");
    ws.onopen = () => ws.send(JSON.stringify(
      {jsonrpc: "2.0", id: 1, method: "initialize", params: {token: secret}}));
    ws.onmessage = (event) => resolve("got " + event.data);
    ws.onclose = () => resolve("closed");
  });
}
(async () => {
  const json = {"Content-Type": "application/json", "Authorization": "Bearer " + token};
  const post = {method: "POST", body: message, credentials: "%(cookies)s"};
  const report = {
    with_token: await attempt(async () => (await fetch(door + "/rpc", {...post, headers: json})).text()),
    simple: await attempt(async () => (await fetch(door + "/rpc", post)).text()),
    blind: await attempt(async () => (await fetch(door + "/rpc", {...post, mode: "no-cors"})).type),
    health: await attempt(async () => (await fetch(door + "/healthz")).text()),
    frame: await attempt(() => new Promise((resolve) => {
      const frame = document.createElement("iframe");
      frame.src = door + "/";
      frame.onload = () => { try { resolve(frame.contentDocument ? "same origin" : "opaque"); }
                             catch (error) { resolve("opaque"); } };
      document.documentElement.append(frame);
    })),
    socket: await attempt(socket),
  };
  await fetch("/report", {method: "POST", body: JSON.stringify(report)});
})();
</script>"""


@asynccontextmanager
async def other_site() -> AsyncIterator[tuple[OtherSite, str]]:
    site = OtherSite()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, site.serve, 0, host="127.0.0.1"))
        yield site, f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def attack(site: OtherSite, url: str, profile: Path, **values: str) -> dict[str, str]:
    """What the page of the other site has to report."""
    site.page = (ATTACK % values).encode()
    with trio.fail_after(PATIENCE_S):
        async with browser(profile, url + "/"):
            await site.reported.wait()
    assert site.report is not None
    return site.report


async def test_a_page_of_another_origin_gets_nowhere(tmp_path: Path) -> None:
    """Not even with the token, the cookie and the tab's secret in its hands."""
    async with open_house(tmp_path) as house, other_site() as (site, url):
        token = (await house.token(*Scope)).token
        site.cookie, secret = await house.sign_in()
        report = await attack(
            site, url, tmp_path / "profile", door=house.origin, token=token, secret=secret, cookies="include"
        )
        failed = "failed: TypeError"
        assert report == {
            "with_token": failed,
            "simple": failed,
            "blind": failed,
            "health": failed,
            "frame": "opaque",
            "socket": "closed",
        }
        assert house.calls.names == []


async def test_the_same_page_gets_in_where_it_is_allowed_and_has_a_token(tmp_path: Path) -> None:
    """Also shows that the attempts above can succeed."""
    async with other_site() as (site, url), open_house(tmp_path, allowed_origins=(url,)) as house:
        token = (await house.token(*Scope)).token
        report = await attack(
            site, url, tmp_path / "profile", door=house.origin, token=token, secret=token, cookies="omit"
        )
        assert json.loads(report["with_token"])["result"] == {}
        assert json.loads(report["simple"])["error"]["code"] == -32004
        assert '"label":"token:test"' in report["socket"]
        assert house.calls.names == ["ping", "initialize"]


async def test_our_page_gets_in_with_a_ticket_from_a_file(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        ticket = await house.access.ticket(OWNER, Empty())
        file = tmp_path / "open.html"
        file.write_text(
            f'<!doctype html><form method="post" action="{ticket.url}">'
            f'<input name="ticket" value="{ticket.ticket}"></form><script>document.forms[0].submit()</script>'
        )
        with trio.fail_after(PATIENCE_S):
            async with browser(tmp_path / "profile", file.as_uri()):
                await house.calls.entered["browser"].wait()


async def test_a_name_that_was_rebound_to_us_is_refused(tmp_path: Path) -> None:
    """DNS rebinding: the browser takes us for evil.example, so its page would be of the same origin."""
    async with open_house(tmp_path) as house:
        with trio.fail_after(PATIENCE_S):
            dom = await dump(house, tmp_path, "MAP evil.example 127.0.0.1", "evil.example")
            assert "does not answer to the host" in dom
            assert "is running" not in dom


async def dump(house: House, tmp_path: Path, rules: str, name: str) -> str:
    url = f"http://{name}:{house.port}/"
    async with browser(tmp_path / "profile", url, "--dump-dom", f"--host-resolver-rules={rules}") as process:
        out = process.stdout
        assert out is not None
        async with trio.lowlevel.FdStream(os.dup(out.fileno())) as pipe:
            return b"".join([bytes(part) async for part in pipe]).decode()
