"""What a request's headers say about where it comes from: Host, Origin, bearer token, cookies.

Pure decisions. The Host check is what stops DNS rebinding, the Origin check what stops another site's
page from using the browser it runs in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

Headers = Sequence[tuple[bytes, bytes]]
#: ``own``: a page that this daemon served. ``allowed``: one that ``listen.allowed_origins`` names.
Origin = Literal["absent", "own", "allowed", "null", "foreign"]

#: Addresses that stand for all of the machine's, and so for no name of ours.
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
#: Cookies of ours that are looked at in one request.
MAX_COOKIES = 64


class Policy(msgspec.Struct, frozen=True):
    """Which names we answer to and which pages may talk to us."""

    hosts: frozenset[str]
    #: Names that came from ``listen.allowed_hosts``: something in front of us may speak TLS for them.
    proxied: frozenset[str]
    origins: frozenset[str]

    @classmethod
    def make(
        cls, *, address: str, port: int, allowed_hosts: Iterable[str], allowed_origins: Iterable[str]
    ) -> Policy:
        """For a listener at ``address:port``. A name in ``allowed_hosts`` may carry a port of its own."""
        names = {"127.0.0.1", "localhost", "[::1]"}
        if address not in EVERYWHERE:
            names.add(f"[{address}]" if ":" in address else address)
        hosts = {f"{name}:{port}" for name in names}
        if port == 80:  # browsers leave the default port out
            hosts |= names
        proxied = set()
        for name in allowed_hosts:
            lowered = name.lower()
            proxied.add(lowered)
            if not lowered.rpartition(":")[2].isdigit():
                proxied.add(f"{lowered}:{port}")
        origins = frozenset(origin.lower().rstrip("/") for origin in allowed_origins)
        return cls(frozenset(hosts | proxied), frozenset(proxied), origins)

    def answers_to(self, host: str) -> bool:
        """Whether ``Host`` names us."""
        return host.lower() in self.hosts

    def judge_origin(self, origin: str | None, host: str) -> Origin:
        """Where the page that made this request comes from. ``host`` must have passed ``answers_to``."""
        if origin is None:
            return "absent"
        lowered, host = origin.lower(), host.lower()
        if lowered == f"http://{host}" or (lowered == f"https://{host}" and host in self.proxied):
            return "own"
        if lowered == "null":
            return "null"
        return "allowed" if lowered in self.origins else "foreign"


def header(headers: Headers, name: bytes) -> str | None:
    """The value of a header (its name in lower case), None when absent. Repeated ones come back joined."""
    values = [value for key, value in headers if key == name]
    return b", ".join(values).decode("latin-1") if values else None


def bearer_token(headers: Headers) -> str | None:
    """The token of ``Authorization: Bearer TOKEN`` (RFC 6750), None when there is none."""
    scheme, _, token = (header(headers, b"authorization") or "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None


def cookie_prefix(port: int) -> str:
    """Cookies ignore ports, so the name carries it: two daemons do not sign each other out."""
    return f"witsd_{port}_"


def our_cookies(headers: Headers, port: int) -> dict[str, str]:
    """Name -> value of the cookies this daemon may have set."""
    prefix = cookie_prefix(port)
    found: dict[str, str] = {}
    for key, value in headers:
        if key == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                name, _, content = pair.strip().partition("=")
                if name.startswith(prefix) and len(found) < MAX_COOKIES:
                    found[name] = content
    return found
