"""Filters in the language of the embedded engine.

The engine takes a bool for a number, numbers of one kind for another, and some characters of a field's name for
syntax. So the metadata are stored a second time for filtering, by type and under quoted names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

import qdrant_edge as qe

from diffretriever.corpus import MetadataValue
from diffretriever.index.filters import AllOf, AnyOf, Equals, Filter, Not, OneOf, Range, Scalar


def filter_fields(metadata: Mapping[str, MetadataValue]) -> dict[str, dict[str, object]]:
    """Return the payload that filters look at: `s` strings and lists of them, `n` numbers, `b` bools as 0 and 1."""
    fields: dict[str, dict[str, object]] = {"s": {}, "n": {}, "b": {}}
    for key, value in metadata.items():
        name = quote(key, safe="")
        if isinstance(value, bool):
            fields["b"][name] = int(value)
        elif isinstance(value, int | float):
            fields["n"][name] = float(value)
        else:
            fields["s"][name] = value
    return fields


def edge_filter(condition: Filter) -> qe.Filter:
    """Return the engine's form of a filter; it matches exactly what `filters.matches` does."""
    if isinstance(condition, AllOf):
        return qe.Filter(must=[edge_filter(part) for part in condition.filters])
    if isinstance(condition, AnyOf):
        return _any([edge_filter(part) for part in condition.filters])
    if isinstance(condition, Not):
        return qe.Filter(must_not=[edge_filter(condition.filter)])
    if isinstance(condition, Range):
        bounds = qe.RangeFloat(gt=condition.gt, gte=condition.gte, lt=condition.lt, lte=condition.lte)
        return qe.Filter(must=[qe.FieldCondition(key=_path("n", condition.key), range=bounds)])
    if isinstance(condition, Equals):
        return qe.Filter(must=[_equals(condition.key, condition.value)])
    return _one_of(condition)


def _one_of(condition: OneOf) -> qe.Filter:
    strings = [value for value in condition.values if isinstance(value, str)]
    parts: list[qe.Filter | qe.FieldCondition] = [
        _equals(condition.key, value) for value in condition.values if not isinstance(value, str)
    ]
    if strings:
        # One condition with many values is looked up in a set; many conditions are tried one by one.
        parts.append(qe.FieldCondition(key=_path("s", condition.key), match=qe.MatchAny(strings)))
    return _any(parts)


def _any(parts: Sequence[qe.Filter | qe.FieldCondition]) -> qe.Filter:
    # An empty `should` would match everything.
    return qe.Filter(should=[*parts]) if parts else qe.Filter(must=[qe.HasIdCondition(set())])


def _equals(key: str, value: Scalar) -> qe.FieldCondition:
    if isinstance(value, bool):
        return qe.FieldCondition(key=_path("b", key), match=qe.MatchValue(int(value)))
    if isinstance(value, str):
        return qe.FieldCondition(key=_path("s", key), match=qe.MatchValue(value))
    return qe.FieldCondition(key=_path("n", key), range=qe.RangeFloat(gte=float(value), lte=float(value)))


def _path(kind: str, key: str) -> str:
    return f'fields.{kind}."{quote(key, safe="")}"'
