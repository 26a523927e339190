"""Stems are those of the text index, in every thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from witsd.services.memory.stems import stem


@pytest.mark.parametrize(
    ("word", "stemmed"),
    [("camping", "camp"), ("ponies", "poni"), ("crème", "creme"), ("京都", "京都"), ("", ""), ("?!", ""), ("a-b", "a")],
)
def test_the_stem_of(word: str, stemmed: str) -> None:
    assert stem(word) == stemmed


def test_threads_do_not_disturb_each_other() -> None:
    words = [f"{'ab' * (number % 13 + 1)}ings{number % 7}running" for number in range(5_000)]
    alone = [stem.__wrapped__(word) for word in words]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: [stem.__wrapped__(word) for word in words], range(8)):
            assert found == alone
