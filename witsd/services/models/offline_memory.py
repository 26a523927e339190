"""What ``offline`` makes of the memories that a prompt carries: facts and quotations, each with where it is from.

The lines are those of ``memory/context`` (see ``services/memory/context.py``) between the marks of recalled text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import attrs

from witsd.services.memory.recall import CLOSE, OPEN
from witsd.services.memory.statements import refers_back, statements, subject_of
from witsd.services.memory.stems import stem
from witsd.services.memory.words import pieces, query_words
from witsd.services.models.offline_text import sentences
from witsd.values.wire.models import ChatMessage

_PART = re.compile(f"{re.escape(OPEN)}\n(.*?)\n{re.escape(CLOSE)}", re.DOTALL)
_HEAD = re.compile(r"^(?:In session (?P<session>.*)|From (?P<file>.*)):$")
_LINE = re.compile(r"^\[(\d{4})-(\d\d)-(\d\d) (\d\d:\d\d)(?: (mem_\w+))?\] (.*)$")
#: Said by the assistant with what it recalled; see ``adapters/assistant.py``.
_HAS_MEMORY = re.compile(r"(?m)^You have a memory")
_OWN_WORDS = re.compile("Lines of “([^”]+)” are your own")
#: How people are called who speak to the daemon themselves; whoever else has a name is somebody else.
_PERSON = re.compile(r"^(?:owner|browser|token:.*)$")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_INDENT = "\n    "
#: Of a question without any word but small ones nothing is looked for.
_SMALL = 2
#: So much of a passage is quoted, in characters.
_QUOTED = 600


@attrs.frozen
class Memory:
    """One recalled line. ``speaker`` is empty where nobody is said to have said it."""

    text: str
    #: ``YYYY-MM-DD HH:MM``, UTC.
    when: str
    speaker: str
    session: str
    memory_id: str
    file: str = ""

    @property
    def mine(self) -> bool:
        """Whether it is of the person who asks."""
        return _PERSON.match(self.speaker) is not None

    @property
    def day(self) -> str:
        year, month, day = self.when[:10].split("-")
        return f"{int(day)} {_MONTHS[int(month) - 1]} {year}"

    @property
    def told(self) -> str:
        """Who said it, when and where."""
        where = f", in session {self.session}" if self.session else f" (memory {self.memory_id})"
        if self.file:
            return f"{self.file} says{where}"
        if self.mine:
            return f"You told me on {self.day}{where}"
        if self.speaker:
            return f"{self.speaker} said on {self.day}{where}"
        return f"It was noted on {self.day}{where}"

    @property
    def quoted(self) -> str:
        """The whole of it with its source."""
        text = self.text if len(self.text) <= _QUOTED else self.text[:_QUOTED].rstrip() + " …"
        return f"{self.told}: “{text}”"


def has_memory(messages: Sequence[ChatMessage]) -> bool:
    """Whether what is said here is remembered."""
    return any(m.role == "system" and _HAS_MEMORY.search(m.content) for m in messages)


def recalled(messages: Sequence[ChatMessage]) -> list[Memory]:
    """What the prompt carries, oldest first, without the answerer's own earlier words."""
    found: list[Memory] = []
    for message in messages:
        if message.role == "system":
            own = set(_OWN_WORDS.findall(message.content))
            for part in _PART.findall(message.content):
                found += [memory for memory in _read(part) if memory.speaker not in own]
    return sorted(found, key=lambda memory: memory.when)


def _read(part: str) -> Iterable[Memory]:
    session = file = ""
    for line in part.replace(_INDENT, "\r").split("\n"):
        head, entry = _HEAD.match(line), _LINE.match(line)
        if head is not None or not line:
            session, file = (head["session"] or "", head["file"] or "") if head is not None else ("", "")
        elif entry is not None and 1 <= int(entry[2]) <= 12:
            year, month, day, hour, memory_id, text = entry.groups()
            speaker, colon, said = text.partition(": ") if session else ("", "", text)
            speaker, said = (speaker, said) if colon else ("", text)
            said = said.replace("\r", "\n")
            yield Memory(said, f"{year}-{month}-{day} {hour}", speaker, session, memory_id or "", file)


def remembered(memories: Iterable[Memory]) -> dict[str, tuple[str, Memory]]:
    """What the person who asks said of themselves, or what was noted: about -> value and source; the latest counts."""
    known: dict[str, tuple[str, Memory]] = {}
    subjects: dict[str, str] = {}
    for memory in memories:
        if memory.file or (memory.speaker and not memory.mine):
            continue
        for statement in statements(memory.text, subjects.get(memory.session, "") if memory.session else ""):
            known[statement.about] = statement.value, memory
        if memory.session and not refers_back(memory.text):
            subjects[memory.session] = subject_of(memory.text)
    return known


def fitting(question: str, memories: Sequence[Memory]) -> Memory | None:
    """The memory that shares most of the question's words, the latest of those alike; its best sentences alone where it
    is long. None where none shares any.
    """
    asked = {stem(word) for word in query_words(question) if len(word) > _SMALL}
    best: tuple[int, Memory] | None = None
    for memory in memories:
        if all(part.endswith("?") for part in sentences(memory.text)):
            continue
        shared = len(asked & {stem(word) for word in pieces(memory.text)})
        if shared and (best is None or shared >= best[0]):
            best = shared, memory
    if best is None:
        return None
    memory = best[1]
    return memory if len(memory.text) <= _QUOTED else attrs.evolve(memory, text=_telling(memory.text, asked))


def _telling(text: str, asked: set[str]) -> str:
    """The sentence that shares most, with those behind it for as long as there is room."""
    parts = sentences(text)
    shares = [len(asked & {stem(word) for word in pieces(part)}) for part in parts]
    start = max(range(len(parts)), key=lambda n: (shares[n], -n))
    chosen = parts[start]
    for part in parts[start + 1 :]:
        if len(chosen) + len(part) >= _QUOTED:
            break
        chosen += f" {part}"
    return chosen
