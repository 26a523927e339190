"""Notifications either side of any connection may send about a request under way."""

from __future__ import annotations

import attrs

from witsd.values.wire.common import UNSET, UnsetType


@attrs.frozen(kw_only=True)
class CancelledNotification:
    """Params of ``notifications/cancelled``: that request is no longer wanted; it is answered -32800."""

    request_id: str | int
    reason: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class ProgressNotification:
    """Params of ``notifications/progress``, for a request that carried ``_meta.progress_token``."""

    progress_token: str | int
    progress: float | UnsetType = UNSET
    total: float | UnsetType = UNSET
    message: str | UnsetType = UNSET
    #: The next piece of a text that is being produced.
    delta: str | UnsetType = UNSET
