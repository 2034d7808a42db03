"""Retrieval with diffusion language models: dense, multi-vector and sparse representations from one forward pass.

The names below are the public interface; each is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffretriever.corpus import Passage
    from diffretriever.encoder import Encoder
    from diffretriever.errors import DiffRetrieverError
    from diffretriever.index import Hit, Index
    from diffretriever.prompts import Prompt
    from diffretriever.representations import Provenance, Representations
    from diffretriever.retriever import DiffRetriever
    from diffretriever.systems.opening import open_system
    from diffretriever.version import __version__

__all__ = [
    "DiffRetriever",
    "DiffRetrieverError",
    "Encoder",
    "Hit",
    "Index",
    "Passage",
    "Prompt",
    "Provenance",
    "Representations",
    "__version__",
    "open_system",
]

_HOMES = {
    "DiffRetriever": "retriever",
    "DiffRetrieverError": "errors",
    "Encoder": "encoder",
    "Hit": "index",
    "Index": "index",
    "Passage": "corpus",
    "Prompt": "prompts",
    "Provenance": "representations",
    "Representations": "representations",
    "__version__": "version",
    "open_system": "systems.opening",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that `import diffretriever` costs next to nothing."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
