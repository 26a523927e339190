"""``auth/*`` and ``tokens/*``."""

from __future__ import annotations

from typing import Annotated

import attrs
from msgspec import Meta

from witsd.values.actor import Scope
from witsd.values.wire.common import UNSET, Limit, Timestamp, UnsetType


@attrs.frozen(kw_only=True)
class Ticket:
    """Good once, for ``expires_s`` seconds, at ``POST url``; never put it in a URL."""

    ticket: str
    url: str
    expires_s: float


@attrs.frozen(kw_only=True)
class TokensCreateParams:
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    expires_s: Annotated[float, Meta(gt=0)] | None = None


@attrs.frozen(kw_only=True)
class TokenCreated:
    """``token`` is shown this once; only its hash is kept."""

    token_id: str
    token: str


@attrs.frozen(kw_only=True)
class Token:
    token_id: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: Timestamp
    expires_at: Timestamp | UnsetType = UNSET
    last_used_at: Timestamp | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class TokenPage:
    items: tuple[Token, ...]
    next_cursor: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class TokensListParams:
    cursor: str | None = None
    limit: Limit = 100


@attrs.frozen(kw_only=True)
class TokensRevokeParams:
    token_id: str
