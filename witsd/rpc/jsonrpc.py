"""What is used of jsonrpcserver: its results and its responses.

The package's ``__init__`` imports all of it, and with that ``jsonschema`` with every draft of JSON Schema,
for a validator of whole messages that is not used here (``codec`` does that strictly and in a microsecond).
That is 3 MB and 25 ms of each start. So its modules are imported without running that ``__init__``, and
the package is left as it was found: whoever imports it after us gets it whole. Its async dispatch would bring
asyncio, 2 MB of it, to await what ``dispatch`` awaits by itself.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _modules_alone(package: str) -> Iterator[None]:
    """Within the block ``from package.module import name`` works without ``package/__init__.py``."""
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    if spec is None:  # imported already, or not there, which the import itself says best
        yield
        return
    sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[package]


with _modules_alone("jsonrpcserver"):
    from jsonrpcserver.dispatcher import to_response
    from jsonrpcserver.request import Request
    from jsonrpcserver.result import Error, Result, Success

    # The type of a failed response; the package that jsonrpcserver takes it from carries no types.
    from oslash.either import Left  # type: ignore[import-untyped]

__all__ = ["Error", "Left", "Request", "Result", "Success", "to_response"]
