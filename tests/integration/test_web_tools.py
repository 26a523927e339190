"""``web_fetch`` and ``web_search`` against a server of this machine, which only a setting lets them reach."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.daemon import Daemon

PAGE = b"""<!doctype html><html><head><title>Notes &amp; more</title><style>p{}</style></head><body><nav>Menu</nav>
<main><h1>Heading</h1><p>Read <a href="/other">this</a> and <a href="javascript:x()">not that</a>.</p>
<ul><li>one</li><li>two</li></ul><script>alert(1)</script></main></body></html>"""
PACKED = gzip.compress(b"x" * (9 << 20))
KEY = "tool-key-4711-abc"


class Handler(http.server.BaseHTTPRequestHandler):
    seen: list[tuple[str, dict[str, str]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers)))
        path = urlsplit(self.path).path
        port = self.headers["Host"].rpartition(":")[2]
        routes = {
            "/page": (200, {"Content-Type": "text/html; charset=utf-8"}, PAGE),
            "/text": (200, {"Content-Type": "text/plain"}, b"plain " * 10),
            "/image": (200, {"Content-Type": "image/png"}, b"\x89PNG"),
            "/packed": (200, {"Content-Type": "text/plain", "Content-Encoding": "gzip"}, PACKED),
            "/gone": (404, {"Content-Type": "text/plain"}, b"nothing here"),
            "/away": (302, {"Location": f"http://localhost:{port}/page"}, b""),
            "/round": (302, {"Location": "/round"}, b""),
            "/metadata": (302, {"Location": "http://169.254.169.254/latest"}, b""),
            "/file": (302, {"Location": "file:///etc/passwd"}, b""),
            "/deep": (200, {"Content-Type": "text/html"}, b"<div>" * 20_000 + b"x"),
            "/search": (200, {"Content-Type": "application/json"}, self._found()),
            "/res/v1/web/search": (401, {"Content-Type": "application/json"}, b"{}"),
        }
        status, headers, body = routes.get(path, (404, {}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _found(self) -> bytes:
        query = parse_qs(urlsplit(self.path).query).get("q", [""])[0]
        row = {"title": f"About {query}", "url": "https://example.org/", "content": "what it is"}
        return json.dumps({"results": [row, {"title": "no address"}]}).encode()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[int]:
    Handler.seen = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as it:
        thread = threading.Thread(target=it.serve_forever, daemon=True)
        thread.start()
        yield it.server_address[1]
        it.shutdown()
        thread.join()


@pytest.fixture
def web(stopped_daemon: Daemon, server: int) -> Daemon:
    key = stopped_daemon.home / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    (stopped_daemon.home / "witsd.toml").write_text(
        f'[tools.web_fetch]\noptions = {{ allow = ["127.0.0.1:{server}"] }}\n'
        f'[tools.web_search]\noptions = {{ provider = "searxng", base_url = "http://127.0.0.1:{server}" }}\n'
    )
    stopped_daemon.start()
    return stopped_daemon


def fetched(daemon: Daemon, server: int, path: str, **more: Any) -> Any:
    url = path if "://" in path else f"http://127.0.0.1:{server}{path}"
    return daemon.call("tools/call", name="web_fetch", arguments={"url": url, **more})


def refused(daemon: Daemon, server: int, path: str) -> str:
    answer = fetched(daemon, server, path)
    assert answer["is_error"], answer
    return str(answer["content"][0]["text"])


def test_a_page_is_read_as_markdown_with_whole_links(web: Daemon, server: int) -> None:
    page = fetched(web, server, "/page")["structured_content"]
    assert page["title"] == "Notes & more"
    assert page["text"] == (
        f"# Heading\n\nRead [this](http://127.0.0.1:{server}/other) and not that.\n\n- one\n- two"
    )
    part = fetched(web, server, "/text", start=6, length=5)["structured_content"]
    assert (part["text"], part["more"]) == ("plain", True)


def test_nothing_of_this_machine_or_its_network_is_fetched(web: Daemon, server: int) -> None:
    for url in (
        f"http://localhost:{server}/page",
        "http://127.0.0.1:1/",
        "http://[::1]/",
        "http://0.0.0.0/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://2130706433/",
        "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
    ):
        assert "no public address" in refused(web, server, url), url
    assert Handler.seen == []
    # The address that is allowed leads to one that is not.
    assert "no public address" in refused(web, server, "/away")
    assert "no public address" in refused(web, server, "/metadata")
    assert "no http" in refused(web, server, "/file")
    assert "redirected more than" in refused(web, server, "/round")
    for url in ("file:///etc/passwd", "ftp://example.org/", "http://user:word@127.0.0.1/", "nonsense"):
        assert refused(web, server, url)


def test_what_is_no_text_too_large_or_not_there_says_so(web: Daemon, server: int) -> None:
    assert "image/png" in refused(web, server, "/image")
    assert "404: nothing here" in refused(web, server, "/gone")
    packed = fetched(web, server, "/packed", length=10)["structured_content"]
    assert (packed["chars"], packed["more"]) == (4 << 20, True)
    # A page that is made to break its reader breaks the reader alone.
    fetched(web, server, "/deep")
    assert web.call("ping") == {}


def test_search_needs_a_provider_and_shows_no_key(web: Daemon, server: int) -> None:
    answer = web.call("tools/call", name="web_search", arguments={"query": "trio & snakes"})
    (row,) = answer["structured_content"]["results"]
    assert row == {"title": "About trio & snakes", "url": "https://example.org/", "text": "what it is"}
    settings = web.home / "witsd.toml"
    settings.write_text(
        '[tools.web_search]\noptions = { provider = "brave", api_key_file = "key", '
        f'base_url = "http://127.0.0.1:{server}" }}\n'
    )
    web.restart()
    answer = web.call("tools/call", name="web_search", arguments={"query": "x"})
    assert (answer["is_error"], "401" in answer["content"][0]["text"]) == (True, True)
    assert Handler.seen[-1][1]["X-Subscription-Token"] == KEY
    assert KEY not in json.dumps(answer) + web.log()
    settings.write_text("")
    web.restart()
    tools = {tool["name"]: tool for tool in web.call("tools/list")["items"]}
    assert (tools["web_search"]["available"], "provider" in tools["web_search"]["reason"]) == (False, True)
    assert "web_search" not in [tool["name"] for tool in web.call("tools/list", available=True)["items"]]
