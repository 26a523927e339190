"""Notifications either side of any connection may send about a request under way."""

from __future__ import annotations

from msgspec import Struct

from witsd.values.wire.common import UNSET, UnsetType


class CancelledNotification(Struct, frozen=True, kw_only=True):
    """Params of ``notifications/cancelled``: that request is no longer wanted; it is answered -32800."""

    request_id: str | int
    reason: str | UnsetType = UNSET


class ProgressNotification(Struct, frozen=True, kw_only=True):
    """Params of ``notifications/progress``, for a request that carried ``_meta.progress_token``."""

    progress_token: str | int
    progress: float | UnsetType = UNSET
    total: float | UnsetType = UNSET
    message: str | UnsetType = UNSET
    #: The next piece of a text that is being produced.
    delta: str | UnsetType = UNSET
    #: The next piece of the reasoning that stands beside that text.
    thought: str | UnsetType = UNSET
