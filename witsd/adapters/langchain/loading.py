"""Finds what an import path names: ``package.module:NAME``, or ``folder/file.py:NAME`` from the agent's folder."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from witsd_client import AgentFailed

_SHOWN = 8


def load(path: str, option: str) -> Any:
    """What ``path`` names. Raises ``AgentFailed`` that says what of it cannot be found, naming ``option``."""
    where, colon, name = path.rpartition(":")
    if not colon or not where or not name:
        raise wrong(option, f"{path!r} is no import path: write package.module:NAME or file.py:NAME")
    module = _file(where, option) if where.endswith(".py") else _module(where, option)
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [known for known in dir(found) if not known.startswith("_")]
            near = get_close_matches(part, names, n=_SHOWN) or names[:_SHOWN]
            raise wrong(option, f"{where} has no {part!r}; it has {', '.join(near) or 'nothing'}") from None
    return found


def wrong(option: str, why: str) -> AgentFailed:
    """``option`` of the definition cannot be used."""
    text = f"[options] {option}: {why}"
    return AgentFailed(text, {"reason": text})


async def made(value: Any) -> Any:
    """``value``; where it is a plain function without parameters, what it makes."""
    if inspect.isfunction(value) and not inspect.signature(value).parameters:
        value = value()
        if inspect.isawaitable(value):
            value = await value
    return value


def _module(name: str, option: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # the agent's working folder
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(missing + "."):
            why = f"there is no module {missing!r} in {Path.cwd()} or in the Python of {sys.prefix}"
        else:
            why = f"{name} needs the module {missing!r}, which is not installed in the Python of {sys.prefix}"
        raise wrong(option, why) from None
    except Exception as error:
        raise wrong(option, f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _file(where: str, option: str) -> ModuleType:
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise wrong(option, f"there is no file {path}")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # so that it finds what is beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # pydantic looks annotations up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise wrong(option, f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
