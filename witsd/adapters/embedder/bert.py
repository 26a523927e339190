"""BERT (Devlin et al., 2018, arXiv:1810.04805) by numpy alone: no torch for one small model.

all-MiniLM-L6-v2 is such a model: 6 layers, 384 wide, mean pooling.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from witsd.adapters.embedder.backend import (
    CannotEmbed,
    batches,
    config,
    digest,
    max_tokens,
    pooling,
    require,
    tokenizer,
)

_TYPES = {"F32": "<f4", "F16": "<f2"}


class Bert:
    """The weights stay in their file, mapped: they cost memory that the system can take back."""

    def __init__(self, path: Path) -> None:
        self._np = require("numpy")
        self._config = config(path)
        if self._config.get("hidden_act", "gelu") != "gelu":
            raise CannotEmbed(f"{path} uses {self._config['hidden_act']}: install sentence-transformers for it")
        self._weights = _read_safetensors(path / "model.safetensors", self._np)
        self._tokenizer = tokenizer(path, min(max_tokens(path, 512), self._config["max_position_embeddings"]))
        self._pooling = pooling(path)
        self.digest = digest(path / "model.safetensors")
        self.model = path.name
        self.dimensions = int(self._config["hidden_size"])

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = [[]] * len(texts)
        for batch in batches(texts):
            encoded = self._tokenizer.encode_batch([texts[i] for i in batch])
            ids = self._np.array([e.ids for e in encoded])
            mask = self._np.array([e.attention_mask for e in encoded], dtype=self._np.float32)
            for i, vector in zip(batch, self._forward(ids, mask).tolist(), strict=True):
                vectors[i] = vector
        return vectors

    def _forward(self, ids: Any, mask: Any) -> Any:
        """``ids`` and ``mask``: texts x tokens; the answer: texts x dimensions, each of length 1."""
        np, w = self._np, self._weights
        texts, tokens = ids.shape
        heads = self._config["num_attention_heads"]
        width = self.dimensions // heads
        x = (
            w["embeddings.word_embeddings.weight"][ids]
            + w["embeddings.position_embeddings.weight"][:tokens]
            + w["embeddings.token_type_embeddings.weight"][0]
        )
        x = self._norm(x, "embeddings.LayerNorm")
        # What is padding gets no attention.
        blind = (1.0 - mask)[:, None, None, :] * np.float32(-1e9)
        for layer in range(self._config["num_hidden_layers"]):
            at = f"encoder.layer.{layer}."

            def split(name: str, x: Any = x, at: str = at) -> Any:
                y = self._dense(x, f"{at}attention.self.{name}")
                return y.reshape(texts, tokens, heads, width).transpose(0, 2, 1, 3)

            scores = split("query") @ split("key").transpose(0, 1, 3, 2) / np.float32(width**0.5) + blind
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            seen = (scores / scores.sum(-1, keepdims=True)) @ split("value")
            seen = seen.transpose(0, 2, 1, 3).reshape(texts, tokens, self.dimensions)
            x = self._norm(x + self._dense(seen, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
            inner = _gelu(self._dense(x, f"{at}intermediate.dense"), np)
            x = self._norm(x + self._dense(inner, f"{at}output.dense"), f"{at}output.LayerNorm")
        first = self._pooling == "cls"
        pooled = x[:, 0] if first else (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)

    def _dense(self, x: Any, name: str) -> Any:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: Any, name: str) -> Any:
        x = x - x.mean(-1, keepdims=True)
        x /= self._np.sqrt((x * x).mean(-1, keepdims=True) + self._config["layer_norm_eps"])
        return x * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def _gelu(x: Any, np: Any) -> Any:
    """x times the normal distribution up to x.

    The error function by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: off by 1.5e-7 at most.
    """
    z = np.abs(x) * np.float32(0.7071067811865476)
    t = 1 / (1 + np.float32(0.3275911) * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * np.float32(1.061405429)))))
    erf = np.copysign(1 - poly * np.exp(-z * z), x)
    return x * (1 + erf) / 2


def _read_safetensors(file: Path, np: Any) -> dict[str, Any]:
    """Its tensors, mapped from the file: a length, a JSON header of that length, the bytes."""
    try:
        with file.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        (length,) = struct.unpack_from("<Q", mapped)
        header = json.loads(mapped[8 : 8 + length])
        tensors = {}
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in _TYPES:
                continue
            begin, end = entry["data_offsets"]
            kind = np.dtype(_TYPES[entry["dtype"]])
            flat = np.frombuffer(mapped, kind, (end - begin) // kind.itemsize, 8 + length + begin)
            # A checkpoint of a whole model has its encoder under a name of its own.
            tensors[name.removeprefix("bert.")] = flat.reshape(entry["shape"]).astype(np.float32, copy=False)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise CannotEmbed(f"{file} cannot be read as weights ({error}): fetch it again") from None
    return tensors
