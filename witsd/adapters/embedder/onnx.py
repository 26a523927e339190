"""A model in ONNX format, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from witsd.adapters.embedder.backend import CannotEmbed, batches, digest, max_tokens, pooling, require, tokenizer


class Onnx:
    """Inputs are given by name: ``input_ids``, ``attention_mask`` and, where it asks for them, ``token_type_ids``.

    An output ``sentence_embedding`` is taken as it is; otherwise the first one, pooled where it has a vector
    for each token.
    """

    def __init__(self, path: Path, file: Path) -> None:
        self._np = require("numpy")
        runtime = require("onnxruntime")
        try:
            self._session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - a dozen types of its own
            raise CannotEmbed(f"{file} cannot be loaded: {error}") from None
        self._wanted = [node.name for node in self._session.get_inputs()]
        names = [node.name for node in self._session.get_outputs()]
        self._output = "sentence_embedding" if "sentence_embedding" in names else names[0]
        self._tokenizer = tokenizer(path, max_tokens(path, 512))
        self._pooling = pooling(path)
        self.model = path.name
        self.digest = digest(file)
        self.dimensions = len(self.embed(["a"])[0])

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = [[]] * len(texts)
        for batch in batches(texts):
            encoded = self._tokenizer.encode_batch([texts[i] for i in batch])
            for i, vector in zip(batch, self._forward(encoded).tolist(), strict=True):
                vectors[i] = vector
        return vectors

    def _forward(self, encoded: Sequence[Any]) -> Any:
        np = self._np
        given = {
            "input_ids": np.array([e.ids for e in encoded], dtype=np.int64),
            "attention_mask": np.array([e.attention_mask for e in encoded], dtype=np.int64),
            "token_type_ids": np.array([e.type_ids for e in encoded], dtype=np.int64),
        }
        unknown = [name for name in self._wanted if name not in given]
        if unknown:
            raise CannotEmbed(f"the model wants {', '.join(unknown)} as input, which is not how a text model is asked")
        (out,) = self._session.run([self._output], {name: given[name] for name in self._wanted})
        if out.ndim == 3:
            mask = given["attention_mask"][:, :, None]
            out = out[:, 0] if self._pooling == "cls" else (out * mask).sum(1) / mask.sum(1)
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
