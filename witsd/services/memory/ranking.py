"""Which of the records that were found answers best: by words, by meaning, and a little by what stands around.

Every weight was measured by ``make bench-recall``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import add
from typing import Literal, NamedTuple, TypeAlias

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
_ASKING = ("?", "\uff1f", "\u061f")  # full-width and Arabic, too
SHORT_MALUS, SHORT_BYTES = 0.2, 100


class Candidate(NamedTuple):
    """A record that the text index or the vectors found. Records of one session are told in the order of ``rowid``.

    ``bm25`` is as FTS5 gives it: the smaller (more negative), the better; None when no word is shared. ``cosine`` is in
    -1..1; None when it is not among the nearest, or has no vector yet. ``text`` is for turns alone: empty for other
    kinds, which are written to be kept and so neither ask nor are too short.
    """

    # A tuple: a search makes hundreds of them.
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
    candidates: Sequence[Candidate],
    query: str,
    *,
    mode: Mode = "hybrid",
    meaning: float = MEANING_SHARE,
    most: int | None = None,
) -> list[Scored]:
    """The best ``most`` (None: all), best first; at equal scores, the newer first. ``meaning`` is what vectors weigh in
    a hybrid score, 0..1.

    Each list is divided by its own best, which keeps its proportions: ranks alone, or stretching a list from its worst
    to its best, find less. Who is missing from the vectors' list counts as its last, and shared words never have to
    pass a threshold of meaning.
    """
    share = {"hybrid": meaning, "keyword": 0.0, "semantic": 1.0}[mode]
    words = [(1 - share) * w for w in _relative([-(c.bm25 or 0.0) for c in candidates])]
    last = min((c.cosine for c in candidates if c.cosine is not None), default=0.0)
    nearness = [share * n for n in _relative([last if c.cosine is None else c.cosine for c in candidates])]
    own = list(map(add, words, nearness))
    around = _around(candidates, own)
    sessions = _sessions(candidates, list(map(add, own, around)))
    asked = set(query_words(query))
    named = {
        name: 0.0 if asked.isdisjoint(query_words(name)) else SPEAKER_BONUS for name in {c.speaker for c in candidates}
    }
    columns: dict[str, list[float]] = {
        "words": words,
        "meaning": nearness,
        "around": around,
        "session": [sessions.get(c.session_id, 0.0) for c in candidates],
        "speaker": [named[c.speaker] for c in candidates],
        "asks": [-ASKS_MALUS if c.text and c.text.rstrip().endswith(_ASKING) else 0.0 for c in candidates],
        "short": [_short(c.text) for c in candidates],
    }
    scores = list(map(sum, zip(*columns.values(), strict=True)))
    order = sorted(range(len(scores)), key=lambda n: (scores[n], candidates[n].time_us), reverse=True)
    return [
        Scored(candidates[n].rowid, scores[n], {name: column[n] for name, column in columns.items() if column[n]})
        for n in order[:most]
    ]


def _relative(values: Sequence[float]) -> list[float]:
    """Each as a share of the best, never below 0; all 0 when none is above it."""
    best = max(values, default=0.0)
    return [max(value, 0.0) / best for value in values] if best > 0 else [0.0] * len(values)


def _around(candidates: Sequence[Candidate], own: Sequence[float]) -> list[float]:
    """A share of the better of the two candidates beside each in its session. Who is no candidate stands between
    nobody: what was not found at all says nothing either way.
    """
    shares = [0.0] * len(candidates)
    told = sorted((c.session_id, c.rowid, index) for index, c in enumerate(candidates) if c.session_id)
    for (session, _, left), (other, _, right) in pairwise(told):
        if session == other:
            shares[left] = max(shares[left], AROUND_SHARE * own[right])
            shares[right] = max(shares[right], AROUND_SHARE * own[left])
    return shares


def _sessions(candidates: Iterable[Candidate], scores: Sequence[float]) -> dict[str, float]:
    """What each session adds to its records, by how well it matches as a share of the best."""
    by_session: dict[str, list[float]] = {}
    for candidate, score in zip(candidates, scores, strict=True):
        if candidate.session_id:
            by_session.setdefault(candidate.session_id, []).append(score)
    sums = {session: sum(sorted(found, reverse=True)[:SESSION_DEPTH]) for session, found in by_session.items()}
    return {session: SESSION_BONUS * share for session, share in zip(sums, _relative(list(sums.values())), strict=True)}


def _short(turn: str) -> float:
    if not turn or len(turn) >= SHORT_BYTES:  # it has as many bytes at least
        return 0.0
    return -SHORT_MALUS * max(0.0, 1 - len(turn.encode()) / SHORT_BYTES)
