"""``artifacts/*``: files that runs have made."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from witsd.values.wire.common import UNSET, Limit, Timestamp, UnsetType

ArtifactName = Annotated[str, Meta(min_length=1, max_length=255)]


class Artifact(Struct, frozen=True, kw_only=True):
    artifact_id: str
    run_id: str
    name: str
    media_type: str
    bytes: int
    sha256: str
    created_at: Timestamp


class ArtifactPage(Struct, frozen=True, kw_only=True):
    items: tuple[Artifact, ...]
    next_cursor: str | UnsetType = UNSET


class ArtifactsPutParams(Struct, frozen=True, kw_only=True):
    """One of ``text``, ``data`` (base64) and ``path``, a file that is copied: of an agent, one in its ``run_dir``.
    A name that the run has an artifact of already gets another one; the latest is the one found by it.
    """

    run_id: str
    name: ArtifactName
    media_type: Annotated[str, Meta(max_length=200)] = ""
    text: str | None = None
    data: str | None = None
    path: str | None = None


class ArtifactsGetParams(Struct, frozen=True, kw_only=True):
    """By ``artifact_id``, or the latest called ``name`` of ``run_id``. ``length`` bytes from ``offset``."""

    artifact_id: str | None = None
    run_id: str | None = None
    name: str | None = None
    offset: Annotated[int, Meta(ge=0)] = 0
    length: Annotated[int, Meta(ge=0, le=2 << 20)] = 1 << 20


class ArtifactPiece(Struct, frozen=True, kw_only=True):
    """``data`` is base64; ``more``: there is something behind it."""

    artifact: Artifact
    data: str
    offset: int
    more: bool


class ArtifactsListParams(Struct, frozen=True, kw_only=True):
    """Latest first; of one run, or of all that the caller may see."""

    run_id: str | None = None
    cursor: str | None = None
    limit: Limit = 100
