"""A provider that answers from a cassette: the same request gets the same answer, and nothing goes over the network.

A cassette is JSON Lines, one call a line, made by real calls: with ``record = "PROVIDER"`` or
``"PROVIDER/MODEL"`` a request that the cassette does not have is put to that provider, and the answer is added. Without
``record`` such a request is an error that shows the nearest one there is and where it differs::

    {"request": {"messages": [...]}, "deltas": ["Hel", "lo"], "result": {"message": {...}, "usage": {...}, ...}}

What a request is: everything that may change its answer, so not ``stream``, ``run_id`` and ``timeout_s``. A model is
part of it where one was named. The file is read again when it has changed; it may be edited by hand.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import msgspec
import trio

from witsd.services.models.provider import Deltas, OnDelta, Provider, offered
from witsd.values.config_models import ProviderConfig
from witsd.values.errors import ModelError
from witsd.values.wire.models import Model, ModelsCompleteParams, ModelsCompleteResult

_MAX_BYTES = 64 * 1024 * 1024
_SHOWN = 90
#: How much of a request is compared to find the nearest, and how many of those recorded are looked at.
_COMPARED_CHARS, _COMPARED = 4000, 200
_NOT_PART = frozenset({"model", "stream", "run_id", "timeout_s"})


class CassetteError(Exception):
    """The cassette cannot be read; the text names file and line."""


class _Take(msgspec.Struct, frozen=True, omit_defaults=True):
    request: dict[str, Any]
    result: ModelsCompleteResult
    deltas: tuple[str, ...] = ()
    thoughts: tuple[str, ...] = ()


@attrs.frozen
class Cassette:
    """What a file holds, by the text of each request; a later take of a request goes before an earlier one."""

    takes: dict[str, _Take]
    stamp: tuple[int, int] = (0, 0)


def request_of(request: ModelsCompleteParams, model: str) -> dict[str, Any]:
    """What makes a request this one, without what says nothing."""
    fields = msgspec.json.decode(msgspec.json.encode(request))
    given = {key: value for key, value in fields.items() if key not in _NOT_PART and value not in (None, [], {})}
    return {"model": model, **given} if model else given


def load_cassette(path: Path, *, may_lack: bool) -> Cassette:
    """Read a cassette; ``may_lack``: no file is one without takes. Blocking. Raises ``CassetteError``."""
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        if may_lack:
            return Cassette({})
        raise CassetteError(f'cassette {path} does not exist: `record = "PROVIDER"` makes one') from None
    except OSError as error:
        raise CassetteError(f"cassette {path}: {error.strerror or 'cannot be read'}") from None
    if len(raw) > _MAX_BYTES:
        raise CassetteError(f"cassette {path}: larger than {_MAX_BYTES} bytes")
    takes: dict[str, _Take] = {}
    for number, line in enumerate(raw.splitlines(), 1):
        if line.strip():
            try:
                take = msgspec.json.decode(line, type=_Take)
            except (ValueError, RecursionError) as error:
                raise CassetteError(f"cassette {path}:{number}: {error}") from None
            takes[_text(take.request)] = take
    return Cassette(takes, (info.st_mtime_ns, info.st_size))


def nearest(cassette: Cassette, wanted: dict[str, Any]) -> str:
    """Which recorded request comes closest, and where it differs: the end of a sentence."""
    if not cassette.takes:
        return "it holds none"
    import difflib  # only by who replays

    matcher = difflib.SequenceMatcher(b=_words(_text(wanted)), autojunk=False)
    best, best_score = next(iter(cassette.takes)), -1.0
    for known in list(cassette.takes)[-_COMPARED:]:
        matcher.set_seq1(_words(known))
        # The cheap bounds first: the ratio itself costs the product of both lengths.
        if matcher.real_quick_ratio() > best_score and matcher.quick_ratio() > best_score:
            score = matcher.ratio()
            if score > best_score:
                best, best_score = known, score
    number = list(cassette.takes).index(best) + 1
    where = _difference(cassette.takes[best].request, wanted, "")
    return f"the nearest of {len(cassette.takes)} is number {number}, where {where}"


def _difference(recorded: Any, asked: Any, path: str) -> str:
    """The first place where two requests differ, in words."""
    if isinstance(recorded, dict) and isinstance(asked, dict):
        for key in (*asked, *(key for key in recorded if key not in asked)):
            inner = f"{path}.{key}" if path else key
            if key not in recorded:
                return f"there is no {inner} (asked: {_excerpt(asked[key])})"
            if key not in asked:
                return f"{inner} is {_excerpt(recorded[key])} (asked: none)"
            if recorded[key] != asked[key]:
                return _difference(recorded[key], asked[key], inner)
    if isinstance(recorded, list) and isinstance(asked, list):
        for index, (one, other) in enumerate(zip(recorded, asked, strict=False)):
            if one != other:
                return _difference(one, other, f"{path}[{index}]")
        return f"{path} has {len(recorded)} (asked: {len(asked)})"
    if isinstance(recorded, str) and isinstance(asked, str):
        pairs = enumerate(zip(recorded, asked, strict=False))
        same = next((at for at, (one, other) in pairs if one != other), min(len(recorded), len(asked)))
        start = max(0, same - _SHOWN // 3)
        return f"{path} is {_excerpt(recorded, start)} (asked: {_excerpt(asked, start)})"
    return f"{path} is {_excerpt(recorded)} (asked: {_excerpt(asked)})"


def _excerpt(value: Any, start: int = 0) -> str:
    text = value if isinstance(value, str) else _text(value)
    cut = text[start : start + _SHOWN]
    shown = ("…" if start else "") + cut + ("…" if start + _SHOWN < len(text) else "")
    return repr(shown) if isinstance(value, str) else shown


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text[-_COMPARED_CHARS:])


def _text(value: Any) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


@attrs.define(eq=False)
class ReplayProvider:
    """Plays the cassette at ``path``. ``source`` finds the provider to record from, None where there is none."""

    config: ProviderConfig
    path: Path
    source: Callable[[str], Provider | None]
    _cassette: Cassette | None = attrs.field(default=None, init=False)
    _reading: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def kind(self) -> str:
        return "replay"

    async def models(self) -> tuple[Model, ...]:
        reason = None
        try:
            await self._read()
            self._source()
        except (CassetteError, ModelError) as error:
            reason = str(error)
        return tuple(
            offered(name, self.name, reason, streams=self.config.streams) for name in self.config.models or (self.name,)
        )

    async def complete(
        self, request: ModelsCompleteParams, model: str, on_delta: OnDelta | None
    ) -> ModelsCompleteResult:
        model = "" if model == self.name else model
        wanted = request_of(request, model)
        deltas = Deltas.of(on_delta) if on_delta is not None and self.config.streams else None
        try:
            cassette = await self._read()
        except CassetteError as error:
            raise ModelError(str(error), provider=self.name, status=None) from None
        take = cassette.takes.get(_text(wanted))
        if take is not None:
            return await self._play(take, deltas)
        source = self._source()
        if source is None:
            near = await trio.to_thread.run_sync(nearest, cassette, wanted)
            raise ModelError(
                f"{self.name}: the cassette {self.path} has no answer to this request; {near}. "
                f'To add it: `record = "PROVIDER"` in [providers.{self.name}]',
                provider=self.name,
                status=None,
            )
        return await self._record(source, request, model, wanted, deltas)

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def _play(self, take: _Take, deltas: Deltas | None) -> ModelsCompleteResult:
        if deltas is not None:
            if deltas.thought is not None:
                for piece in take.thoughts:
                    await deltas.thought(piece)
            for piece in take.deltas or filter(None, [take.result.message.content]):
                await deltas.text(piece)
        return msgspec.structs.replace(take.result, provider=self.name)

    async def _record(
        self,
        source: Provider,
        request: ModelsCompleteParams,
        model: str,
        wanted: dict[str, Any],
        deltas: Deltas | None,
    ) -> ModelsCompleteResult:
        texts: list[str] = []
        thoughts: list[str] = []

        async def text(piece: str) -> None:
            texts.append(piece)
            if deltas is not None:
                await deltas.text(piece)

        async def thought(piece: str) -> None:
            thoughts.append(piece)
            if deltas is not None and deltas.thought is not None:
                await deltas.thought(piece)

        named = model or self.config.record.partition("/")[2]
        result = await source.complete(request, named, Deltas(text, thought) if deltas is not None else None)
        take = _Take(request=wanted, result=result, deltas=tuple(texts), thoughts=tuple(thoughts))
        try:
            await trio.to_thread.run_sync(_append, self.path, msgspec.json.encode(take) + b"\n")
        except OSError as error:
            text_of = error.strerror or type(error).__name__
            raise ModelError(
                f"{self.name}: the answer came, but cannot be added to the cassette {self.path}: {text_of}",
                provider=self.name,
                status=None,
            ) from None
        return msgspec.structs.replace(result, provider=self.name)

    def _source(self) -> Provider | None:
        """Where to record from; None: nowhere. Raises ``ModelError`` where it is named and not there."""
        if not self.config.record:
            return None
        name = self.config.record.partition("/")[0]
        found = self.source(name)
        if found is None or found is self:
            raise ModelError(
                f"{self.name}: `record` names the provider {name!r}, and there is no such other one: "
                "`witsd model list` shows them",
                provider=self.name,
                status=None,
            )
        return found

    async def _read(self) -> Cassette:
        async with self._reading:
            self._cassette = await trio.to_thread.run_sync(self._fresh, self._cassette)
            return self._cassette

    def _fresh(self, known: Cassette | None) -> Cassette:
        if known is not None:
            try:
                info = self.path.stat()
                if known.stamp == (info.st_mtime_ns, info.st_size):
                    return known
            except OSError:
                pass  # reading it anew says what is wrong
        return load_cassette(self.path, may_lack=bool(self.config.record))


def _append(path: Path, line: bytes) -> None:
    """Add a line, on disk when this returns. Others may not read it: it holds what was said."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line)
        os.fsync(fd)
    finally:
        os.close(fd)
