"""``auth/*`` and ``tokens/*``."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from witsd.values.actor import Scope
from witsd.values.wire.common import UNSET, Limit, Timestamp, UnsetType


class Ticket(Struct, frozen=True, kw_only=True):
    """Good once, for ``expires_s`` seconds, at ``POST url``; never put it in a URL."""

    ticket: str
    url: str
    expires_s: float


class TokensCreateParams(Struct, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    expires_s: Annotated[float, Meta(gt=0)] | None = None


class TokenCreated(Struct, frozen=True, kw_only=True):
    """``token`` is shown this once; only its hash is kept."""

    token_id: str
    token: str


class Token(Struct, frozen=True, kw_only=True):
    token_id: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: Timestamp
    expires_at: Timestamp | UnsetType = UNSET
    last_used_at: Timestamp | UnsetType = UNSET


class TokenPage(Struct, frozen=True, kw_only=True):
    items: tuple[Token, ...]
    next_cursor: str | UnsetType = UNSET


class TokensListParams(Struct, frozen=True, kw_only=True):
    cursor: str | None = None
    limit: Limit = 100


class TokensRevokeParams(Struct, frozen=True, kw_only=True):
    token_id: str
