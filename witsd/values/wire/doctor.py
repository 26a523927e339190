"""``system/doctor``: what was looked at, how it is, and what to do about it."""

from __future__ import annotations

from typing import Literal

import attrs

from witsd.values.wire.common import UNSET, UnsetType

DoctorStatus = Literal["ok", "warning", "problem"]


@attrs.frozen(kw_only=True)
class DoctorItem:
    """One thing that was looked at. A ``warning`` can be lived with; a ``problem`` keeps something from working."""

    name: str
    status: DoctorStatus
    message: str
    #: What to do.
    hint: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class DoctorReport:
    #: ``down``: looked at from outside, without a daemon to ask.
    daemon: Literal["running", "down"]
    items: tuple[DoctorItem, ...]
