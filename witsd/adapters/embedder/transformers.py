"""Any model that sentence-transformers can load, where that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from witsd.adapters.embedder.backend import BATCH, CannotEmbed, digest, require


class SentenceTransformers:
    """Loaded from its folder only: nothing is fetched and no code of the model's own is run."""

    def __init__(self, path: Path) -> None:
        library = require("sentence_transformers", "sentence-transformers")
        try:
            self._model: Any = library.SentenceTransformer(
                str(path), device="cpu", local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CannotEmbed(f"{path} cannot be loaded by sentence-transformers: {error}") from None
        weights = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
        self.model = path.name
        self.digest = digest(weights[0]) if weights else ""
        self.dimensions = int(self._model.get_sentence_embedding_dimension())

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors = self._model.encode(list(texts), batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
        return [vector.tolist() for vector in vectors]
