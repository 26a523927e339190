"""The marks around what was recalled into a prompt: by them it is never remembered again as if it had been said."""

from __future__ import annotations

import re

OPEN = "<recalled_memory>"
CLOSE = "</recalled_memory>"
#: A mark that was never closed reaches to the end: better too little is remembered than an echo.
_RECALLED = re.compile(f"{re.escape(OPEN)}.*?(?:{re.escape(CLOSE)}|\\Z)", re.DOTALL)


def marked(text: str) -> str:
    """``text`` between marks; marks in it are none any more, so that it cannot end them itself."""
    # Not taken out: what stood around one could make another.
    return f"{OPEN}\n{text.replace('recalled_memory>', 'recalled memory>')}\n{CLOSE}"


def without_recalled(text: str) -> str:
    """``text`` without what stands between marks."""
    return _RECALLED.sub("", text) if OPEN in text else text
