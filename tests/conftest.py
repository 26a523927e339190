"""For all tests."""

from __future__ import annotations

import compileall
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Let what the tests start hear Ctrl-C, which a shell has its background jobs ignore; and compile it, once.

    Where ``PYTHONDONTWRITEBYTECODE`` is set each of a thousand daemons would compile its own source anew, which
    takes it as long as all the rest of its start.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        for folder in ("witsd", "clients/python/witsd_client", "tests/agents", "tests/support"):
            compileall.compile_dir(ROOT / folder, quiet=2)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep on one worker what shares a fixture of ours, or each would make its own. Before xdist looks at groups."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
        for name, (*_, fixture) in fixtures.items():
            if fixture.baseid.startswith("tests") and fixture.scope in ("module", "session"):
                place = item.path.stem if fixture.scope == "module" else "all"
                item.add_marker(pytest.mark.xdist_group(f"{place}-{name}"))
