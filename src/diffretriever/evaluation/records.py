"""Records: frozen dataclasses to JSON objects and back, field by field and strictly.

Fields may be str, int, float, bool, None, a union of one of these types with None, another record, `tuple[X, ...]` or
`dict[str, X]`. A file with a missing or foreign field is refused with the path of the field.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from diffretriever.errors import CorpusError
from diffretriever.json_files import read_json_object

R = TypeVar("R")


def write_record(record: object, path: Path) -> None:
    """Write a record as JSON; a file that is there is replaced in one step."""
    temporary = path.with_name(f".{path.name}.new")
    text = json.dumps(asdict(record), ensure_ascii=False, indent=1, allow_nan=False)  # type: ignore[call-overload]
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def read_record(kind: type[R], path: Path) -> R:
    """Return the record that `write_record` wrote.

    Raises:
        CorpusError: the file cannot be read, or a field is missing, unknown or of another type.
    """
    value = read_json_object(path, CorpusError)
    try:
        return record_of(kind, value)
    except ValueError as error:
        raise CorpusError(f"{path}: {error}; the file is damaged or of another version") from error


def incomplete(path: Path, what: str, command: str) -> CorpusError:
    """Return the error of a file whose fields fit one by one and not together, as after an edit by hand.

    Args:
        path: the file.
        what: what does not fit.
        command: what writes such files.
    """
    return CorpusError(
        f"{path}: {what}; the file was edited or is damaged: restore it, or delete it and run `{command}` again"
    )


def record_of(kind: type[R], value: object, where: str = "") -> R:
    """Return the record that a JSON object describes.

    Raises:
        ValueError: a field does not fit; the message gives its path.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where or 'the file'} must be an object, got {type(value).__name__}")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    if foreign := sorted(set(value) - set(known)):
        raise ValueError(f"{where}.{foreign[0]} is no field of {kind.__name__}".lstrip("."))
    given: dict[str, Any] = {}
    for name, f in known.items():
        if name in value:
            given[name] = _value(hints[name], value[name], f"{where}.{name}".lstrip("."))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{where}.{name} is missing".lstrip("."))
    return kind(**given)


def _value(hint: object, value: object, where: str) -> object:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        return _value(inner[0], value, where) if len(inner) == 1 else _plain(tuple(inner), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {str(k): _value(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        return record_of(hint, value, where)
    return _plain((hint,), value, where)


def _plain(kinds: tuple[object, ...], value: object, where: str) -> object:
    if float in kinds and isinstance(value, int) and not isinstance(value, bool) and int not in kinds:
        return float(value)
    # bool is an int to Python, and a number that is none is no measurement.
    fits = type(value) in kinds and not (isinstance(value, float) and not math.isfinite(value))
    if not fits:
        names = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
        raise ValueError(f"{where} must be {names}, got {value!r:.60}")
    return value
