"""JSON files of models and settings, read so that a damaged or foreign one is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from diffretriever.errors import CheckpointError, DiffRetrieverError


def read_json_object(path: Path, error: type[DiffRetrieverError] = CheckpointError) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Args:
        path: the file.
        error: what to raise when it cannot be read.

    Raises:
        DiffRetrieverError: of the given type; the file is missing, no JSON, or holds something other than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:
        raise error(f"{path}: not JSON: {reason}; restore the file from where it came from") from reason
    if not isinstance(value, dict):
        raise error(f"{path}: must hold a JSON object, got {type(value).__name__}; restore the file")
    return value


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def differences(old: object, new: object) -> list[str]:
    """Return every part in which two records differ, as "PATH was VALUE, now VALUE"; "none" stands for no such part."""
    before, after = _leaves("", old), _leaves("", new)
    none = "none"
    return [
        f"{path.removeprefix('.')} was {before.get(path, none)}, now {after.get(path, none)}"
        for path in dict.fromkeys([*before, *after])
        if before.get(path, none) != after.get(path, none)
    ]


def _leaves(path: str, value: object) -> dict[str, object]:
    """Return every part of a record that has no parts, by its path."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, tuple | list):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {path: value}
    return {name: leaf for key, part in value.items() for name, leaf in _leaves(f"{path}.{key}", part).items()}
