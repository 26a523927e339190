"""``system/doctor``: what was looked at, how it is, and what to do about it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from witsd.values.wire.common import UNSET, UnsetType

DoctorStatus = Literal["ok", "warning", "problem"]


class DoctorItem(Struct, frozen=True, kw_only=True):
    """One thing that was looked at. A ``warning`` can be lived with; a ``problem`` keeps something from working."""

    name: str
    status: DoctorStatus
    message: str
    #: What to do.
    hint: str | UnsetType = UNSET


class DoctorReport(Struct, frozen=True, kw_only=True):
    #: ``down``: looked at from outside, without a daemon to ask.
    daemon: Literal["running", "down"]
    items: tuple[DoctorItem, ...]
