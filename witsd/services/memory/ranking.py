"""Which of the records that were found answers best: by words, by meaning, and a little by what stands around.

Every weight was measured by ``make bench-recall``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import attrs

from witsd.services.memory.words import query_words

Mode: TypeAlias = Literal["hybrid", "semantic", "keyword"]

#: What meaning weighs in a hybrid score; words weigh the rest.
MEANING_SHARE = 0.5
#: The same for vectors of ``hash``, which mostly repeat what the words say.
HASH_SHARE = 0.15
#: Added from the better of the two records beside it in its session: an answer shares few words with its question.
AROUND_SHARE = 0.2
#: Added for the session that matches best, less for others; and for a record of a speaker whom the question names.
SESSION_BONUS = 0.15
SPEAKER_BONUS = 0.1
#: So many of a session's best records say how well it matches.
SESSION_DEPTH = 5
#: Taken from a turn that only asks, and from a short one: full for an empty one, nothing from so many bytes of UTF-8.
ASKS_MALUS = 0.1
SHORT_MALUS, SHORT_BYTES = 0.2, 100


@attrs.frozen
class Candidate:
    """A record that the text index or the vectors found. Records of one session are told in the order of ``rowid``.

    ``bm25`` is as FTS5 gives it: the smaller (more negative), the better; None when no word is shared. ``cosine`` is in
    -1..1; None when it is not among the nearest, or has no vector yet. ``text`` is for turns alone: empty for other
    kinds, which are written to be kept and so neither ask nor are too short.
    """

    rowid: int
    bm25: float | None = None
    cosine: float | None = None
    session_id: str = ""
    speaker: str = ""
    time_us: int = 0
    text: str = ""


@attrs.frozen
class Scored:
    """A candidate's score, and the parts that it is the sum of.

    ``words`` and ``meaning``, ``around`` (of the records beside it), ``session``, ``speaker``; below 0: ``asks``,
    ``short``.
    """

    rowid: int
    score: float
    parts: Mapping[str, float]


def meaning_share(model: str) -> float:
    """What the vectors of this model may weigh in ``blend``."""
    return HASH_SHARE if model == "hash" else MEANING_SHARE


def blend(
    candidates: Sequence[Candidate], query: str, *, mode: Mode = "hybrid", meaning: float = MEANING_SHARE
) -> list[Scored]:
    """Best first; at equal scores, the newer first. ``meaning`` is what vectors weigh in a hybrid score, 0..1.

    Each list is divided by its own best, which keeps its proportions: ranks alone, or stretching a list from its worst
    to its best, find less. Who is missing from the vectors' list counts as its last, and shared words never have to
    pass a threshold of meaning.
    """
    share = {"hybrid": meaning, "keyword": 0.0, "semantic": 1.0}[mode]
    words = _relative([-(c.bm25 or 0.0) for c in candidates])
    last = min((c.cosine for c in candidates if c.cosine is not None), default=0.0)
    nearness = _relative([last if c.cosine is None else c.cosine for c in candidates])
    own = [(1 - share) * w + share * n for w, n in zip(words, nearness, strict=True)]
    around = _around(candidates, own)
    sessions = _sessions(candidates, [o + a for o, a in zip(own, around, strict=True)])
    asked = set(query_words(query))
    named = {name: not asked.isdisjoint(query_words(name)) for name in {c.speaker for c in candidates}}
    scored = []
    for index, candidate in enumerate(candidates):
        parts = {
            "words": (1 - share) * words[index],
            "meaning": share * nearness[index],
            "around": around[index],
            "session": SESSION_BONUS * sessions.get(candidate.session_id, 0.0),
            "speaker": SPEAKER_BONUS * named[candidate.speaker],
            **_maluses(candidate.text),
        }
        parts = {name: part for name, part in parts.items() if part}
        scored.append((sum(parts.values()), candidate.time_us, Scored(candidate.rowid, sum(parts.values()), parts)))
    scored.sort(key=lambda one: one[:2], reverse=True)
    return [one for _, _, one in scored]


def _relative(values: Sequence[float]) -> list[float]:
    """Each as a share of the best, never below 0; all 0 when none is above it."""
    best = max(values, default=0.0)
    return [max(value, 0.0) / best for value in values] if best > 0 else [0.0] * len(values)


def _around(candidates: Sequence[Candidate], own: Sequence[float]) -> list[float]:
    """A share of the better of the two candidates beside each in its session. Who is no candidate stands between
    nobody: what was not found at all says nothing either way.
    """
    shares = [0.0] * len(candidates)
    order = sorted(range(len(candidates)), key=lambda index: (candidates[index].session_id, candidates[index].rowid))
    for left, right in pairwise(order):
        if candidates[left].session_id and candidates[left].session_id == candidates[right].session_id:
            shares[left] = max(shares[left], AROUND_SHARE * own[right])
            shares[right] = max(shares[right], AROUND_SHARE * own[left])
    return shares


def _sessions(candidates: Iterable[Candidate], scores: Sequence[float]) -> dict[str, float]:
    """How well each session matches, as a share of the best."""
    by_session: dict[str, list[float]] = {}
    for candidate, score in zip(candidates, scores, strict=True):
        if candidate.session_id:
            by_session.setdefault(candidate.session_id, []).append(score)
    sums = {session: sum(sorted(found, reverse=True)[:SESSION_DEPTH]) for session, found in by_session.items()}
    return dict(zip(sums, _relative(list(sums.values())), strict=True))


def _maluses(turn: str) -> dict[str, float]:
    if not turn:
        return {}
    return {
        "asks": -ASKS_MALUS * turn.rstrip().endswith(("?", "\uff1f", "\u061f")),  # full-width and Arabic, too
        "short": -SHORT_MALUS * max(0.0, 1 - len(turn.encode()) / SHORT_BYTES),
    }
