"""``protocol/`` is what the declarations say, and every reader of it agrees.

The vectors are run by the daemon's decoder, by the Python client's types and by the JSON Schemas; each
check is also run with something deliberately broken, which must not pass it.
"""

from __future__ import annotations

import json
import keyword
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import generate
import jsonschema
import msgspec
import pytest
from generator import rules
from msgspec import Raw
from witsd_client import generated

from witsd.rpc import schema
from witsd.rpc.codec import params_decoder
from witsd.rpc.framing import Framer, Oversize, Truncated
from witsd.values.errors import InvalidParams, error_types
from witsd.values.items import Item
from witsd.values.wire.event_types import EVENT_TYPES

ROOT = generate.ROOT
VECTORS = ROOT / "protocol" / "vectors"
TYPES: dict[str, type] = {cls.__name__: cls for cls in schema.related(schema.wire_types())}
GROUPS = ("params", "results", "events", "agent", "items")


@attrs.frozen
class Vector:
    """One row of ``vectors/``: ``path`` None says that it is valid."""

    group: str
    type: str
    name: str
    raw: bytes
    value: Any
    canonical: str | None
    path: str | None

    @property
    def wire_type(self) -> Any:
        return Item if self.group == "items" else TYPES[self.type]

    @property
    def client_type(self) -> Any:
        return generated.Item if self.group == "items" else getattr(generated, self.type)


def _read(group: str) -> Iterator[Vector]:
    for name, rows in json.loads((VECTORS / f"{group}.json").read_text())["types"].items():
        for row in (*rows["valid"], *rows["invalid"]):
            value = row["value"]
            raw = json.dumps(value).encode()
            yield Vector(group, name, row["name"], raw, value, row.get("canonical"), row.get("path"))


ALL = [vector for group in GROUPS for vector in _read(group)]


# Freshness


def test_what_is_committed_is_what_the_declarations_say() -> None:
    assert generate.stale(ROOT, generate.generated()) == [], "run `make generate` and commit the result"


