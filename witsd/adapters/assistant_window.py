"""Keeping a conversation within what a model can read: its end is sent, and of what came before, a summary.

Tokens are estimated, at four characters each and a few for every message: a model's own count differs, so that a
quarter of its window is left free.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from msgspec import UNSET, structs
from witsd_client.generated import ChatMessage

#: A request's messages together, in characters: a message to the daemon ends at 4 MiB.
MAX_SENT_CHARS = 900_000
_CHARS_A_TOKEN = 4
_TOKENS_A_MESSAGE = 6
#: Of the window, so much is for the conversation; the rest for the answer, the tools and what was estimated too low.
_SHARE = 0.75
#: What old answers of tools are cut to before anything else goes, in characters.
_OLD_RESULT = 400
SUMMARY = "Summary of the conversation so far, which was too long to be kept word for word:\n"
SUMMARISE = (
    "Summarise the conversation above for yourself, in at most 300 words: what was asked and decided, facts, names and"
    " figures that may be needed again, and what is still open. Write the summary alone."
)


def window(conversation: Sequence[ChatMessage], limit: int) -> list[ChatMessage]:
    """The end of the conversation: ``limit`` messages at most, and no more text than a request can carry.

    It begins with a person's message where it can, and never with the answer of a tool whose call was
    cut off. The last message is always there.
    """
    start, size = len(conversation), 0
    while start > max(0, len(conversation) - limit):
        size += len(conversation[start - 1].content)
        if size > MAX_SENT_CHARS and start < len(conversation):
            break
        start -= 1
    kept = list(conversation[start:])
    if start > 0:
        for wanted in (("user",), ("user", "assistant", "system")):
            at = next((i for i, message in enumerate(kept) if message.role in wanted), None)
            if at is not None:
                return kept[at:]
    return kept


def tokens(messages: Sequence[ChatMessage]) -> int:
    """An estimate."""
    return sum(_tokens(message) for message in messages)


def _tokens(message: ChatMessage) -> int:
    calls = () if message.tool_calls is UNSET else message.tool_calls
    chars = len(message.content) + sum(len(call.name) + len(call.arguments) for call in calls)
    return _TOKENS_A_MESSAGE + chars // _CHARS_A_TOKEN


async def fitted(
    messages: Sequence[ChatMessage],
    context_tokens: int,
    summarise: Callable[[Sequence[ChatMessage]], Awaitable[str]],
) -> list[ChatMessage]:
    """``messages`` within ``context_tokens`` (0: as much as a request can carry).

    Old answers of tools are cut first; then what comes before the last person's message is replaced by its summary;
    then the longest texts that are left are cut.
    """
    most = int(context_tokens * _SHARE) or MAX_SENT_CHARS // _CHARS_A_TOKEN
    if tokens(messages) <= most:
        return list(messages)
    head = [message for message in messages[:1] if message.role == "system"]
    rest = list(messages[len(head) :])
    asked = max((place for place, message in enumerate(rest) if message.role == "user"), default=0)
    rest = [_cut(m, _OLD_RESULT) if m.role == "tool" and place < asked else m for place, m in enumerate(rest)]
    if tokens([*head, *rest]) > most and asked > 0:
        # The model that summarises has the same window: it is given the end of what there is.
        told = _last(rest[:asked], most - tokens(head) - _tokens(_request()))
        summary = await summarise([*told, _request()])
        rest = [ChatMessage(role="system", content=SUMMARY + summary), *rest[asked:]] if summary else rest[asked:]
    while tokens([*head, *rest]) > most:
        place = max(range(len(rest)), key=lambda i: len(rest[i].content))
        if len(rest[place].content) <= _OLD_RESULT:
            break
        rest[place] = _cut(rest[place], max(_OLD_RESULT, len(rest[place].content) // 2))
    return [*head, *rest]


def _request() -> ChatMessage:
    return ChatMessage(role="user", content=SUMMARISE)


def _last(messages: Sequence[ChatMessage], most: int) -> list[ChatMessage]:
    kept: list[ChatMessage] = []
    for message in reversed(messages):
        if tokens([message, *kept]) > most and kept:
            break
        kept.insert(0, message)
    while kept and kept[0].role == "tool":
        kept.pop(0)
    return kept


def _cut(message: ChatMessage, most: int) -> ChatMessage:
    text = message.content
    if len(text) <= most:
        return message
    half = most // 2
    left_out = f"\n[... {len(text) - 2 * half} characters left out ...]\n"
    return structs.replace(message, content=text[:half] + left_out + text[-half:])
