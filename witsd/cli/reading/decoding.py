"""Bytes of a file as text, whatever encoding they are in."""

from __future__ import annotations

import codecs
import re

from witsd.cli.reading.found import Unreadable

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Before UTF-16, whose mark is the beginning of this one.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: What a page says of itself within its first bytes.
_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
#: Bytes that stand in no text, of whatever encoding that has one byte a character.
_BINARY = bytes(c for c in range(32) if chr(c) not in "\t\n\r\f\x1b")
_SAMPLE = 4096


def decoded(data: bytes, *, declares: bool = False) -> str:
    """The text, with line ends as ``\\n``. ``declares``: it may name its encoding itself, as HTML does.

    Marks of the encoding first, then UTF-8, then what it declares, then UTF-16 without a mark by its zeros, then
    Windows-1252, in which any byte means something. Raises ``Unreadable`` for what is no text.
    """
    text = _decoded(data, declares)
    if "\0" in text:
        raise Unreadable("this is a binary file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes, declares: bool) -> str:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise Unreadable(f"it begins as {encoding} and is not, from byte {error.start} on") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is not None and "\0" not in text:
        if data[:_SAMPLE].translate(None, _BINARY) != data[:_SAMPLE]:
            raise Unreadable("this is a binary file")
        return text
    if declares and (said := _DECLARED.search(data[:_SAMPLE])):
        try:
            return data.decode(said[1].decode())
        except (LookupError, UnicodeDecodeError):
            pass
    sample = data[:_SAMPLE]
    for encoding, zeros, others in (("utf-16-le", sample[1::2], sample[::2]), ("utf-16-be", sample[::2], sample[1::2])):
        # Text of mostly Latin letters: every second byte is zero, and hardly any of the rest.
        if zeros.count(0) > len(zeros) * 0.4 and others.count(0) < len(others) * 0.05:
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                break
    if sample.translate(None, _BINARY) != sample:
        raise Unreadable("this is a binary file")
    return data.decode("cp1252", errors="replace")
