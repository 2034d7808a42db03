"""What transformers calls the cache of keys and values: the name changed in 5.24, and the old one will go."""

from __future__ import annotations

import inspect
from typing import Literal


def cache_keyword(module: object) -> Literal["cache", "past_key_values"]:
    """Return the keyword under which a model or a layer of transformers takes its cache."""
    forward = type(module).forward  # type: ignore[attr-defined]
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
