"""The labelled set: conversations and folders with questions, each with the turns or sections that answer it.

``data/NAME.chat``: ``X = Name`` declares a speaker, ``== 2024-01-07 18:40`` begins a session, ``X: ...`` is a turn and
``X#label: ...`` one that a question may name. ``data/NAME/*.md`` is a folder; each ``##`` section is a record and its
label is ``file.md/Heading``. ``data/NAME.questions``: ``category | question | label, label``; a question of the
category ``absent`` assumes what is not so, and its evidence is the turn that shows it.

Between the sessions of two people stand others that say nothing of note, from ``data/smalltalk.chat``, woven in by a
rule without chance, so that there is more to be wrong about.

``TUNED`` was there to tune with, ``HELD_OUT`` was looked at beside it; both were written before the groups of
``concepts`` by the same hand, which flatters those. ``FRESH`` was written after them, is harder, and is not to be tuned
with: it tells most of what strangers will see.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zlib import crc32

import attrs

DATA = Path(__file__).parent / "data"
TUNED = ("nadia_owen", "marek_assistant", "handbook")
HELD_OUT = ("lucia_henrik", "june_assistant", "allotment")
FRESH = ("vera_jonah",)
CATEGORIES = ("single", "several", "time", "paraphrase", "names", "absent")
_TURN = re.compile(r"([A-Z])(?:#(\w+))?: (.+)")
_SESSION = re.compile(r"== (\d{4}-\d\d-\d\d \d\d:\d\d)")
_SPEAKER = re.compile(r"([A-Z]) = (.+)")


@attrs.frozen
class Turn:
    """One record. ``time_us``: microseconds since 1970, UTC; None for a section of a document."""

    text: str
    speaker: str
    session: str
    time_us: int | None
    label: str


@attrs.frozen
class Question:
    category: str
    text: str
    evidence: frozenset[int]  # places in Collection.turns


@attrs.frozen
class Collection:
    """A conversation or a folder, in its order, and what is asked of it."""

    name: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]

    def around(self, place: int, reach: int) -> tuple[list[str], list[str]]:
        """The texts before and after a turn in its own session."""
        session = self.turns[place].session
        near = [t.text if t.session == session else "" for t in self.turns[max(0, place - reach) : place + reach + 1]]
        middle = min(place, reach)
        return list(filter(None, near[:middle])), list(filter(None, near[middle + 1 :]))


def load(name: str) -> Collection:
    """One of ``TUNED``, ``HELD_OUT`` or ``FRESH``. Raises ValueError where a question names a label that is missing."""
    turns = tuple(_sections(DATA / name) if (DATA / name).is_dir() else _woven(name))
    places = {turn.label: place for place, turn in enumerate(turns) if turn.label}
    questions = []
    for line in (DATA / f"{name}.questions").read_text().splitlines():
        category, text, labels = (part.strip() for part in line.split("|"))
        wanted = [label.strip() for label in labels.split(",")]
        if category not in CATEGORIES or not set(wanted) <= places.keys():
            raise ValueError(f"{name}.questions: unknown category or label in: {line}")
        questions.append(Question(category, text, frozenset(places[label] for label in wanted)))
    return Collection(name, turns, tuple(questions))


def _sections(folder: Path) -> Iterator[Turn]:
    for file in sorted(folder.glob("*.md")):
        title, *sections = re.split(r"^##? ", file.read_text(), flags=re.MULTILINE)[1:]
        for section in sections:
            heading, _, text = section.partition("\n")
            label = f"{file.name}/{heading.strip()}"
            yield Turn(f"{title.strip()}: {heading.strip()}. {text.strip()}", "", file.name, None, label)


def _woven(name: str) -> list[Turn]:
    speakers, sessions = _chat(name)
    if "assistant" in speakers.values():
        return [turn for _, turns in sessions for turn in turns]
    blocks = sorted(_smalltalk(), key=lambda block: crc32(f"{name} {block}".encode()))
    names = tuple(speakers.values())
    woven = []
    for number, (began, turns) in enumerate(sessions):
        woven += turns + _small(blocks[number::80], names, turns[0].session, began + timedelta(minutes=20))
        if number + 1 < len(sessions):
            between = began + (sessions[number + 1][0] - began) / 2
            woven += _small(blocks[number + len(sessions) :: len(sessions)], names, f"{turns[0].session}-chat", between)
    return woven


def _chat(name: str) -> tuple[dict[str, str], list[tuple[datetime, list[Turn]]]]:
    speakers: dict[str, str] = {}
    sessions: list[tuple[datetime, list[Turn]]] = []
    for line in filter(None, (DATA / f"{name}.chat").read_text().splitlines()):
        if found := _SPEAKER.fullmatch(line):
            speakers[found[1]] = found[2]
        elif found := _SESSION.fullmatch(line):
            sessions.append((datetime.strptime(found[1], "%Y-%m-%d %H:%M").replace(tzinfo=UTC), []))
        elif found := _TURN.fullmatch(line):
            began, turns = sessions[-1]
            at = began + timedelta(seconds=40 * len(turns))
            turns.append(Turn(found[3], speakers[found[1]], f"s{len(sessions)}", _us(at), found[2] or ""))
        else:
            raise ValueError(f"{name}.chat: what is this line: {line}")
    return speakers, sessions


def _smalltalk() -> list[str]:
    return (DATA / "smalltalk.chat").read_text().strip().split("\n\n")


def _small(blocks: Sequence[str], names: Sequence[str], session: str, began: datetime) -> list[Turn]:
    lines = [(names[(line[0] == "Y") ^ (crc32(b.encode()) & 1)], line[3:]) for b in blocks for line in b.splitlines()]
    return [
        Turn(text, speaker, session, _us(began + timedelta(seconds=40 * number)), "")
        for number, (speaker, text) in enumerate(lines)
    ]


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000
