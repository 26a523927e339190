"""The built-in answerer: deterministic rules, and honest that they are no language model.

``reply`` is a pure function of the conversation, the tools and the time. It answers what rules can:
greetings, what it can do, date and time, arithmetic, what was said in this conversation or recalled from
memory (then with its source), what witsd's own words mean, a summary made of a text's own sentences,
and it calls tools that the words ask for. Everything else it says it cannot, and how to connect a model.
Usage counts words as tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import attrs
import trio

from witsd.services.memory.statements import attribute, facts, refers_back, statements, subject_of
from witsd.services.models.arithmetic import evaluate, find_expression, shown
from witsd.services.models.arithmetic_functions import ArithmeticFault
from witsd.services.models.offline_memory import Memory, fitting, has_memory, recalled, remembered
from witsd.services.models.offline_text import fenced, recall, summary, words
from witsd.services.models.offline_tools import asked_tool, tool_answer
from witsd.services.models.offline_words import COMMANDS, CONCEPTS, CONNECT, HONEST
from witsd.services.models.provider import OnDelta
from witsd.values.clock import Clock
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import (
    ChatMessage,
    Model,
    ModelsCompleteParams,
    ModelsCompleteResult,
    ToolCall,
    ToolDefinition,
)
from witsd.values.wire.runs import Usage

#: How much of a message the rules look at: a question stands at its beginning, and no expression below can
#: then be made to search for long.
_LOOKED_AT = 400

_GREETING = re.compile(
    r"(?i)^\W*(?:hi|hello|hey|good (?:morning|afternoon|evening)|greetings)(?: there| witsd)?\W*$"
)
_THANKS = re.compile(
    r"(?i)^\W*(?:many )?(?:thanks|thank you|thx|cheers)(?: (?:a lot|very much|so much))?\W*$"
)
_BYE = re.compile(r"(?i)^\W*(?:bye|goodbye|good night|see you)(?: \w+)?\W*$")
_ABLE = re.compile(
    r"(?i)\bwhat can (?:you|i) (?:do|ask)\b|\bwhat (?:tools|commands)\b|^\W*help\b(?: me)?\W*$"
    r"|\bhow can you help\b"
)
_WHO = re.compile(
    r"(?i)\bwho are you\b|\bwhat are you\b|\b(?:which|what) model\b|\bwhat(?:'s| is) your name\b"
    r"|\bare you (?:an? )?(?:ai|llm|language model|chatgpt|gpt|bot|human|real)\b"
)
_HOW = re.compile(
    r"(?i)\b(?:connect|add|use|configure|set ?up)\b.{0,30}\b(?:model|llm|openai|ollama|api key)\b"
)
_CLOCK = re.compile(
    r"(?i)\bwhat(?:'s| is)?\s+(?:the\s+)?(?:current\s+|local\s+)?(time|date|day|year|month)"
    r"(?:\s+(?:is\s+it|of\s+the\s+week|today|now|it\s+is|and\s+(?:date|time)))*\s*(?:right now|please)?\W*$"
    r"|\bwhat (time|day|date|year|month) is (?:it|today)\b|\b(today)'s date\b|^\W*(time|date)\W*$"
    r"|\b(?:tell me|give me) the (?:current )?(time|date)\b"
)
_DEFINE = re.compile(
    r"(?i)^\W*(?:what(?:'s| is| are| does)|define|explain|tell me about)\s+(?:an?\s+|the\s+)?([a-z]+?)s?"
    r"(?:\s+(?:mean|in witsd|here))*\W*$"
)
_ASK_FACT = re.compile(
    r"(?i)\b(?:what(?:['\u2019]s| is| are| was| were)|tell me|(?:do you )?(?:remember|know|recall)|which is)"
    r"\s+my\s+([a-z][a-z' -]{0,40}?)\s*(?:again|now|please)?\s*(?:[?.!]|$)"
)
_ASK_NAME = re.compile(r"(?i)\bwho am i\b|\bwhat am i called\b")
_ASK_PLACE = re.compile(r"(?i)\bwhere do i (live|work)\b")
_ASK_ALL = re.compile(r"(?i)\bwhat do you (?:know|remember) about me\b")
_MESSAGE = r"(?:message|question|sentence|prompt)"
_SAID = re.compile(
    r"(?i)\bwhat (?:did|was)\b.*?\bi\b.*?\b(?:say|said|ask|asked|write|wrote|tell)\b.*?"
    r"\b(first|last|before|earlier|just now|previously)?\W*$"
    rf"|\bmy (first|last|previous) {_MESSAGE}\b"
)
_REPLIED = re.compile(
    r"(?i)\bwhat (?:did|was)\b.*\byou\b.*\b(?:say|said|answer|answered|reply)\b"
    r"|\brepeat (?:that|yourself)\b|\byour last (?:answer|message)\b"
)
_COUNT = re.compile(
    r"(?i)\bhow many (?:messages|questions)\b.*\b(?:i|we|you|conversation|so far|here|chat)\b"
)
_TALK = re.compile(
    r"(?i)\b(?:summari[sz]e|sum up|repeat|recap|replay|show)\b.{0,20}\b"
    r"(?:conversation|chat|discussion|dialogue)\b"
    r"|\bwhat have we (?:talked|spoken) about\b"
)
_SUMMARISE = re.compile(
    r"(?is)\b(?:summari[sz]e|sum up|tl;?dr|(?:give|make|write)(?: me)? a summary)\b"
    r"(?:\s+(?:this|that|it|the|of|following|text|message|for|me|above|below|article|file|attached|attachment)\b)*\s*[:,.?!-]*\s*(.*)$"
)
_TELLS = re.compile(r"(?i)\bmy\b.+\b(?:is|are)\b|\b(?:i am called|i'm called|call me|i live|i work)\b")
_ASKS = re.compile(
    r"(?i)\?\W*$|^\W*(?:wh(?:at|en|ere|ich|o|om|ose|y)|how|is|are|was|were|do|does|did|can|could|has|have|tell me"
    r"|find)\b"
)
_REMEMBER = re.compile(r"(?i)^\W*(?:please\s+)?(?:remember|note|keep in mind)\b")


def reply(messages: Sequence[ChatMessage], tools: Sequence[ToolDefinition], now: datetime) -> ChatMessage:
    """The answer to the last message: text, or one tool call. The same input gives the same answer."""
    if messages and messages[-1].role == "tool":
        return _say(tool_answer(messages))
    said = [message.content for message in messages if message.role == "user"]
    text = said[-1].strip() if said else ""
    if not text:
        return _say("You have sent an empty message. Ask “what can you do?” to see what I can answer.")
    spoken = _conversation(text, said, messages)
    if spoken is not None:
        return _say(spoken)
    brief = text[:_LOOKED_AT]
    clock = _CLOCK.search(brief)
    used = asked_tool(text, tools, f"call_{len(messages)}", asks_time=clock is not None)
    if isinstance(used, ToolCall):
        return ChatMessage(role="assistant", content="", tool_calls=(used,))
    if clock is not None:
        return _say(_date(next((group for group in clock.groups() if group), "date"), now))
    expression = find_expression(text)
    if expression is not None:
        return _say(_calculated(expression))
    return _say(_known(brief, said, tools) or used or _unknown(brief, said, messages))


def _conversation(text: str, said: list[str], messages: Sequence[ChatMessage]) -> str | None:
    """Answers out of the conversation itself: they go before any tool."""
    brief, earlier = text[:_LOOKED_AT], said[:-1]
    if _TALK.search(brief):
        return _recap(brief, messages[:-1])
    wanted = _SUMMARISE.search(text)
    if wanted is not None:
        return _summarised(text[: wanted.start()], wanted.group(1), text, messages[:-1])
    personal = _personal(brief, said, recalled(messages))
    if personal is not None:
        return personal
    if _COUNT.search(brief):
        mine = sum(message.role == "assistant" for message in messages)
        total = "1 message" if len(said) + mine == 1 else f"{len(said) + mine} messages"
        return f"So far there are {total} here: {len(said)} from you, this one included, and {mine} from me."
    if _REPLIED.search(brief):
        answers = [m.content for m in messages if m.role == "assistant" and m.content]
        return f"My last answer was: “{answers[-1]}”" if answers else "I have not said anything before this."
    back = _SAID.search(brief)
    if back is not None:
        if not earlier:
            return "This is your first message in this conversation."
        first = "first" in (back.group(1) or back.group(2) or "").lower()
        which, quoted = ("first", earlier[0]) if first else ("previous", earlier[-1])
        return f"Your {which} message was: “{quoted.strip()}”"
    return None


def _personal(text: str, said: list[str], memories: Sequence[Memory]) -> str | None:
    """What the asker told about themselves, here or as it was recalled, where that is asked for."""
    place, asked = _ASK_PLACE.search(text), _ASK_FACT.search(text)
    if place is not None:
        key = place.group(1).lower()
    elif asked is not None:
        key = attribute(asked.group(1))
    else:
        key = "name" if _ASK_NAME.search(text) else ""
    everything = _ASK_ALL.search(text)
    if not everything and (not key or re.fullmatch(rf"(?:first|last|previous) {_MESSAGE}", key)):
        return None
    known, before = facts(said), remembered(memories)
    if everything:
        return _all_known(known, before)
    for form in (key, f"{key}s", key.removesuffix("s")):
        value, memory = before.get(form, ("", None))
        if form in known:
            told = f"{_sentence(form, known[form])}."
            if memory is not None and value.casefold() != known[form].casefold():
                told += f" That is what you said here. {memory.quoted}"
            return told
        if memory is not None:
            return f"{_sentence(form, value)}. {memory.quoted}"
    missing = f"where you {key}" if key in ("live", "work") else f"your {key}"
    return f"You have not told me {missing} in this conversation."


def _all_known(known: dict[str, str], before: dict[str, tuple[str, Memory]]) -> str:
    parts = []
    if known:
        parts.append("You told me: " + "; ".join(_yours(name, value) for name, value in known.items()) + ".")
    sources = dict.fromkeys(memory for name, (_, memory) in before.items() if name not in known)
    parts += [memory.quoted for memory in sources]
    return "\n".join(parts) or "You have told me nothing about yourself in this conversation yet."


def _known(text: str, said: list[str], tools: Sequence[ToolDefinition]) -> str | None:
    if _GREETING.match(text):
        name = facts(said).get("name")
        return (
            f"Hello{', ' + name if name else ''}! {HONEST}. Ask “what can you do?” to see what I can answer."
        )
    if _THANKS.match(text):
        return "You are welcome."
    if _BYE.match(text):
        return "Goodbye."
    if _ABLE.search(text):
        return _abilities(tools)
    if _HOW.search(text):
        return CONNECT
    if _WHO.search(text):
        return f"{HONEST}. I answer when no model is connected. {CONNECT}"
    meant = _DEFINE.match(text)
    if meant is not None:
        word = meant.group(1).lower()
        for form in (word, word + "s", word.removesuffix("ie") + "y"):
            if form in CONCEPTS:
                return CONCEPTS[form]
    return None


def _unknown(text: str, said: list[str], messages: Sequence[ChatMessage]) -> str:
    remembers = has_memory(messages)
    subject = subject_of(said[-2]) if len(said) > 1 and refers_back(text) else ""
    told = statements(text, subject) if not text.endswith("?") and (subject or _TELLS.search(text)) else []
    quoted = None if told else recall(text, said[:-1])
    if quoted is not None:
        return f"In this conversation it was said: “{quoted}”"
    if told:
        noted = " and ".join(_yours(one.about, one.value) for one in told)
        if remembers:
            return f"Noted: {noted}. I remember it: ask me in any conversation."
        return f"Noted: {noted}. I can tell you that again in this conversation."
    if _REMEMBER.match(text):
        if remembers:
            return "Noted, and remembered: ask about it in any conversation and I quote it."
        return "Noted. Ask about it and I quote it, in this conversation only: I keep nothing beyond it."
    memory = fitting(text, recalled(messages)) if _ASKS.search(text) else None
    if memory is not None:
        return f"{memory.quoted}\n(That is what I find in memory, by its words; I am no language model.)"
    return f"I cannot answer that: {HONEST}. {CONNECT}"


def _abilities(tools: Sequence[ToolDefinition]) -> str:
    lines = [
        f"{HONEST}. Without a model I can:",
        "- tell the date and time, and calculate exactly (“what is 12% of 80?”)",
        "- answer from this conversation (“my name is Ada”, later “what is my name?”) and repeat it, and quote what"
        " you told me in others",
        "- summarise a text you paste or attach, with its own sentences (“summarise: …”)",
        "- explain witsd's own words: agent, run, session, event, journal, model, tool …",
    ]
    if tools:
        lines.append("- call these tools when you ask for them:")
        for tool in tools:
            first, _, _ = tool.description.strip().partition("\n")
            lines.append(f"  - {tool.name}{': ' if first else ''}{first}")
    lines += [f"On the command line: {COMMANDS}.", CONNECT]
    return "\n".join(lines)


def _summarised(lead: str, inline: str, text: str, before: Sequence[ChatMessage]) -> str:
    blocks = fenced(text)
    source = "\n\n".join(blocks) if blocks else inline.strip()
    if len(words(source)) < 4 and len(words(lead)) > 20:
        source = lead  # the text, then "summarise this"
    if len(words(source)) < 4:
        # "summarise that": the longest thing said, the latest where equal.
        said = [message.content for message in before if message.role in ("user", "assistant")]
        longest = max(reversed(said), key=len, default="")
        source = "\n\n".join(fenced(longest)) or longest
    if len(words(source)) < 4:
        return "There is no text to summarise: paste it after “summarise:” or attach a file."
    chosen = summary(source)
    return "In its own words (I pick sentences, I do not rewrite them):\n" + "\n".join(
        f"- {line}" for line in chosen
    )


def _recap(text: str, before: Sequence[ChatMessage]) -> str:
    turns = [m for m in before if m.role in ("user", "assistant") and m.content.strip()]
    if not turns:
        return "There is nothing to repeat yet: this is the first message."
    brief = not re.search(r"(?i)\b(?:repeat|replay|show)\b", text)
    lines = []
    for turn in turns[-50:]:
        said = " ".join(turn.content.split())
        if brief and len(said) > 160:
            said = said[:160].rstrip() + " …"
        lines.append(f"- {'You' if turn.role == 'user' else 'I'}: {said}")
    skipped = len(turns) - len(lines)
    head = (
        f"The last {len(lines)} of {len(turns)} messages:"
        if skipped
        else f"We have exchanged {len(turns)} messages:"
    )
    return "\n".join([head, *lines])


def _sentence(key: str, value: str) -> str:
    told = _yours(key, value)
    return f"{told[0].upper()}{told[1:]}"


def _yours(key: str, value: str) -> str:
    if key in ("live", "work"):
        return f"you {key} {value}"
    return f"your {key} {'are' if key.endswith('s') and not key.endswith('ss') else 'is'} {value}"


def _date(what: str, now: datetime) -> str:
    zone = now.tzname() or "UTC"
    if what.lower() == "time":
        return f"It is {now:%H:%M:%S} {zone} on {now:%A}, {now.day} {now:%B %Y}."
    return f"Today is {now:%A}, {now.day} {now:%B %Y} ({zone})."


def _calculated(expression: str) -> str:
    try:
        return f"{expression} = {shown(evaluate(expression))}"
    except ArithmeticFault as fault:
        return f"{expression} has no value I can give: {fault}."


def _say(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


@attrs.define(eq=False)
class OfflineProvider:
    """``reply`` as a provider: always available, streams word by word."""

    clock: Clock
    provider_name: str = "offline"

    @property
    def name(self) -> str:
        return self.provider_name

    @property
    def kind(self) -> str:
        return "offline"

    async def models(self) -> tuple[Model, ...]:
        return (
            Model(
                name=self.name, provider=self.name, kind="chat", default=False, available=True, streams=True
            ),
        )

    async def complete(
        self, request: ModelsCompleteParams, model: str, on_delta: OnDelta | None
    ) -> ModelsCompleteResult:
        now = datetime.fromtimestamp(self.clock.wall_us() / 1_000_000, UTC)
        # In a thread: a long text to summarise must not hold up the loop.
        message = await trio.to_thread.run_sync(reply, request.messages, request.tools, now)
        if on_delta is not None:
            for word in re.findall(r"\s*\S+\s*", message.content):
                await on_delta(word)
        calls = message.tool_calls is not UNSET
        return ModelsCompleteResult(
            message=message,
            usage=Usage(
                input_tokens=sum(len(m.content.split()) for m in request.messages),
                output_tokens=len(message.content.split()),
                calls=1,
            ),
            finish_reason="tool_calls" if calls else "stop",
            model=self.name,
            provider=self.name,
        )

    async def aclose(self) -> None:
        """Nothing is held open."""
