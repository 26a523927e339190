"""Shapes that many methods share."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

__all__ = ["UNSET", "Empty", "Limit", "ListParams", "Timestamp", "UnsetType"]

#: RFC 3339 in UTC with six decimals: ``2026-01-31T09:05:07.123456Z``.
Timestamp = Annotated[str, Meta(description="RFC 3339, UTC")]
Limit = Annotated[int, Meta(ge=1, le=1000, description="how many at most")]


class Empty(Struct, frozen=True):
    """``{}``"""


class ListParams(Struct, frozen=True, kw_only=True):
    """A page of a list: give back ``next_cursor`` as ``cursor`` for the next one."""

    cursor: str | None = None
    limit: Limit = 100
