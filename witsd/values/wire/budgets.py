"""What runs and agents have spent on models, and what they may spend yet."""

from __future__ import annotations

from msgspec import Struct

from witsd.values.spec import Budget
from witsd.values.wire.common import UNSET, Timestamp, UnsetType


class Spent(Struct, frozen=True, kw_only=True):
    """``tokens``: in and out; ``calls``: each try of a model; ``wall_s``: of runs, those at once counted once."""

    tokens: int = 0
    cost_usd: float = 0
    calls: int = 0
    wall_s: float = 0


class Left(Struct, frozen=True, kw_only=True):
    """What may be spent yet; what has no limit is not here. Calls that are on are taken off."""

    tokens: int | UnsetType = UNSET
    cost_usd: float | UnsetType = UNSET
    calls: int | UnsetType = UNSET
    wall_s: float | UnsetType = UNSET


class BudgetState(Struct, frozen=True, kw_only=True):
    """``spent`` is with everything delegated; ``left`` obeys every budget that counts, as those of who delegated it.

    ``limit``: its own. ``renews_at``: when an agent's begins anew.
    """

    spent: Spent
    left: Left
    limit: Budget | UnsetType = UNSET
    renews_at: Timestamp | UnsetType = UNSET
