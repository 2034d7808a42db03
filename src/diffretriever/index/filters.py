"""Filters: conditions on the metadata of passages, the same for every backend.

A string matches a field that equals it or a list that holds it. Numbers compare as numbers (1 equals 1.0) and never
equal a bool or a string. A field that is missing matches nothing but `Not`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffretriever.corpus import MetadataValue
from diffretriever.errors import InputError

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Equals:
    """The field equals a value, or is a list that holds it."""

    key: str
    value: Scalar


@dataclass(frozen=True)
class OneOf:
    """The field equals one of some values; none match when there are none."""

    key: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Range:
    """The field is a number within bounds; a bound that is None does not bind."""

    key: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None

    def __post_init__(self) -> None:
        if self.gt is self.gte is self.lt is self.lte is None:
            raise InputError(f"the range on {self.key!r} has no bound; give gt, gte, lt or lte")


@dataclass(frozen=True)
class AllOf:
    """Every filter matches; all passages match when there is no filter."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one filter matches; none match when there is no filter."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    """The filter does not match, for example because the field is missing."""

    filter: Filter


Filter = Equals | OneOf | Range | AllOf | AnyOf | Not


def matches(condition: Filter, metadata: Mapping[str, MetadataValue]) -> bool:
    """Return whether the metadata of a passage fulfil the condition."""
    if isinstance(condition, AllOf):
        return all(matches(part, metadata) for part in condition.filters)
    if isinstance(condition, AnyOf):
        return any(matches(part, metadata) for part in condition.filters)
    if isinstance(condition, Not):
        return not matches(condition.filter, metadata)
    if condition.key not in metadata:
        return False
    value = metadata[condition.key]
    if isinstance(condition, Range):
        return _within(value, condition)
    wanted = (condition.value,) if isinstance(condition, Equals) else condition.values
    return any(_equal(value, scalar) for scalar in wanted)


def _within(value: MetadataValue, bounds: Range) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    number = float(value)
    return (
        (bounds.gt is None or number > bounds.gt)
        and (bounds.gte is None or number >= bounds.gte)
        and (bounds.lt is None or number < bounds.lt)
        and (bounds.lte is None or number <= bounds.lte)
    )


def _equal(value: MetadataValue, wanted: Scalar) -> bool:
    if isinstance(value, list):
        return wanted in value
    if isinstance(value, str) or isinstance(wanted, str) or isinstance(value, bool) or isinstance(wanted, bool):
        return type(value) is type(wanted) and value == wanted
    return float(value) == float(wanted)
