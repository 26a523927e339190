"""Exact arithmetic on text: ``evaluate("2 * (3 + 0.1)")``. Fractions, no floats, no ``eval``.

Grammar: ``+ - * / // % ** ^``, parentheses, decimals, exponents (``1e6``), a percent sign behind a
number (``12%``), and ``of`` for percent (``12% of 80``). Every size is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

_MAX_CHARS = 500
_MAX_DEPTH = 50
_MAX_BITS = 8192
_MAX_EXPONENT = 2000

_TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d*)?(?:e[+-]?\d{1,4})?|\.\d+(?:e[+-]?\d{1,4})?)|(\*\*|//|[-+*/%^()]|of))", re.I
)
_SIGNS = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\N{EN DASH}": "-"})
_WORDS = (
    (r"\bplus\b", "+"),
    (r"\bminus\b", "-"),
    (r"\b(?:times|multiplied by)\b", "*"),
    (r"\bdivided by\b", "/"),
    (r"\b(?:modulo|mod)\b", "%"),
    (r"\b(?:to the power of|to the power)\b", "**"),
    (r"\bsquared\b", "**2"),
    (r"\bcubed\b", "**3"),
    (r"\bper ?cent\b", "%"),
)
_CUE = re.compile(
    r"(?i)\b(?:what(?:'s| is| are)?|calculate|compute|evaluate|solve|how much|work out|sum|please)\b|=|\?"
)
_CANDIDATE = re.compile(r"(?i)[-+(]*[\d.](?:of\b|e[+-]?\d|[\d\s.+\-*/%^()])*")
_DATE_OR_PHONE = re.compile(r"\s*(?:\d{1,4}-\d{1,4}-\d{1,4}|\d{3}-\d{4}|\d{1,2}/\d{1,2}/\d{2,4})\s*")


class ArithmeticFault(ValueError):
    """The text is no expression, or its value is out of bounds; the message says which."""


def evaluate(text: str) -> Fraction:
    """The exact value. Raises ``ArithmeticFault``."""
    if len(text) > _MAX_CHARS:
        raise ArithmeticFault(f"an expression of more than {_MAX_CHARS} characters")
    parser = _Parser(_tokens(text))
    value = parser.sum(0)
    if parser.peek():
        raise ArithmeticFault(f"unexpected {parser.peek()!r}")
    return value


def shown(value: Fraction) -> str:
    """An integer or a finite decimal as it is; else the fraction with its value rounded to 12 places."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places, divisor = value.denominator, 0, {2: 0, 5: 0}
    for prime in divisor:
        while rest % prime == 0:
            rest //= prime
            divisor[prime] += 1
    places = max(divisor.values())
    if rest == 1 and places <= 30:
        return _decimal(value, places)
    rounded = _decimal(Fraction(round(value * 10**12), 10**12), 12).rstrip("0").rstrip(".")
    exact = f"{value.numerator}/{value.denominator}"
    return f"{exact} (about {rounded})" if len(exact) <= 40 else f"about {rounded}"


def find_expression(text: str) -> str | None:
    """The arithmetic in a sentence, ready for ``evaluate``; None where there is none.

    Text that is nothing but an expression counts always, one inside a sentence only where the sentence
    asks for a value.
    """
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.translate(_SIGNS))
    plain = plain[: 4 * _MAX_CHARS]
    for pattern, sign in _WORDS:
        plain = re.sub(rf"(?i){pattern}", f" {sign} ", plain)
    asks = bool(_CUE.search(text))
    for match in _CANDIDATE.finditer(plain):
        candidate = match.group().strip().rstrip(".").strip()
        whole = plain.strip(" \t\n?=.!") == candidate.strip(" .")
        # It has to compute something: an operator, and not just a sign, a date or a telephone number.
        computes = re.search(r"(?i)[\d)%]\s*(?:[-+*/^%]|of\b)", candidate)
        if not (asks or whole) or not computes or _DATE_OR_PHONE.fullmatch(candidate):
            continue
        try:
            evaluate(candidate)
        except ArithmeticFault as fault:
            if "divided by zero" not in str(fault) and "too large" not in str(fault):
                continue
        return re.sub(r"\s+", " ", candidate)
    return None


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ArithmeticFault(f"unexpected {text[at : at + 10].strip()!r}")
        found.append((match.group(1) or match.group(2)).lower())
        at = match.end()
    return found


class _Parser:
    """Recursive descent, one method a level of precedence."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self._at += 1
        return token

    def sum(self, depth: int) -> Fraction:
        return self._left(self._product, {"+": lambda a, b: a + b, "-": lambda a, b: a - b}, depth)

    def _product(self, depth: int) -> Fraction:
        return self._left(self._sign, {
            "*": lambda a, b: a * b, "of": lambda a, b: a * b, "/": _divide,
            "//": lambda a, b: Fraction(_divide(a, b).__floor__()),
            "%": lambda a, b: a - b * _divide(a, b).__floor__(),
        }, depth)  # fmt: skip

    def _left(
        self,
        operand: Callable[[int], Fraction],
        signs: dict[str, Callable[[Fraction, Fraction], Fraction]],
        depth: int,
    ) -> Fraction:
        value = operand(depth)
        while self.peek() in signs:
            value = _bounded(signs[self.take()](value, operand(depth)))
        return value

    def _sign(self, depth: int) -> Fraction:
        if depth > _MAX_DEPTH:
            raise ArithmeticFault("nested too deep")
        if self.peek() in ("+", "-"):
            return self._sign(depth + 1) if self.take() == "+" else -self._sign(depth + 1)
        return self._power(depth)

    def _power(self, depth: int) -> Fraction:
        base = self._atom(depth)
        if self.peek() not in ("**", "^"):
            return base
        self.take()
        exponent = self._sign(depth + 1)
        if exponent.denominator != 1:
            raise ArithmeticFault("a power that is no whole number has no exact value")
        power = exponent.numerator
        if base == 0 and power < 0:
            raise ArithmeticFault("divided by zero")
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(power) > _MAX_EXPONENT or size * abs(power) > 2 * _MAX_BITS:
            raise ArithmeticFault("too large")
        return _bounded(Fraction(base) ** power)

    def _atom(self, depth: int) -> Fraction:
        head = self.take()
        if head == "(":
            value = self.sum(depth + 1)
            if self.take() != ")":
                raise ArithmeticFault("a parenthesis is not closed")
        elif head and (head[0].isdigit() or head[0] == "."):
            if len(head.partition("e")[2].lstrip("+-0")) > 3:
                raise ArithmeticFault("too large")
            value = _bounded(Fraction(head))
        else:
            raise ArithmeticFault(f"unexpected {head!r}" if head else "something is missing at the end")
        # `50%` where no operand follows is a percentage, else it is the remainder.
        follows = self.peek(1)
        if self.peek() == "%" and (
            follows in ("", ")", "of") or not (follows[0].isdigit() or follows[0] in "(.")
        ):
            self.take()
            value /= 100
        return value


def _divide(a: Fraction, b: Fraction) -> Fraction:
    if b == 0:
        raise ArithmeticFault("divided by zero")
    return a / b


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise ArithmeticFault("too large")
    return value


def _decimal(value: Fraction, places: int) -> str:
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
