"""Writes what is generated from the declarations in ``witsd``: most of this folder, and the client's types.

    python protocol/generate.py            writes
    python protocol/generate.py --check    writes nothing; exits 1 naming the files that are stale
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "protocol")]

from generator import python_client  # noqa: E402


def generated() -> dict[str, str]:
    """Path from the top of the project -> the text that belongs there."""
    return {"clients/python/witsd_client/generated.py": python_client.render()}


def main() -> int:
    for name, text in generated().items():
        (ROOT / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
