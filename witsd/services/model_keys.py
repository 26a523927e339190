"""Keys with which agents and their runs use ``/v1``: made by the daemon, known to it alone, gone when they end.

A key says who calls and for which run; what that agent may is its definition's to say, as it is when it calls.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from witsd.values.ids import AgentName, RunId
from witsd.values.wire.native import ModelAccess

#: As providers' keys begin, so that whatever hides those hides these.
_PREFIX = "sk-witsd-"


@attrs.define(eq=False)
class ModelKey:
    """A key while it is good."""

    agent: AgentName
    run_id: RunId | None
    _calls: set[trio.CancelScope] = attrs.field(factory=set)

    @contextmanager
    def visit(self, scope: trio.CancelScope) -> Iterator[None]:
        """While a call is on: it ends with the key."""
        self._calls.add(scope)
        try:
            yield
        finally:
            self._calls.discard(scope)

    def end(self) -> None:
        for scope in self._calls:
            scope.cancel()


@attrs.define(eq=False)
class ModelKeys:
    """All keys that are good. ``base_url``: where ``/v1`` is; None while HTTP is off, and there are no keys then."""

    base_url: str | None = None
    _keys: dict[bytes, ModelKey] = attrs.field(factory=dict)

    @contextmanager
    def lend(self, agent: str, run_id: str | None = None) -> Iterator[ModelAccess | None]:
        """A key for as long as the block lasts, and where it is used; None where there is no HTTP."""
        if self.base_url is None:
            yield None
            return
        secret = _PREFIX + base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode()
        key = ModelKey(AgentName(agent), None if run_id is None else RunId(run_id))
        digest = _digest(secret)
        self._keys[digest] = key
        try:
            yield ModelAccess(base_url=self.base_url, api_key=secret)
        finally:
            del self._keys[digest]
            key.end()

    def find(self, secret: str) -> ModelKey | None:
        """The key that this is; None for one that is not known, or is not good any more."""
        return self._keys.get(_digest(secret))


def _digest(secret: str) -> bytes:
    """256 random bits need no slow hash, and looking a digest up tells nothing of the secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
