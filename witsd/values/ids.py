"""Identifiers. Each is a string on the wire; ``NewType`` keeps them apart in the code."""

from __future__ import annotations

import os
from typing import NewType, Protocol

RunId = NewType("RunId", str)
ItemId = NewType("ItemId", str)
SessionId = NewType("SessionId", str)
MessageId = NewType("MessageId", str)
SubscriptionId = NewType("SubscriptionId", str)
AgentName = NewType("AgentName", str)
TokenId = NewType("TokenId", str)

#: Crockford's base 32: no letters that read alike, sorts like the number it encodes.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Ids(Protocol):
    """A source of fresh identifiers; a parameter wherever one is needed, so tests can fix it."""

    def new(self, prefix: str) -> str:
        """A fresh id such as ``run_1m2n3p...``: unique, and sorted by creation within a prefix."""


class TimeOrderedIds:
    """48 bits of milliseconds, then 72 random bits: sorts by time, never guessed, never repeated."""

    def __init__(self, wall_us: object) -> None:
        if not callable(wall_us):
            raise TypeError("wall_us must be callable")
        self._wall_us = wall_us

    def new(self, prefix: str) -> str:
        value = (int(self._wall_us()) // 1000) << 72 | int.from_bytes(os.urandom(9), "big")
        return f"{prefix}_{_base32(value, 24)}"


def _base32(value: int, width: int) -> str:
    digits = []
    for _ in range(width):
        digits.append(_ALPHABET[value & 31])
        value >>= 5
    return "".join(reversed(digits))
