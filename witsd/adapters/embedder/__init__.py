"""An agent that turns texts into vectors: ``python -m witsd.adapters.embedder``."""