@pytest.mark.parametrize("seed", ["1", "2"])
def test_generating_depends_on_nothing_but_the_declarations(seed: str, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": seed, "LC_ALL": "C"}
    command = [sys.executable, str(ROOT / "protocol" / "generate.py"), "--check"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_what_is_stale_and_the_command_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    (tmp_path / "clients/python/witsd_client").mkdir(parents=True)
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "protocol/openrpc.json").write_text("{}")
    (tmp_path / "protocol/errors.json").unlink()
    (tmp_path / "protocol/schemas/Gone.json").write_text("{}")
    capsys.readouterr()

    assert generate.main(["--check"]) == 1
    said = capsys.readouterr().err
    for name in ("protocol/openrpc.json", "protocol/errors.json", "protocol/schemas/Gone.json"):
        assert f"{name} is stale" in said
    assert "make generate" in said

    assert generate.main([]) == 0
    assert not (tmp_path / "protocol/schemas/Gone.json").exists()
    assert generate.main(["--check"]) == 0


def test_every_generated_file_says_what_generates_it() -> None:
    for name in generate.generated():
        head = (ROOT / name).read_text()[:400]
        assert "enerated by protocol/generate.py" in head, name
        assert "make generate" in head, name


# The daemon's reader

Reader = Callable[[Vector], Any]


def daemon_reader(vector: Vector) -> Any:
    return params_decoder(vector.wire_type)(Raw(vector.raw))


def daemon_failures(read: Reader) -> list[str]:
    """The vectors that ``read`` gets wrong."""
    failed = []
    for vector in ALL:
        try:
            got = msgspec.json.encode(read(vector)).decode()
            right = vector.path is None and got == vector.canonical
        except InvalidParams as error:
            right = vector.path is not None and error.data["path"] == "params" + vector.path[1:]
        if not right:
            failed.append(f"{vector.type}: {vector.name}")
    return failed


def test_the_daemon_reads_the_vectors() -> None:
    assert daemon_failures(daemon_reader) == []


def _takes_anything(vector: Vector) -> Any:
    return json.loads(vector.raw)


def _coerces(vector: Vector) -> Any:
    try:
        return msgspec.json.decode(vector.raw, type=vector.wire_type, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidParams("refused", path="params") from error


def _names_no_path(vector: Vector) -> Any:
    try:
        return daemon_reader(vector)
    except InvalidParams as error:
        raise InvalidParams(error.message, path="params") from None


@pytest.mark.parametrize("broken", [_takes_anything, _coerces, _names_no_path])
def test_a_broken_daemon_fails_the_vectors(broken: Reader) -> None:
    assert len(daemon_failures(broken)) > 50


# The Python client's reader


def client_reader(vector: Vector) -> Any:
    return msgspec.json.decode(vector.raw, type=vector.client_type)


def client_failures(read: Reader) -> list[str]:
    """The valid vectors of which ``read`` loses or changes something, as the daemon sees it.

    A client need not refuse what the daemon would never send, so invalid ones are not asked of it.
    """
    failed = []
    for vector in ALL:
        if vector.path is not None:
            continue
        try:
            again = msgspec.json.encode(read(vector))
            got = msgspec.json.encode(msgspec.json.decode(again, type=vector.wire_type)).decode()
        except msgspec.ValidationError as error:
            got = str(error)
        if got != vector.canonical:
            failed.append(f"{vector.type}: {vector.name}: {got}")
    return failed


def test_the_python_client_reads_the_vectors() -> None:
    assert client_failures(client_reader) == []


def _drops_nulls(vector: Vector) -> Any:
    value = json.loads(vector.raw)
    return {key: part for key, part in value.items() if part not in (None, False, 0)}


def _mangles_text(vector: Vector) -> Any:
    return json.loads(vector.raw.decode("ascii").replace("\\ud834\\udd1e", "?"))


@pytest.mark.parametrize("broken", [_drops_nulls, _mangles_text])
def test_a_broken_client_fails_the_vectors(broken: Reader) -> None:
    assert client_failures(broken)


def test_the_client_reads_words_and_fields_of_a_newer_daemon() -> None:
    raw = b'{"name":"a","health":"x_new","x_new":[1]}'
    assert str(msgspec.json.decode(raw, type=generated.AgentHealthData).health) == "x_new"


# The JSON Schemas


def _validator(name: str, schemas: dict[str, Any]) -> Any:
    document = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    return jsonschema.Draft202012Validator(document)


def test_the_schemas_tell_the_valid_vectors_from_the_invalid_ones() -> None:
    schemas = schema.component_schemas()
    across_fields = {(name, row[0]) for name, rows in rules.INVALID.items() for row in rows}
    wrong = []
    validators = {name: _validator(name, schemas) for name in schemas}
    for vector in ALL:
        if (vector.type, vector.name) in across_fields:
            continue
        if validators[vector.type].is_valid(vector.value) != (vector.path is None):
            wrong.append(f"{vector.type}: {vector.name}")
    assert wrong == []


def test_each_schema_file_is_a_json_schema_whose_references_exist() -> None:
    files = sorted((ROOT / "protocol/schemas").glob("*.json"))
    assert {path.stem for path in files} == set(schema.component_schemas())
    for path in files:
        document = json.loads(path.read_text())
        jsonschema.Draft202012Validator.check_schema(document)
        for ref in _refs(document):
            assert (path.parent / ref).is_file(), f"{path.name} refers to {ref}"


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _refs(part)


# The OpenRPC document


def test_the_document_is_openrpc() -> None:
    document = schema.openrpc()
    assert document["openrpc"] == "1.4.0"
    assert document["info"].keys() >= {"title", "version"}
    names = [method["name"] for method in document["methods"]]
    assert len(set(names)) == len(names)
    for method in document["methods"]:
        assert method.keys() >= {"name", "params", "result"}
        assert method["paramStructure"] in ("by-name", "by-position", "either")
        assert method["result"].keys() >= {"name", "schema"}
        params = method["params"]
        assert all(param.keys() >= {"name", "schema", "required"} for param in params)
        assert len({param["name"] for param in params}) == len(params)
        needed = [param["required"] for param in params]
        assert needed == sorted(needed, reverse=True), f"{method['name']}: what is optional comes last"
    for ref in _refs(document):
        part: Any = document
        for step in ref.removeprefix("#/").split("/"):
            assert step in part, f"{ref} leads nowhere"
            part = part[step]
    errors = document["components"]["errors"]
    assert {error["code"] for error in errors.values()} == {cls.code for cls in error_types()}
    assert set(document["x-witsd-events"]) == set(EVENT_TYPES)


def test_the_document_says_who_may_call_what() -> None:
    described = {method["name"]: method for method in schema.openrpc()["methods"]}
    for name, method in schema.methods().items():
        row = described[name]
        assert row.get("x-scope") == (method.scope.value if method.scope else None)
        assert (row["x-agents"], row["x-mutates"]) == (method.agents, method.mutates)


# The client's typed calls


async def test_every_method_has_a_typed_call() -> None:
    calls: list[tuple[str, dict[str, Any], Any]] = []

    async def call(method: str, params: dict[str, Any], result_type: Any) -> Any:
        calls.append((method, params, result_type))

    api = generated.Api(call)
    for name, method in schema.methods().items():
        noun, _, verb = name.replace(".", "/").rpartition("/")
        verb = f"{verb}_" if keyword.iskeyword(verb) else verb
        bound = getattr(getattr(api, noun) if noun not in ("", "rpc") else api, verb)
        example = msgspec.json.decode(next(v.raw for v in ALL if v.type == method.params.__name__))
        await bound(**example)
        sent, params, result_type = calls.pop()
        assert sent == name
        assert params == ({"protocol_version": "1"} if name == "initialize" else example)
        if method.result is not dict:
            assert result_type is getattr(generated, method.result.__name__)


def test_the_client_knows_every_error() -> None:
    known = {code: (error.name, error.retryable) for code, error in generated.ERRORS.items()}
    assert known == {cls.code: (cls.name, cls.retryable) for cls in error_types()}


# Framing

FRAMING = json.loads((VECTORS / "framing.json").read_text())
Feeding = Callable[[bytes], list[Any]]


def _whole(data: bytes) -> list[Any]:
    framer = Framer(FRAMING["limit_bytes"])
    return [*framer.feed(data), *framer.end()]


def _bytewise(data: bytes) -> list[Any]:
    framer = Framer(FRAMING["limit_bytes"])
    parts = [message for i in range(len(data)) for message in framer.feed(data[i : i + 1])]
    return parts + framer.end()


def _lines_only(data: bytes) -> list[Any]:
    framer = Framer(FRAMING["limit_bytes"], newline_only=True)
    return [*framer.feed(data), *framer.end()]


def framing_failures(feed: Feeding) -> list[str]:
    failed = []
    for row in FRAMING["framing"]:
        got: list[Any] = []
        for message in feed(row["in"].encode()):
            if isinstance(message, Oversize):
                got.append({"oversize": True})
            elif isinstance(message, Truncated):
                got.append({"truncated": True})
            else:
                got.append(message.decode().strip())
        if got != row["messages"]:
            failed.append(row["name"])
    return failed


@pytest.mark.parametrize("feed", [_whole, _bytewise])
def test_framing_vectors(feed: Feeding) -> None:
    assert framing_failures(feed) == []


def test_broken_framing_fails_the_vectors() -> None:
    assert framing_failures(_lines_only)
