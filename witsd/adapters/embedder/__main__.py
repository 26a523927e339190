"""The agent: reads ``[options]``, loads the model when the first text comes, embeds.

::

    path = "~/models/minilm"   # a folder: BERT weights (model.safetensors), an ONNX model, or sentence-transformers
    libraries = "..."          # a folder of packages to use where this Python does not have them
    query_prefix = ""          # what the model wants before a question, such as "query: "
    text_prefix = ""           # and before a text

What runs a model is found by what lies in the folder: ``model.safetensors`` of a BERT model needs numpy and
tokenizers, ``*.onnx`` needs onnxruntime beside them, anything else needs sentence-transformers.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import msgspec
from witsd_client import Agent, InvalidState
from witsd_client.generated import ModelsEmbedParams, ModelsEmbedResult

from witsd.adapters.embedder.backend import Backend, CannotEmbed, open_backend

agent = Agent("embedder")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[options]``."""

    path: str
    libraries: str = ""
    query_prefix: str = ""
    text_prefix: str = ""


class Loaded:
    """The model, loaded once, by whoever comes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._backend: Backend | None = None

    def embed(self, options: Options, params: ModelsEmbedParams) -> ModelsEmbedResult:
        prefix = options.query_prefix if params.query else options.text_prefix
        with self._lock:  # one batch at a time: two at once only take each other's cores
            if self._backend is None:
                if options.libraries:
                    # Last: what this Python has goes before.
                    sys.path.append(str(Path(options.libraries).expanduser()))
                self._backend = open_backend(Path(options.path).expanduser())
            backend = self._backend
            vectors = backend.embed([prefix + text for text in params.texts])
        return ModelsEmbedResult(
            vectors=tuple(map(tuple, vectors)),
            dimensions=backend.dimensions,
            model=backend.model,
            digest=backend.digest,
        )


loaded = Loaded()


@agent.embed
def embed(params: ModelsEmbedParams) -> ModelsEmbedResult:
    """Plain, so that it has a thread: the work loop goes on answering pings meanwhile."""
    try:
        options = msgspec.convert(dict(agent.options), Options)
        return loaded.embed(options, params)
    except msgspec.ValidationError as error:
        raise InvalidState(f"[options] of agent {agent.name}: {error}") from None
    except CannotEmbed as error:
        raise InvalidState(str(error)) from None


if __name__ == "__main__":
    agent.serve()
