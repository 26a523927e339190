"""The memory section of the settings: each ``[retention."PATTERN"]`` of ``witsd.toml``."""

from __future__ import annotations

from fnmatch import fnmatchcase

import attrs


@attrs.frozen(kw_only=True)
class RetentionConfig:
    """What is kept of the memory namespaces that fit ``pattern`` (``*`` matches any run of characters).

    0 is no bound; the oldest go first. Of several patterns that fit a namespace, the first in the file holds.
    Raises ``ValueError`` naming the field.
    """

    pattern: str
    max_age_days: float = 0
    max_records: int = 0
    max_bytes: int = 0

    def __attrs_post_init__(self) -> None:
        for name in ("max_age_days", "max_records", "max_bytes"):
            if not 0 <= getattr(self, name) < 1 << 53:
                raise ValueError(f"`{name}` must not be below 0")

    def fits(self, namespace: str) -> bool:
        return fnmatchcase(namespace, self.pattern)
