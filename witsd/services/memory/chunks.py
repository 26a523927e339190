"""Cutting a long text by its structure: headings first, then paragraphs, lines, sentences, words."""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

#: A text of more characters is found by its chunks, each of at most so many.
WHOLE = 2000
MOST = 1200
#: A paragraph that would make a chunk of fewer goes with the next one.
LEAST = 300
#: A text has hardly more sections than this: in one that would, those that are too small go on into the next.
_MOST_SECTIONS = 4000

#: Each text is looked at once, whatever it holds: no expression here has two ways to match the same.
_HEADING = re.compile(r"^(#{1,6})[ \t]+([^\n]*)$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
#: Where a text may be cut, best first.
_CUTS = (
    re.compile(r"\n[ \t]*\n"),
    re.compile(r"\n"),
    re.compile("(?<=[.!?\u3002\uff01\uff1f])\\s*"),
    re.compile(r"\s+"),
)


@attrs.frozen
class Chunk:
    """``text`` is ``whole[start : start + len(text)]``; ``heading`` the headings it stands under, ``A > B``."""

    text: str
    start: int
    heading: str


def chunks(whole: str) -> list[Chunk]:
    """The passages of ``whole``: all of it but white space is in exactly one."""
    found = []
    for start, end, heading in _sections(whole):
        for first, last in _pieces(whole, start, end):
            text = whole[first:last]
            stripped = text.strip()
            if stripped:
                found.append(Chunk(stripped, first + text.index(stripped), heading))
    return found


def _sections(whole: str) -> Iterator[tuple[int, int, str]]:
    """``(start, end, heading)`` of what stands between headings; those inside fenced code are none."""
    least = len(whole) // _MOST_SECTIONS
    above: list[tuple[int, str]] = []
    start = 0
    heading = ""
    for here, level, title in _headings(whole):
        above = [*(one for one in above if one[0] < level), (level, title)]
        if whole[start:here].strip():
            if here - start < least:
                continue
            yield start, here, heading
        heading = " > ".join(title for _, title in above)[:300]
        start = here
    if whole[start:].strip():
        yield start, len(whole), heading


def _headings(whole: str) -> Iterator[tuple[int, int, str]]:
    """``(start, level, title)``."""
    fences = _FENCE.finditer(whole)
    fence = next(fences, None)
    for found in _HEADING.finditer(whole):
        here = found.start()
        while fence is not None and fence.end() <= here:
            fence = next(fences, None)
        title = found[2].strip().rstrip("#").rstrip()
        if title and (fence is None or here < fence.start()):
            yield here, len(found[1]), title


def _pieces(whole: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cuts of a section, none longer than ``MOST``."""
    while end - start > MOST:
        cut = _cut(whole, start, min(start + MOST, end))
        yield start, cut
        start = cut
    if start < end:
        yield start, end


def _cut(whole: str, start: int, end: int) -> int:
    """The best place to end a chunk that begins at ``start``, not beyond ``end``."""
    for pattern in _CUTS:
        last = 0
        for found in pattern.finditer(whole, start + LEAST, end):
            last = found.end()
        if last > start:
            return last
    return end
