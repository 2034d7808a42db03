"""Filters in the language of the Qdrant engines, embedded and server.

The engines take a bool for a number, numbers of one kind for another, and some characters of a field's name for
syntax. So the metadata are stored a second time for filtering, by type and under quoted names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar
from urllib.parse import quote

from diffretriever.corpus import MetadataValue
from diffretriever.index.filters import AllOf, AnyOf, Equals, Filter, Not, OneOf, Range, Scalar

FilterT = TypeVar("FilterT")


class FilterDialect(Protocol[FilterT]):
    """How one engine writes a condition; a path is the name of a stored field."""

    def every(self, parts: Sequence[FilterT]) -> FilterT:
        """Return a condition that holds where all parts do, which is everywhere without parts."""
        ...

    def either(self, parts: Sequence[FilterT]) -> FilterT:
        """Return a condition that holds where one of at least one part does."""
        ...

    def negate(self, part: FilterT) -> FilterT:
        """Return a condition that holds where the part does not."""
        ...

    def nothing(self) -> FilterT:
        """Return a condition that holds nowhere."""
        ...

    def one_of(self, path: str, values: Sequence[str]) -> FilterT:
        """Return a condition on a field that is a string, or a list of them, among some values."""
        ...

    def flag(self, path: str, value: int) -> FilterT:
        """Return a condition on a field that is 0 or 1."""
        ...

    def within(self, path: str, bounds: Range) -> FilterT:
        """Return a condition on a field that is a number; the key of the bounds plays no part."""
        ...


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


def translate(condition: Filter, dialect: FilterDialect[FilterT]) -> FilterT:
    """Return the engine's form of a filter; it matches exactly what `filters.matches` does."""
    if isinstance(condition, AllOf):
        return dialect.every([translate(part, dialect) for part in condition.filters])
    if isinstance(condition, AnyOf):
        return _any([translate(part, dialect) for part in condition.filters], dialect)
    if isinstance(condition, Not):
        return dialect.negate(translate(condition.filter, dialect))
    if isinstance(condition, Range):
        return dialect.within(_path("n", condition.key), condition)
    if isinstance(condition, Equals):
        return _equals(condition.key, condition.value, dialect)
    return _one_of(condition, dialect)


def _one_of(condition: OneOf, dialect: FilterDialect[FilterT]) -> FilterT:
    strings = [value for value in condition.values if isinstance(value, str)]
    parts = [_equals(condition.key, value, dialect) for value in condition.values if not isinstance(value, str)]
    if strings:
        # One condition with many values is looked up in a set; many conditions are tried one by one.
        parts.append(dialect.one_of(_path("s", condition.key), strings))
    return _any(parts, dialect)


def _any(parts: Sequence[FilterT], dialect: FilterDialect[FilterT]) -> FilterT:
    return dialect.either(parts) if parts else dialect.nothing()


def _equals(key: str, value: Scalar, dialect: FilterDialect[FilterT]) -> FilterT:
    if isinstance(value, bool):
        return dialect.flag(_path("b", key), int(value))
    if isinstance(value, str):
        return dialect.one_of(_path("s", key), [value])
    return dialect.within(_path("n", key), Range(key, gte=float(value), lte=float(value)))


def _path(kind: str, key: str) -> str:
    return f'fields.{kind}."{quote(key, safe="")}"'
