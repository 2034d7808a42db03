"""Filters in the language of the Qdrant engines, embedded and server.

The engines take a bool for a number, numbers of one kind for another, and some characters of a field's name for
syntax. So the metadata are stored a second time for filtering, by type and under quoted names.

They also store numbers as decimal text and read one full-precision number in eight back a little off. So a number is
stored as two whole numbers, the halves of its 64 bits, turned such that they are in order when the numbers are.
"""

from __future__ import annotations

import math
import struct
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

    def equals(self, path: str, value: int) -> FilterT:
        """Return a condition on a field that is a whole number."""
        ...

    def beyond(self, path: str, value: int, *, above: bool) -> FilterT:
        """Return a condition on a field that is a whole number: greater than a value, or less."""
        ...


def filter_fields(metadata: Mapping[str, MetadataValue]) -> dict[str, dict[str, object]]:
    """Return the payload that filters look at: `s` strings and lists of them, `h` and `l` numbers, `b` bools."""
    fields: dict[str, dict[str, object]] = {"s": {}, "h": {}, "l": {}, "b": {}}
    for key, value in metadata.items():
        name = quote(key, safe="")
        if isinstance(value, bool):
            fields["b"][name] = int(value)
        elif isinstance(value, int | float):
            fields["h"][name], fields["l"][name] = _halves(value)
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
        return _within(condition, dialect)
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
        return dialect.equals(_path("b", key), int(value))
    if isinstance(value, str):
        return dialect.one_of(_path("s", key), [value])
    high, low = _halves(value)
    return dialect.every([dialect.equals(_path("h", key), high), dialect.equals(_path("l", key), low)])


def _within(bounds: Range, dialect: FilterDialect[FilterT]) -> FilterT:
    given = [
        (bound, above, strict)
        for bound, above, strict in (
            (bounds.gt, True, True),
            (bounds.gte, True, False),
            (bounds.lt, False, True),
            (bounds.lte, False, False),
        )
        if bound is not None
    ]
    if any(math.isnan(bound) for bound, _, _ in given):
        return dialect.nothing()
    return dialect.every([_beyond(bounds.key, *limit, dialect) for limit in given])


def _beyond(key: str, bound: float, above: bool, strict: bool, dialect: FilterDialect[FilterT]) -> FilterT:
    high, low = _halves(bound)
    limit = low if strict else low - 1 if above else low + 1
    rest = dialect.beyond(_path("l", key), limit, above=above)
    return dialect.either(
        [
            dialect.beyond(_path("h", key), high, above=above),
            dialect.every([dialect.equals(_path("h", key), high), rest]),
        ]
    )


def _halves(number: float) -> tuple[int, int]:
    """Return two whole numbers from 0 to 2^32 - 1 that compare, the first before the second, as the number does."""
    # Adding 0 makes -0.0, which equals 0.0, the same bits.
    (bits,) = struct.unpack(">Q", struct.pack(">d", float(number) + 0.0))
    ordered = bits ^ (2**64 - 1 if bits >> 63 else 1 << 63)
    return ordered >> 32, ordered & 0xFFFFFFFF


def _path(kind: str, key: str) -> str:
    return f'fields.{kind}."{quote(key, safe="")}"'
