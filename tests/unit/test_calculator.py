"""What the calculator's parser takes, how exact it is, and what it refuses before it is computed."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from witsd.services.models.arithmetic import evaluate, shown
from witsd.services.models.arithmetic_functions import FUNCTIONS, ArithmeticFault


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("15 * 23 + 17", "362"),
        ("0.1 + 0.2", "0.3"),
        ("2 ** 100", str(2**100)),
        ("2^10", "1024"),
        ("-2 ** 2", "-4"),
        ("-7 % 3", "2"),
        ("12% of 80", "9.6"),
        ("1/3", "1/3 (about 0.333333333333)"),
        ("sqrt(16/9)", "4/3 (about 1.333333333333)"),
        ("sqrt(2)", "about 1.4142135623731"),
        ("log(1000, 10)", "3"),
        ("comb(52, 5)", "2598960"),
        ("factorial(50)", str(math.factorial(50))),
        ("round(2.567, 2)", "2.57"),
        ("max(50%, 0.2)", "0.5"),
        ("6 \u00d7 7 \u2212 2", "40"),
        ("mean(1, 2, 4)", "7/3 (about 2.333333333333)"),
    ],
)
def test_values(text: str, value: str) -> None:
    assert shown(evaluate(text)) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("9**9**9", "too large"),
        ("2 ** 99999999999", "too large"),
        ("factorial(100000)", "too large"),
        ("perm(10000, 700)", "too large"),
        ("exp(1000)", "too large"),
        ("1e999 * 1e999 * 1e999", "too large"),
        ("1/0", "divided by zero"),
        ("0 ** -1", "divided by zero"),
        ("log(0)", "a logarithm"),
        ("sqrt(-1)", "no real root"),
        ("asin(2)", "no value"),
        ("atan2(1)", "takes 2 numbers"),
        ("__import__('os')", "unexpected"),
        ("foo(1)", "unexpected"),
        ("(1", "not closed"),
        ("(" * 80 + "1" + ")" * 80, "too deep"),
        ("1 +", "missing"),
        ("1" * 501, "characters"),
    ],
)
def test_refused(text: str, why: str) -> None:
    with pytest.raises(ArithmeticFault, match=why):
        evaluate(text)


def test_every_function_has_a_value_or_says_why_not() -> None:
    for name, (least, _, _) in FUNCTIONS.items():
        for number in ("0", "1", "7", "-3", "2.5", "1e300", "pi"):
            try:
                value = evaluate(f"{name}({', '.join([number] * least)})")
            except ArithmeticFault:
                continue
            assert isinstance(value, Fraction) or math.isfinite(value), (name, number)
