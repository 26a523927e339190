"""Which of the records that were found answers best: by words, by meaning, and a little by what stands around."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import attrs

from witsd.services.memory.words import query_words

Mode: TypeAlias = Literal["hybrid", "semantic", "keyword"]

#: Of a hybrid score, before what is added for session and speaker.
WORDS_SHARE, MEANING_SHARE = 0.5, 0.5
#: Added for the session that matches best, less for others; and for a record of a speaker whom the question names.
SESSION_BONUS = 0.1
SPEAKER_BONUS = 0.1
#: So many of a session's best records say how well it matches.
SESSION_DEPTH = 5


@attrs.frozen
class Candidate:
    """A record that the text index or the vectors found.

    ``bm25`` is as FTS5 gives it: the smaller (more negative), the better; None when no word is shared. ``cosine`` is in
    -1..1; None when it is not among the nearest, or has no vector yet.
    """

    rowid: int
    bm25: float | None = None
    cosine: float | None = None
    session_id: str = ""
    speaker: str = ""
    time_us: int = 0


@attrs.frozen
class Scored:
    """A candidate's score, and the parts that it is the sum of: ``words``, ``meaning``, ``session``, ``speaker``."""

    rowid: int
    score: float
    parts: Mapping[str, float]


def blend(candidates: Sequence[Candidate], query: str, *, mode: Mode = "hybrid") -> list[Scored]:
    """Best first; at equal scores, the newer first.

    Each list is divided by its own best, which keeps its proportions: ranks alone, or stretching a list from its worst
    to its best, find less. Who is missing from the vectors' list counts as its last, and shared words never have to
    pass a threshold of meaning.
    """
    shares = {"hybrid": (WORDS_SHARE, MEANING_SHARE), "keyword": (1.0, 0.0), "semantic": (0.0, 1.0)}[mode]
    words = _relative([-(c.bm25 or 0.0) for c in candidates])
    last = min((c.cosine for c in candidates if c.cosine is not None), default=0.0)
    meaning = _relative([last if c.cosine is None else c.cosine for c in candidates])
    base = [shares[0] * w + shares[1] * m for w, m in zip(words, meaning, strict=True)]
    sessions = _sessions(candidates, base)
    asked = set(query_words(query))
    scored = []
    for index, candidate in enumerate(candidates):
        parts = {
            "words": shares[0] * words[index],
            "meaning": shares[1] * meaning[index],
            "session": SESSION_BONUS * sessions.get(candidate.session_id, 0.0),
            "speaker": SPEAKER_BONUS * bool(asked.intersection(query_words(candidate.speaker))),
        }
        parts = {name: part for name, part in parts.items() if part}
        scored.append((sum(parts.values()), candidate.time_us, Scored(candidate.rowid, sum(parts.values()), parts)))
    scored.sort(key=lambda one: one[:2], reverse=True)
    return [one for _, _, one in scored]


def _relative(values: Sequence[float]) -> list[float]:
    """Each as a share of the best, never below 0; all 0 when none is above it."""
    best = max(values, default=0.0)
    return [max(value, 0.0) / best for value in values] if best > 0 else [0.0] * len(values)


def _sessions(candidates: Iterable[Candidate], base: Sequence[float]) -> dict[str, float]:
    """How well each session matches, as a share of the best."""
    by_session: dict[str, list[float]] = {}
    for candidate, score in zip(candidates, base, strict=True):
        if candidate.session_id:
            by_session.setdefault(candidate.session_id, []).append(score)
    sums = {session: sum(sorted(scores, reverse=True)[:SESSION_DEPTH]) for session, scores in by_session.items()}
    return dict(zip(sums, _relative(list(sums.values())), strict=True))
