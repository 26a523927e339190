"""What a call costs, and how many tokens it may take: figures before it is made, and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import attrs
import msgspec

from witsd.values.config_models import PriceConfig
from witsd.values.wire.budgets import Left
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import ModelsCompleteParams, ModelsCompleteResult
from witsd.values.wire.runs import Usage

#: Providers that never cost anything.
_FREE = ("offline", "scripted", "replay")
#: A token of most languages has about so many characters.
_CHARS_A_TOKEN = 4
#: What is set aside for an answer of unknown length; where less is left, the answer is bounded by that.
_ANSWER_TOKENS = 2048
_encode = msgspec.json.Encoder().encode


@attrs.frozen
class Price:
    """US dollars for a million tokens, in and out."""

    input_usd: float = 0.0
    output_usd: float = 0.0

    def of(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self.input_usd + output_tokens * self.output_usd) / 1e6


def find_price(prices: Sequence[PriceConfig], kind: str, provider: str, model: str) -> Price | None:
    """The price of ``provider/model``, by the first name or pattern that fits; None where it is not known."""
    for row in prices:
        if fnmatchcase(f"{provider}/{model}", row.name) or fnmatchcase(model, row.name):
            return Price(row.input_usd, row.output_usd)
    return Price() if kind in _FREE else None


def tokens_in(params: ModelsCompleteParams) -> int:
    """About how many tokens a request has."""
    chars = sum(len(message.content) + 8 for message in params.messages)
    chars += sum(
        len(call.arguments) + len(call.name)
        for message in params.messages
        if message.tool_calls is not UNSET
        for call in message.tool_calls
    )
    if params.tools:
        chars += len(_encode(params.tools))
    return -(-chars // _CHARS_A_TOKEN)


def tokens_of(text_chars: int) -> int:
    """About how many tokens so many characters are."""
    return -(-text_chars // _CHARS_A_TOKEN)


def fitted(
    params: ModelsCompleteParams, left: Left, price: Price | None, asked: int
) -> tuple[ModelsCompleteParams, int]:
    """The request, its answer bounded by what is left, and how many tokens of an answer to set aside."""
    room = math.inf
    if left.tokens is not UNSET:
        room = left.tokens - asked
    if left.cost_usd is not UNSET and price is not None and price.output_usd > 0:
        room = min(room, (left.cost_usd - price.of(asked, 0)) / price.output_usd * 1e6)
    wanted = params.max_tokens
    if room == math.inf:
        return params, wanted or 0
    most = max(1, int(room))
    if most < (wanted if wanted is not None else _ANSWER_TOKENS):
        return msgspec.structs.replace(params, max_tokens=most), most
    return params, wanted if wanted is not None else _ANSWER_TOKENS


def completed(result: ModelsCompleteResult, price: Price | None, *, asked: int, calls: int) -> Usage:
    """What a call used: as the provider says or, where it says nothing, about."""
    said = result.usage
    tokens = (said.input_tokens, said.output_tokens)
    if tokens == (0, 0):
        tool_calls = () if result.message.tool_calls is UNSET else result.message.tool_calls
        chars = len(result.message.content) + sum(len(call.name) + len(call.arguments) for call in tool_calls)
        tokens = (asked, tokens_of(chars))
    cost = price.of(*tokens) if price is not None else said.cost_usd
    return Usage(input_tokens=tokens[0], output_tokens=tokens[1], calls=calls, cost_usd=cost)
