"""What ``arithmetic`` calls by name, each within bounds that are checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

#: Exact while it can be, a float from where it cannot. (A whole number stays an ``int``, which is much faster.)
Number = int | Fraction | float

_MAX_BITS = 8192
_MAX_EXPONENT = 2000
#: 1000! has 8530 bits.
_MAX_FACTORIAL = 900
_MANY = 100


class ArithmeticFault(ValueError):
    """The text is no expression, or its value is out of bounds; the message says which."""


def bounded(value: Number) -> Number:
    """``value``, unless it is out of bounds or no number."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ArithmeticFault("too large" if math.isinf(value) else "it has no value there")
        return value
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise ArithmeticFault("too large")
    return value


def power(base: Number, exponent: Number) -> Number:
    """Exact for whole exponents; refused before it is computed where it would be too large."""
    if base == 0 and exponent < 0:
        raise ArithmeticFault("divided by zero")
    if isinstance(base, float) or isinstance(exponent, float) or exponent.denominator != 1:
        if exponent == Fraction(1, 2):
            return _sqrt(base)
        if base < 0 and (isinstance(exponent, float) or exponent.denominator != 1):
            raise ArithmeticFault("a power of a negative number has no real value there")
        try:
            return bounded(float(base) ** float(exponent))
        except OverflowError:
            raise ArithmeticFault("too large") from None
    whole = exponent.numerator
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(whole) > _MAX_EXPONENT or size * abs(whole) > 2 * _MAX_BITS:
        raise ArithmeticFault("too large")
    return bounded(Fraction(base) ** whole)


def _whole(value: Number, least: int = -(1 << _MAX_BITS), most: int = 1 << _MAX_BITS) -> int:
    if value != math.floor(value):
        raise ArithmeticFault(f"{value} is to be a whole number")
    if value < least:
        raise ArithmeticFault(f"{math.floor(value)} is below {least}")
    if value > most:
        raise ArithmeticFault("too large")
    return int(value)


def _sqrt(value: Number) -> Number:
    if value < 0:
        raise ArithmeticFault("a negative number has no real root")
    if not isinstance(value, float):
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if top * top == value.numerator and bottom * bottom == value.denominator:
            return Fraction(top, bottom)
    return math.sqrt(value)


def _log(value: Number, base: Number | None = None) -> Number:
    if value <= 0 or (base is not None and (base <= 0 or base == 1)):
        raise ArithmeticFault("a logarithm is of a number above 0, to a base above 0 that is not 1")
    found = _ln(value) if base is None else _ln(value) / _ln(base)
    # log(1000, 10) is 3, whatever the floats say.
    near = round(found)
    exact = not isinstance(value, float) and not isinstance(base, float) and abs(found - near) < 1e-9
    if exact and abs(near) <= _MAX_EXPONENT and power(Fraction(base or 1), Fraction(near)) == value:
        return Fraction(near)
    return found


def _ln(value: Number) -> float:
    """Of fractions beyond the range of floats, too."""
    if isinstance(value, float):
        return math.log(value)
    return math.log(value.numerator) - math.log(value.denominator)


def _round(value: Number, places: Number = Fraction(0)) -> Number:
    return Fraction(round(Fraction(value), _whole(places, -400, 400)))


def _factorial(value: Number) -> Number:
    return Fraction(math.factorial(_whole(value, 0, _MAX_FACTORIAL)))


def _choose(function: Callable[[int, int], int]) -> Callable[..., Number]:
    def chosen(n: Number, k: Number) -> Number:
        # Beyond it, the value would have more than _MAX_BITS, or take as long as if it had.
        return Fraction(function(_whole(n, 0, 10_000), _whole(k, 0, 700)))

    return chosen


def _floats(function: Callable[..., float]) -> Callable[..., Number]:
    return lambda *given: function(*map(float, given))


def _mean(*given: Number) -> Number:
    total = sum(given[1:], given[0])
    return total / len(given) if isinstance(total, float) else Fraction(total) / len(given)


CONSTANTS: dict[str, Number] = {"pi": math.pi, "e": math.e, "tau": math.tau}

#: Name -> how many numbers it takes, at least and at most, and what it does with them.
FUNCTIONS: dict[str, tuple[int, int, Callable[..., Number]]] = {
    "abs": (1, 1, abs),
    "floor": (1, 1, lambda x: Fraction(math.floor(x))),
    "ceil": (1, 1, lambda x: Fraction(math.ceil(x))),
    "trunc": (1, 1, lambda x: Fraction(math.trunc(x))),
    "round": (1, 2, _round),
    "sqrt": (1, 1, _sqrt),
    "isqrt": (1, 1, lambda x: Fraction(math.isqrt(_whole(x, 0)))),
    "cbrt": (1, 1, _floats(math.cbrt)),
    "exp": (1, 1, _floats(math.exp)),
    "log": (1, 2, _log),
    "ln": (1, 1, _log),
    "log2": (1, 1, lambda x: _log(x, Fraction(2))),
    "log10": (1, 1, lambda x: _log(x, Fraction(10))),
    "pow": (2, 2, power),
    "factorial": (1, 1, _factorial),
    "comb": (2, 2, _choose(math.comb)),
    "perm": (2, 2, _choose(math.perm)),
    "gcd": (1, _MANY, lambda *given: Fraction(math.gcd(*map(_whole, given)))),
    "lcm": (1, _MANY, lambda *given: Fraction(math.lcm(*map(_whole, given)))),
    "min": (1, _MANY, lambda *given: min(given)),
    "max": (1, _MANY, lambda *given: max(given)),
    "sum": (1, _MANY, lambda *given: sum(given[1:], given[0])),
    "mean": (1, _MANY, _mean),
    "hypot": (1, _MANY, _floats(math.hypot)),
    "degrees": (1, 1, _floats(math.degrees)),
    "radians": (1, 1, _floats(math.radians)),
    **{
        name: (1, 1, _floats(getattr(math, name)))
        for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh")
    },
    "atan2": (2, 2, _floats(math.atan2)),
    "erf": (1, 1, _floats(math.erf)),
    "gamma": (1, 1, _floats(math.gamma)),
}
