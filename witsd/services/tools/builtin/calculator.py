"""``calculator``: arithmetic by a parser, exact where the value is."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from msgspec import Meta, Struct

from witsd.services.models.arithmetic import evaluate, shown
from witsd.services.models.arithmetic_functions import ArithmeticFault
from witsd.services.tools.tool import Answer, ToolContext, ToolFailed, tool
from witsd.values.wire.tools import TextContent

#: Beyond it a number in JSON is not read exactly everywhere.
_EXACT_IN_JSON = 1 << 53


class Args(Struct, frozen=True):
    expression: Annotated[
        str, Meta(max_length=500, description="as in 15 * 23 + 17, sqrt(2) / 3, 2 ** 100, 12% of 80, comb(52, 5)")
    ]


@tool(read_only=True, parallel=True, instant=True)
async def calculator(context: ToolContext, args: Args) -> Answer:
    """Calculate: + - * / // % **, parentheses, pi, e, and functions such as sqrt, log, sin, factorial, gcd, round.

    Whole numbers, decimals and fractions are exact, however long.
    """
    try:
        value = evaluate(args.expression)
    except ArithmeticFault as fault:
        raise ToolFailed(f"{args.expression!r} cannot be calculated: {fault}") from None
    text = shown(value)
    return Answer((TextContent(text=text),), {"result": _number(value, text)})


def _number(value: Fraction | float, text: str) -> int | float | str:
    if isinstance(value, Fraction) and value.denominator == 1 and abs(value.numerator) < _EXACT_IN_JSON:
        return value.numerator
    return value if isinstance(value, float) else text


TOOLS = (calculator,)
