"""HTTP to addresses that somebody else has chosen: none of this machine or its network is ever connected to.

The address is looked up here, judged, and the connection is made to it and no other, for each connection anew: a
redirect or a name that changes its mind leads nowhere else.
"""

from __future__ import annotations

import ipaddress
import ssl
import zlib
from collections.abc import Iterable
from urllib.parse import urljoin

import attrs
import httpcore
import httpx
import trio

#: Where a host may send us on, in a row.
MAX_REDIRECTS = 5
#: What waits for a connection, and for the next piece, in seconds.
_CONNECT_S, _READ_S = 10.0, 15.0
_REDIRECTS = (301, 302, 303, 307, 308)
#: Translates to IPv4 addresses, of which some are private, too (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Refused(Exception):
    """It is not fetched, or could not be; the text is for whoever asked."""


@attrs.frozen
class Page:
    """What has come: ``more`` where it was cut."""

    url: str
    status: int
    media_type: str
    charset: str
    data: bytes
    more: bool


@attrs.define(eq=False)
class Guard(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only, and to the ``HOST:PORT`` of ``allowed``."""

    allowed: frozenset[str]
    _plain: httpcore.AsyncNetworkBackend = attrs.field(factory=httpcore.TrioBackend)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """The first of the host's addresses that answers. Raises ``Refused`` where any of them is not public."""
        try:
            with trio.fail_after(_CONNECT_S):
                found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError, trio.TooSlowError):
            raise Refused(f"there is no host {host!r}") from None
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        if f"{host}:{port}" not in self.allowed:
            for address in addresses:
                if not is_public(address):
                    raise Refused(f"{host} is at {address}, which is no public address: it is not fetched")
        last: Exception | None = None
        for address in addresses:
            try:
                return await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise Refused(f"{host} cannot be reached: {last}")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise Refused("a Unix socket is no place on the web")

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet's, also where it stands for another."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    # Python takes addresses for global that are set aside, or of a site, or stand for ones of IPv4 in ways long gone.
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or getattr(ip, "is_site_local", False))


async def fetch(url: str, *, allowed: frozenset[str], most_bytes: int, tls: ssl.SSLContext) -> Page:
    """GET ``url``, following redirects. Raises ``Refused``."""
    pool = httpcore.AsyncConnectionPool(ssl_context=tls, network_backend=Guard(allowed), max_connections=1)
    async with pool:
        for _ in range(MAX_REDIRECTS + 1):
            target = _checked(url)
            try:
                page = await _get(pool, target, most_bytes)
            except Refused:
                raise
            except (httpcore.TimeoutException, trio.TooSlowError):
                raise Refused(f"{target.host} did not answer in time") from None
            except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
                raise Refused(f"{target.host}: {str(error) or type(error).__name__}") from None
            if isinstance(page, Page):
                return page
            url = urljoin(str(target), page)
    raise Refused(f"it is redirected more than {MAX_REDIRECTS} times")


def _checked(url: str) -> httpx.URL:
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, UnicodeError) as error:
        raise Refused(f"{url[:200]!r} is no address: {error}") from None
    if found.scheme not in ("http", "https") or not found.host:
        raise Refused(f"{url[:200]!r} is no http:// or https:// address")
    if found.userinfo:
        raise Refused("an address with a user or a password in it is not fetched")
    return found


async def _get(pool: httpcore.AsyncConnectionPool, url: httpx.URL, most_bytes: int) -> Page | str:
    """The page, or where it has gone."""
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    headers = [
        (b"User-Agent", b"witsd (+https://pypi.org/project/witsd/)"),
        (b"Accept", b"text/html,application/xhtml+xml,text/*;q=0.9,application/json;q=0.9,*/*;q=0.5"),
        # Not compressed, for what grows cannot be bounded before it has; some do it all the same.
        (b"Accept-Encoding", b"identity"),
    ]
    timeout = {"connect": _CONNECT_S, "read": _READ_S, "write": _READ_S, "pool": _CONNECT_S}
    async with pool.stream("GET", target, headers=headers, extensions={"timeout": timeout}) as response:
        given = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status in _REDIRECTS and b"location" in given:
            return given[b"location"]
        media_type, _, rest = given.get(b"content-type", "").partition(";")
        body, more = bytearray(), False
        inflate = _inflater(given.get(b"content-encoding", ""))
        async for piece in response.aiter_stream():
            room = most_bytes - len(body)
            try:
                body += piece[: room + 1] if inflate is None else inflate.decompress(piece, room + 1)
            except zlib.error as error:
                raise Refused(f"its compression is broken: {error}") from None
            if len(body) > most_bytes:
                more = True
                break
    return Page(str(url), response.status, media_type.strip().lower(), _charset(rest), bytes(body[:most_bytes]), more)


def _inflater(encoding: str) -> zlib._Decompress | None:
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip" | "deflate":
            return zlib.decompressobj(zlib.MAX_WBITS | 32)
    raise Refused(f"it is compressed in a way that is not known: {encoding[:40]}")


def _charset(parameters: str) -> str:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower()
    return ""
