"""What people say of themselves in so many words: "my favourite colour is blue". By rules, for English; pure.

Used to answer without a model, and to notice that something said before is no longer true.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import attrs

#: So much of a text is looked at, and so much of one clause: no expression can then be made to search for long.
_LOOKED_AT = 20_000
_CLAUSE = 500
_CLAUSES = re.compile(r"(?<=[.!?])\s+|\n")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_NOW = r"(?:now|currently|actually)\s+"
#: ``my name is Ada``; the value ends with the clause.
_HAS = re.compile(
    r"(?i)\bmy\s+([a-z][a-z' -]{0,40}?)\s+(?:is|are|was)\s+(?:called\s+)?(.{1,200}?)"
    r"(?=\s*(?:,?\s*(?:and|but)\s+(?:my|i)\b|[;\n]|[.!?](?:\s|$)|$))"
)
_CALLED = re.compile(
    r"(?i)\b(?:i am called|i'm called|call me|they call me|i go by|i(?:'d like| prefer) to be called)"
    r"\s+([^\s,.;!?][^,.;!?\n]{0,80})"
)
#: ``green is my favourite colour``; the value is the clause up to there.
_IS_MY = re.compile(
    r"(?i)(?:^|[,;:])\s*((?:[^\s,.;:!?]+\s+){0,4}[^\s,.;:!?]+)\s+(?:is|are)\s+(?:now\s+)?"
    r"my\s+((?:favou?rite|preferred)\s+[a-z][a-z' -]{0,40}?)(?:\s+now)?(?=\s*(?:[,;\n]|[.!?](?:\s|$)|$))"
)
#: What begins so is no value: ``I forgot which is my favourite colour``.
_NO_VALUE = re.compile(
    r"(?i)^(?:i|we|you|he|she|they|it|this|that|what|which|here|there|if|whether)\b|\b(?:what|which)$"
)
_AGE = re.compile(rf"(?i)\bi(?:'m| am)\s+(?:{_NOW})?(\d{{1,3}}) years? old\b")
#: A place begins with a capital letter: one moves to the window, too.
_MOVED = re.compile(
    r"\b[Ii](?:'ve| have)?\s+(?:just |now |recently )?moved\s+to\s+([^\W\d_a-z][^,.;!?\n]{0,60}?)"
    r"(?=\s+(?:and|but|last|in|from|for|with|because|yesterday|this|now)\b|[,.;!?\n]|$)"
)
_LIVES = re.compile(
    rf"(?i)\bi\s+(?:{_NOW})?(live|work)\s+(?:{_NOW})?((?:in|at|for|as)\s+[^,.;!?\n]{{1,80}}?)(?=\s+and\b|[,.;!?\n]|$)"
)
#: ``now it is green``, of what was spoken of just before.
_IT = re.compile(
    r"(?i)^\W*(?:(?:well|and|but|no|oh)\W+)*(?:(?:now|actually|no)\W+it(?:'s| is)|it(?:'s| is)\s+(?:now|actually))"
    r"\s+((?:[^\s,.;!?]+\s?){1,4}?)\W*$"
)
_ASKED = re.compile(r"(?i)\bmy\s+([a-z][a-z' -]{0,40}?)\s*(?:again|now|please)?\s*\?")
#: What may stand before a statement that is all a text says.
_LEAD = re.compile(
    r"(?i)^(?:\W*\b(?:hi|hello|hey|well|oh|ok|okay|so|and|but|now|actually|please|remember|note|know|that|by the way|"
    r"btw|just|for the record|fyi|yes|no)\b)*\W*$"
)
_FIRST = re.compile(rf"(?i)^{_NOW}")
_MAY_STATE = re.compile(
    r"(?i)\b(?:my|call(?:ed)?|i (?:now |currently |actually )?(?:live|work)|it(?:'s| is)|i go by|moved to|years? old)\b"
)
_SPELLING = {"favorite": "favourite", "color": "colour", "colors": "colours", "favorites": "favourites"}
#: Words by which the same may have been stated.
SAID_AS = {"name": ("call", "go"), "live": ("moved",), "age": ("old",)}
SPELLINGS = {british: american for american, british in _SPELLING.items()}
#: Of these one has one at a time: another value takes the place of the one before.
_SINGLE = re.compile(
    r"^(?:live|work|(?:.* )?(?:favourite|preferred) .+"
    r"|(?:.* )?(?:name|nickname|age|birthday|address|number|password|pin))$"
)


@attrs.frozen
class Statement:
    """Somebody's ``about`` is ``value``: ``favourite colour``, ``blue``. ``about`` is in small letters."""

    about: str
    value: str

    @property
    def single(self) -> bool:
        """Whether another value of the same would contradict it."""
        return _SINGLE.match(self.about) is not None


