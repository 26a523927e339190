"""Invented memories in any number: turns of conversations about subjects of their own, with vectors in clusters.

Words come with the frequencies of the labelled set's conversations, so that a question meets rare and common ones. A
vector is the sum of what its namespace, its session's subject and the turn itself are about, and of what is in none of
it: neighbours are then as near, and as many, as in the vectors of real conversations, which uniform noise never is.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from operator import mul
from pathlib import Path
from random import Random

import attrs

DIMENSIONS = 384
#: Records of one session, one after the other.
SESSION = 20
_CHATS = sorted((Path(__file__).parent / "data").glob("*.chat"))
#: Subjects that sessions are about, each in many namespaces; and what a turn may say of one.
_SUBJECTS = 400
_ASPECTS = 40
_NOISES = 2048
_PEOPLE = ("Ada", "Boris", "Chen", "Dina", "Emil", "Fatma")
_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "we")
#: Of a turn's words, those of its subject.
_OWN_WORDS = 0.3
#: Vectors are added up as one large number each, of 16 bits for each of theirs: a sum takes a microsecond.
_LANE, _SCALE, _BIAS = 16, 8192, 4096


@attrs.frozen
class Memory:
    """``vector`` as stored: 384 signed bytes of about length 127. ``text`` has about 100 bytes."""

    namespace: int
    session: str
    speaker: str
    text: str
    vector: bytes
    starred: bool


@attrs.frozen
class Question:
    """``vector`` has length 1."""

    namespace: int
    text: str
    vector: tuple[float, ...]


class Invention:
    """``each`` memories in each of so many namespaces; the same ones for the same ``seed``.

    What they are about is the same for every ``seed``: questions are about what others remember.
    """

    def __init__(self, namespaces: int, each: int, seed: int = 1) -> None:
        self.namespaces = namespaces
        self.each = each
        self._random = chance = Random(1)
        lines = [line.partition(": ")[2] for path in _CHATS for line in path.read_text().splitlines()]
        self._common = [word for line in lines for word in line.split()]
        self._own = [
            ["".join(chance.choices(_SYLLABLES, k=chance.randint(2, 4))) for _ in range(30)] for _ in range(_SUBJECTS)
        ]
        # Some directions vary much more than others, as in the vectors of any model.
        self._spread = [1 / (1 + place / 40) ** 0.5 for place in range(DIMENSIONS)]
        chance.shuffle(self._spread)
        self._homes = self._directions(namespaces, 0.30)
        self._subjects = self._directions(_SUBJECTS, 0.60)
        self._aspects = [self._directions(_ASPECTS, 0.65) for _ in range(_SUBJECTS // 8)]
        self._noises = self._directions(_NOISES, 0.45)
        self._random = Random(seed)

    def memories(self) -> Iterator[Memory]:
        """Session by session, the namespaces in turn."""
        chance = self._random
        for first in range(0, self.each, SESSION):
            for namespace in range(self.namespaces):
                subject = chance.randrange(_SUBJECTS)
                pair = chance.sample(_PEOPLE, 2)
                for place in range(first, min(first + SESSION, self.each)):
                    vector = self._vector(namespace, subject)
                    yield Memory(
                        namespace=namespace,
                        session=f"ses_{namespace}_{first}",
                        speaker=pair[place % 2],
                        text=self._text(subject, 95),
                        vector=array("b", [round(127 * value) for value in vector]).tobytes(),
                        starred=chance.random() < 0.2,
                    )

    def questions(self, count: int) -> list[Question]:
        """About what is remembered somewhere."""
        chance = self._random
        made = []
        for _ in range(count):
            namespace, subject = chance.randrange(self.namespaces), chance.randrange(_SUBJECTS)
            vector = tuple(round(value, 6) for value in self._vector(namespace, subject))
            made.append(Question(namespace, f"What about {self._text(subject, 30)}?", vector))
        return made

    def _text(self, subject: int, size: int) -> str:
        chance = self._random
        words, length = [], 0
        while length < size:
            word = chance.choice(self._own[subject] if chance.random() < _OWN_WORDS else self._common)
            words.append(word)
            length += len(word) + 1
        return " ".join(words)

    def _vector(self, namespace: int, subject: int) -> Sequence[float]:
        choice = self._random.choice
        parts = (
            self._homes[namespace],
            self._subjects[subject],
            choice(self._aspects[subject % len(self._aspects)]),
            choice(self._noises),
            choice(self._noises),
        )
        lanes = array("H", sum(parts).to_bytes(DIMENSIONS * _LANE // 8, "little"))
        offset = _BIAS * len(parts)
        numbers = [lane - offset for lane in lanes]
        length = sum(map(mul, numbers, numbers)) ** 0.5
        return [number / length for number in numbers]

    def _directions(self, count: int, length: float) -> list[int]:
        return [self._direction(length) for _ in range(count)]

    def _direction(self, length: float) -> int:
        gauss = self._random.gauss
        numbers = [gauss(0, spread) for spread in self._spread]
        factor = length * _SCALE / sum(map(mul, numbers, numbers)) ** 0.5
        lanes = array("H", [round(number * factor) + _BIAS for number in numbers])
        return int.from_bytes(lanes.tobytes(), "little")
