"""Arithmetic on text: ``evaluate("2 * (3 + 0.1)")``, by a parser, never ``eval``.

Grammar: ``+ - * / // % ** ^``, parentheses, decimals, exponents (``1e6``), a percent sign behind a
number (``12%``), ``of`` for percent (``12% of 80``), the functions and constants of ``arithmetic_functions``.
Exact wherever the value is rational: fractions, never floats. Only what has no exact value (a root, a sine) is a
float from there on. Every size is bounded, before it is computed.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction

from witsd.services.models.arithmetic_functions import (
    CONSTANTS,
    FUNCTIONS,
    ArithmeticFault,
    Number,
    bounded,
    power,
)

_MAX_CHARS = 500
_MAX_DEPTH = 50

_TOKEN = re.compile(
    r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d{1,4})?|\.\d+(?:e[+-]?\d{1,4})?|\*\*|//|[-+*/%^(),]|[a-z][a-z0-9_]*)"
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


def evaluate(text: str) -> Number:
    """The value, a ``Fraction`` where it is exact. Raises ``ArithmeticFault``."""
    if len(text) > _MAX_CHARS:
        raise ArithmeticFault(f"an expression of more than {_MAX_CHARS} characters")
    parser = _Parser(_tokens(text if text.isascii() else text.translate(_SIGNS)))
    value = parser.sum(0)
    if parser.peek():
        raise ArithmeticFault(f"unexpected {parser.peek()!r}")
    return Fraction(value) if isinstance(value, int) else value


def shown(value: Number) -> str:
    """An integer or a finite decimal as it is; else the fraction with its value rounded to 12 places.

    What is not exact has the fifteen digits that a float can be relied on for.
    """
    if isinstance(value, float):
        return f"about {value:.15g}"
    if value.denominator == 1:
        return str(value.numerator)
    rest, places, divisor = value.denominator, 0, {2: 0, 5: 0}
    for prime in divisor:
        while rest % prime == 0:
            rest //= prime
            divisor[prime] += 1
    places = max(divisor.values())
    if rest == 1 and places <= 30:
        return _decimal(Fraction(value), places)
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
    text = text.rstrip().lower()
    found, end = [], 0
    for match in _TOKEN.finditer(text):
        if match.start() != end:
            break
        found.append(match[1])
        end = match.end()
    if end != len(text):
        raise ArithmeticFault(f"unexpected {text[end : end + 10].strip()!r}")
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

    def sum(self, depth: int) -> Number:
        return self._left(self._product, _SUMS, depth)

    def _product(self, depth: int) -> Number:
        return self._left(self._sign, _PRODUCTS, depth)

    def _left(
        self,
        operand: Callable[[int], Number],
        signs: dict[str, Callable[[Number, Number], Number]],
        depth: int,
    ) -> Number:
        value = operand(depth)
        while self.peek() in signs:
            sign, right = signs[self.take()], operand(depth)
            try:
                value = bounded(sign(value, right))
            except OverflowError:
                raise ArithmeticFault("too large") from None
        return value

    def _sign(self, depth: int) -> Number:
        if depth > _MAX_DEPTH:
            raise ArithmeticFault("nested too deep")
        if self.peek() in ("+", "-"):
            return self._sign(depth + 1) if self.take() == "+" else -self._sign(depth + 1)
        return self._power(depth)

    def _power(self, depth: int) -> Number:
        base = self._atom(depth)
        if self.peek() not in ("**", "^"):
            return base
        self.take()
        return power(base, self._sign(depth + 1))

    def _atom(self, depth: int) -> Number:
        head = self.take()
        if head == "(":
            value = self.sum(depth + 1)
            if self.take() != ")":
                raise ArithmeticFault("a parenthesis is not closed")
        elif head and (head[0].isdigit() or head[0] == "."):
            if len(head.partition("e")[2].lstrip("+-0")) > 3:
                raise ArithmeticFault("too large")
            value = bounded(int(head) if head.isdigit() else Fraction(head))
        elif head in CONSTANTS:
            value = CONSTANTS[head]
        elif head in FUNCTIONS and self.peek() == "(":
            value = self._call(head, depth)
        else:
            raise ArithmeticFault(f"unexpected {head!r}" if head else "something is missing at the end")
        # `50%` where no operand follows is a percentage, else it is the remainder.
        follows = self.peek(1)
        if self.peek() == "%" and (
            follows in ("", ")", ",", "of") or not (follows[0].isalnum() or follows[0] in "(.")
        ):
            self.take()
            value = _divide(value, 100)
        return value

    def _call(self, name: str, depth: int) -> Number:
        self.take()
        given: list[Number] = []
        while self.peek() != ")":
            given.append(self.sum(depth + 1))
            if self.peek() != ",":
                break
            self.take()
        if self.take() != ")":
            raise ArithmeticFault("a parenthesis is not closed")
        least, most, function = FUNCTIONS[name]
        if not least <= len(given) <= most:
            wanted = str(least) if least == most else f"{least} or more"
            raise ArithmeticFault(f"{name} takes {wanted} {'number' if most == 1 else 'numbers'}, not {len(given)}")
        try:
            return bounded(function(*given))
        except OverflowError:
            raise ArithmeticFault("too large") from None
        except ZeroDivisionError:
            raise ArithmeticFault("divided by zero") from None
        except ValueError as error:
            if isinstance(error, ArithmeticFault):
                raise
            raise ArithmeticFault(f"{name} has no value there") from None


def _divide(a: Number, b: Number) -> Number:
    if b == 0:
        raise ArithmeticFault("divided by zero")
    return Fraction(a, b) if isinstance(a, int) and isinstance(b, int) else a / b


_SUMS: dict[str, Callable[[Number, Number], Number]] = {"+": operator.add, "-": operator.sub}
_PRODUCTS: dict[str, Callable[[Number, Number], Number]] = {
    "*": operator.mul,
    "of": operator.mul,
    "/": _divide,
    "//": lambda a, b: math.floor(_divide(a, b)),
    "%": lambda a, b: a - b * math.floor(_divide(a, b)),
}


def _decimal(value: Fraction, places: int) -> str:
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
