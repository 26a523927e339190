"""``idempotency_key``: the same key with the same params gives the first answer, also after a restart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from witsd.journal.journal import Tx
from witsd.values.errors import Conflict

T = TypeVar("T")
_encode = msgspec.json.Encoder(order="deterministic").encode


def once(
    tx: Tx, actor: str, method: str, key: str | None, params: Any, result: type[T], make: Callable[[], T]
) -> tuple[T, bool]:
    """``make()`` the first time, its remembered result afterwards; the flag says which (True: made now).

    Runs inside the transaction of ``tx``, so two callers with one key make one thing.
    Raises ``Conflict`` for a key that came with other params before.
    """
    if key is None:
        return make(), True
    digest = hashlib.sha256(_encode(params)).digest()
    rows = tx.execute(
        "SELECT params_hash, result FROM idempotency WHERE actor = ? AND method = ? AND key = ?",
        (actor, method, key),
    )
    if rows:
        if rows[0][0] != digest:
            raise Conflict(f"the idempotency_key {key!r} was used with other params: take a fresh key", key=key)
        return msgspec.json.decode(rows[0][1], type=result), False
    made = make()
    tx.execute("INSERT INTO idempotency VALUES (?,?,?,?,?,?)", (actor, method, key, digest, _encode(made), tx.now_us))
    return made, True
