"""Which library runs the model in a folder. Each is imported only where it is wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

#: Texts that are run at once: more only take memory.
BATCH = 32


class CannotEmbed(Exception):
    """Why this folder cannot be used here, and what to do."""


class Backend(Protocol):
    """A loaded model. ``digest`` tells its weights from others."""

    model: str
    digest: str
    dimensions: int

    def embed(self, texts: Sequence[str]) -> Iterable[Iterable[float]]:
        """One vector of length 1 for each text."""


def open_backend(path: Path) -> Backend:
    """Load the model in ``path``. Raises ``CannotEmbed``."""
    if not path.is_dir():
        raise CannotEmbed(f"there is no folder {path}: for all-MiniLM-L6-v2, witsd model install minilm fetches it")
    onnx = sorted({*path.glob("*.onnx"), *path.glob("onnx/*.onnx")})
    if (path / "model.safetensors").is_file() and config(path).get("model_type") == "bert":
        from witsd.adapters.embedder.bert import Bert

        return Bert(path)
    if onnx:
        from witsd.adapters.embedder.onnx import Onnx

        named = [file for file in onnx if file.name == "model.onnx"]
        return Onnx(path, (named or onnx)[0])
    if (path / "modules.json").is_file() or (path / "config.json").is_file():
        from witsd.adapters.embedder.transformers import SentenceTransformers

        return SentenceTransformers(path)
    raise CannotEmbed(
        f"{path} holds no model: neither model.safetensors with config.json, nor *.onnx, nor modules.json"
    )


def require(name: str, package: str = "") -> ModuleType:
    """Import ``name``. Raises ``CannotEmbed`` that says how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise CannotEmbed(
            f"this model needs {package or name}, which this Python does not have ({error}): install it, or name a "
            "Python that has it as the agent's command"
        ) from None


def config(path: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON file of the model; empty where there is none. Raises ``CannotEmbed`` for a broken one."""
    try:
        found = json.loads((path / name).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CannotEmbed(f"{path / name} is no JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def digest(weights: Path) -> str:
    """SHA-256 of the weights, the first 16 digits of it."""
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def max_tokens(path: Path, default: int) -> int:
    """How long a text the model was made for."""
    found = config(path, "sentence_bert_config.json").get("max_seq_length")
    return found if isinstance(found, int) and found > 0 else default


def pooling(path: Path) -> str:
    """``mean`` or ``cls``: how the vectors of a text's tokens become one."""
    return "cls" if config(path, "1_Pooling/config.json").get("pooling_mode_cls_token") else "mean"


def tokenizer(path: Path, length: int) -> Any:
    """The model's own tokenizer, cutting at ``length`` tokens, padding to the longest of a batch."""
    tokenizers = require("tokenizers")
    file = path / "tokenizer.json"
    if not file.is_file():
        raise CannotEmbed(f"{file} is missing: it belongs to the model")
    found = tokenizers.Tokenizer.from_file(str(file))
    found.enable_truncation(length)
    pad = found.padding or {}
    found.enable_padding(pad_id=pad.get("pad_id", 0), pad_token=pad.get("pad_token", "[PAD]"))
    return found


def batches(texts: Sequence[str]) -> Iterable[list[int]]:
    """Indices of ``texts``, by length: a batch is as slow as its longest text."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]
