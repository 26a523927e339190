"""Documents as items: a document is one record, a long one several, cut where its headings are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from witsd.cli.reading.decoding import decoded
from witsd.cli.reading.found import File, Unreadable

#: Characters of one record. The daemon makes passages of it; this is what one transaction writes.
MOST = 40_000
_LEAST = MOST // 2
_HEADING = re.compile(r"^#{1,6}[ \t]+\S.*$", re.MULTILINE)
_FIRST_HEADING = re.compile(r"^#[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_LINE = re.compile(r"\n")


def items(file: File, namespace: str) -> Iterator[dict[str, Any]]:
    """The parts of a document. Raises ``Unreadable``."""
    title, text = _read(file)
    parts = list(cut(text))
    if not parts:
        raise Unreadable("there is no text in it")
    changed = datetime.fromtimestamp(file.changed, UTC).isoformat().replace("+00:00", "Z")
    for n, part in enumerate(parts):
        metadata: dict[str, Any] = {"title": title or file.path.name}
        if len(parts) > 1:
            metadata |= {"part": n + 1, "parts": len(parts)}
        yield {
            "namespace": namespace, "text": part, "kind": "document", "key": str(file.path), "part": n,
            "time": changed, "metadata": metadata, "source": {"file": str(file.path)},
        }  # fmt: skip


def _read(file: File) -> tuple[str, str]:
    if file.form == "pdf":
        from witsd.cli.reading import pdf

        return pdf.title_and_text(file.path)
    data = file.path.read_bytes()
    if file.form == "html":
        from witsd.cli.reading import html

        return html.title_and_text(decoded(data, declares=True))
    text = decoded(data)
    if file.form == "markdown":
        first = _FIRST_HEADING.search(text)
        return (first[1] if first else ""), text
    return "", text


def cut(text: str) -> Iterator[str]:
    """Pieces of at most ``MOST`` characters, that end before a heading, else after a paragraph, a line, anywhere."""
    start = 0
    while len(text) - start > MOST:
        end = _end(text, start)
        if text[start:end].strip():
            yield text[start:end].strip()
        start = end
    if text[start:].strip():
        yield text[start:].strip()


def _end(text: str, start: int) -> int:
    for pattern, before in ((_HEADING, True), (_PARAGRAPH, False), (_LINE, False)):
        last = 0
        for found in pattern.finditer(text, start + _LEAST, start + MOST):
            last = found.start() if before else found.end()
        if last:
            return last
    return start + MOST
