"""Filters: conditions on the metadata of passages, the same for every backend.

A string matches a field that equals it or a list that holds it. Numbers compare as numbers (1 equals 1.0) and never
equal a bool or a string. A field that is missing matches nothing but `Not`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
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


_CLAUSE = re.compile(
    r"""\s*(?P<key>"[^"]+"|[\w.\-/:]+)\s*
        (?:(?P<op>>=|<=|!=|==|=|>|<)|(?P<negated>not\s+)?(?P<in>in)\b)\s*
        (?P<value>(?:"[^"]*"|(?!\s+and(?:\s|$))[^"=<>])+?)\s*(?:$|\s+and\s+(?!$))""",
    re.VERBOSE,
)


def parse_filter(text: str) -> Filter:
    """Return the filter that a short text describes.

    Clauses are joined by `and`: `lang=en`, `lang!=en`, `year>=2020` (also `>`, `<`, `<=`), `tag in a,b`,
    `tag not in a,b`. A value in double quotes is a string whatever it looks like; without quotes `2020` also matches
    the number and `true` also the bool. Values with `=`, `<`, `>`, a comma or ` and ` need quotes.

    Raises:
        InputError: the text cannot be read.

    Example:
        >>> parse_filter("year>=2020 and lang=en")
        AllOf(filters=(Range(key='year', gt=None, gte=2020.0, lt=None, lte=None), Equals(key='lang', value='en')))
    """
    clauses: list[Filter] = []
    at = 0
    while at < len(text) or not clauses:
        found = _CLAUSE.match(text, at)
        if found is None:
            raise InputError(
                f"cannot read the filter {text!r} at {text[at:]!r}; write clauses such as year>=2020, lang=en or "
                "tag in a,b, joined by ' and '"
            )
        clauses.append(_clause(found))
        at = found.end()
    return clauses[0] if len(clauses) == 1 else AllOf(tuple(clauses))


def _clause(found: re.Match[str]) -> Filter:
    key, value = found["key"].strip('"'), found["value"]
    if found["in"]:
        one_of = OneOf(key, tuple(v for item in _split(value) for v in _readings(item)))
        return Not(one_of) if found["negated"] else one_of
    if found["op"] in (">", ">=", "<", "<="):
        try:
            bound = float(value)
        except ValueError:
            raise InputError(f"{key}{found['op']}{value}: {value!r} is no number; ranges compare numbers") from None
        name = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}[found["op"]]
        return Range(key, **{name: bound})
    readings = _readings(value)
    equals: Filter = Equals(key, readings[0]) if len(readings) == 1 else OneOf(key, readings)
    return Not(equals) if found["op"] == "!=" else equals


def _split(values: str) -> Sequence[str]:
    return [item.strip() for item in re.findall(r'\s*(?:"[^"]*"|[^,"]+)+', values)]


def _readings(value: str) -> tuple[Scalar, ...]:
    """Return what an unquoted value may stand for: the string, and the number or bool it looks like."""
    if value.startswith('"') and value.endswith('"') and len(value) > 1:
        return (value[1:-1],)
    if value in ("true", "false"):
        return (value, value == "true")
    try:
        number = float(value)
    except ValueError:
        return (value,)
    return (value, number) if math.isfinite(number) else (value,)
