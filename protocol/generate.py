"""Writes what is generated from the declarations in ``witsd``: most of this folder, and the client's types.

    python protocol/generate.py            writes
    python protocol/generate.py --check    writes nothing; exits 1 naming the files that are stale

The same declarations give the same bytes, whatever the machine. A file in ``schemas/`` or ``vectors/``
that nothing generates any more is removed.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "protocol")]

from generator import documents, js_client, python_client, reference, vectors  # noqa: E402

#: Folders in which every file is generated.
OWNED = ("protocol/schemas", "protocol/vectors")


def generated() -> dict[str, str]:
    """Path from the top of the project -> the text that belongs there."""
    files = {f"protocol/{name}": text for name, text in documents.render().items()}
    files |= {f"protocol/vectors/{name}": text for name, text in vectors.render().items()}
    files["protocol/REFERENCE.md"] = reference.render()
    files["clients/python/witsd_client/generated.py"] = python_client.render()
    files |= {f"clients/js/src/{name}": text for name, text in js_client.render().items()}
    return files


def stale(root: Path, files: dict[str, str]) -> list[str]:
    """The paths whose file is missing, differs, or should not be there."""
    found = []
    for name, text in files.items():
        try:
            if (root / name).read_text(encoding="utf-8") != text:
                found.append(name)
        except FileNotFoundError:
            found.append(name)
    return found + sorted(_orphans(root, files))


def _orphans(root: Path, files: dict[str, str]) -> set[str]:
    there = {path.relative_to(root).as_posix() for folder in OWNED for path in (root / folder).glob("*.json")}
    return there - files.keys()


def main(argv: list[str]) -> int:
    if argv not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    files = generated()
    names = stale(ROOT, files)
    if argv:
        for name in names:
            print(f"{name} is stale", file=sys.stderr)
        if names:
            print("these are generated: run `make generate` and commit the result", file=sys.stderr)
        return 1 if names else 0
    for name in names:
        path = ROOT / name
        if name in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[name], encoding="utf-8")
        else:
            path.unlink()
        print(f"{'wrote' if name in files else 'removed'} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
