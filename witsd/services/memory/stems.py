"""Stems of words, by the very tokenizer of the text index: what is one word there is one word here."""

from __future__ import annotations

import threading
from functools import lru_cache

import apsw

#: The tokenizer of the text index: Porter's stemmer (1980) over words without accents.
TOKENIZE = "porter unicode61 remove_diacritics 2"
_CACHED = 32_768

# A tokenizer keeps the word that it works on in itself, so each thread has its own.
_here = threading.local()


@lru_cache(maxsize=_CACHED)
def stem(word: str) -> str:
    """The stem of one word: ``camping`` -> ``camp``. Several words give the stem of the first; none gives nothing."""
    tokenizer = getattr(_here, "tokenizer", None)
    if tokenizer is None:
        name, *arguments = TOKENIZE.split()
        _here.db = apsw.Connection(":memory:")
        tokenizer = _here.tokenizer = _here.db.fts5_tokenizer(name, arguments)
    stems = tokenizer(word.encode(), apsw.FTS5_TOKENIZE_DOCUMENT, None, include_offsets=False, include_colocated=False)
    return str(stems[0]) if stems else ""