def may_state(text: str) -> bool:
    """Whether it is worth while to look for statements: most texts have none."""
    return _MAY_STATE.search(text[:_LOOKED_AT]) is not None


def attribute(text: str) -> str:
    """One spelling for what is asked and what was told."""
    return " ".join(_SPELLING.get(word, word) for word in _words(text))


def statements(text: str, subject: str = "") -> list[Statement]:
    """What ``text`` states, in its order. ``subject`` is what ``it`` means (see ``subject_of``)."""
    return [found for found, _, _ in _stated(text, subject)]


def only_statement(text: str) -> Statement | None:
    """The one thing that ``text`` states, where it says nothing else."""
    found = list(_stated(text, ""))
    if len(found) != 1 or len(text) > _CLAUSE:
        return None
    statement, before, after = found[0]
    if _LEAD.match(before) and not re.search(r"\w", after):
        return statement
    return None


def subject_of(text: str) -> str:
    """What a text is about, for an ``it`` in the next: what it states or asks last; empty for nothing."""
    stated = statements(text)
    if stated:
        return stated[-1].about
    asked = _ASKED.findall(text[:_CLAUSE])
    return attribute(asked[-1]) if asked else ""


def refers_back(text: str) -> bool:
    """Whether ``text`` states something of what was spoken of before it."""
    return len(text) <= _CLAUSE and _IT.match(text) is not None


def facts(texts: Iterable[str]) -> dict[str, str]:
    """What one person said: ``{"name": "Ada", "favourite colour": "blue"}``; the latest counts."""
    known: dict[str, str] = {}
    subject = ""
    for text in texts:
        for statement in statements(text, subject):
            known[statement.about] = statement.value
        # "It" is followed from one such text to the next.
        subject = subject if refers_back(text) else subject_of(text)
    return known


def _stated(text: str, subject: str) -> Iterator[tuple[Statement, str, str]]:
    """Each statement with what stands before and after it in its clause and the clauses around."""
    text = text[:_LOOKED_AT].replace("\u2019", "'")
    if subject and refers_back(text):
        found = _IT.match(text)
        assert found is not None
        yield Statement(subject, found[1].strip()), "", ""
        return
    start = 0
    for clause in _CLAUSES.split(text):
        start = text.index(clause, start)
        if len(clause) <= _CLAUSE and not clause.rstrip().endswith("?"):
            for about, value, match in _in_clause(clause):
                if value:
                    yield Statement(about, value), text[: start + match.start()], text[start + match.end() :]
        start += len(clause)


def _in_clause(clause: str) -> Iterator[tuple[str, str, re.Match[str]]]:
    for match in _HAS.finditer(clause):
        yield attribute(match[1]), _FIRST.sub("", match[2].strip(" ,\"'“”")), match
    for match in _CALLED.finditer(clause):
        yield "name", match[1].strip(" \"'“”"), match
    for match in _LIVES.finditer(clause):
        yield match[1].lower(), match[2].strip(), match
    for match in _MOVED.finditer(clause):
        yield "live", f"in {match[1].strip()}", match
    for match in _AGE.finditer(clause):
        yield "age", match[1], match
    for match in _IS_MY.finditer(clause):
        value = _FIRST.sub("", match[1].strip(" \"'“”"))
        if not _NO_VALUE.search(value):
            yield attribute(match[2]), value, match


def _words(text: str) -> list[str]:
    return [match.group().lower().replace("\u2019", "'") for match in _WORD.finditer(text)]
