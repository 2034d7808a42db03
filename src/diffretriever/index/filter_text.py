"""Filter text: conditions on metadata as one writes them in a line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from diffretriever.errors import InputError
from diffretriever.index.filters import AllOf, AnyOf, Equals, Filter, Not, OneOf, Range, Scalar

#: `in` stands apart from the key and the values, or `origin en` would be `orig in en`.
_CLAUSE = re.compile(
    r"""\s*(?P<key>"[^"]+"|[\w.\-/:]+)\s*
        (?:(?P<op>>=|<=|!=|==|=|>|<)|(?<=[\s"])(?P<negated>not\s+)?(?P<in>in)(?=[\s"]))\s*
        (?P<value>(?:"[^"]*"|(?!\s+(?:and|or)(?:\s|$))[^"=<>()])+?)\s*(?=$|\)|(?<=[\s")])(?:and|or)\b)""",
    re.VERBOSE,
)
#: `not` before a clause or a parenthesis; as a key, an operator follows it.
_NOT = re.compile(r"\s*not(?=\s*\(|\s+(?!in\s))")
_AND, _OR = re.compile(r"\s*and\b"), re.compile(r"\s*or\b")
_OPEN, _CLOSED = re.compile(r"\s*\("), re.compile(r"\s*\)")
_DEEPEST = 50


def parse_filter(text: str) -> Filter:
    """Return the filter that a short text describes.

    Clauses are `lang=en`, `lang!=en`, `year>=2020` (also `>`, `<`, `<=`), `tag in a,b` and `tag not in a,b`, joined by
    `and`, `or`, `not` and parentheses; `and` binds closer than `or`. A value in double quotes is a string whatever it
    looks like; without quotes `2020` also matches the number and `true` also the bool. Values with `=`, `<`, `>`, a
    comma, a parenthesis, ` and ` or ` or ` need quotes.

    Raises:
        InputError: the text cannot be read.

    Example:
        >>> parse_filter("year>=2020 and lang=en")
        AllOf(filters=(Range(key='year', gt=None, gte=2020.0, lt=None, lte=None), Equals(key='lang', value='en')))
    """
    return _Parser(text).whole()


class _Parser:
    """Reads a text from left to right; `_at` is where it has come to."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def whole(self) -> Filter:
        read = self._any(_DEEPEST)
        if self._text[self._at :].strip():
            raise self._unreadable()
        return read

    def _any(self, room: int) -> Filter:
        parts = [self._all(room)]
        while self._take(_OR):
            parts.append(self._all(room))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _all(self, room: int) -> Filter:
        parts = [self._one(room)]
        while self._take(_AND):
            parts.append(self._one(room))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _one(self, room: int) -> Filter:
        if room == 0:
            raise InputError(f"the filter {self._text[:40]!r}... nests deeper than {_DEEPEST}; write it flatter")
        if self._take(_OPEN):
            inner = self._any(room - 1)
            if not self._take(_CLOSED):
                raise self._unreadable()
            return inner
        if self._take(_NOT):
            return Not(self._one(room - 1))
        found = self._take(_CLAUSE)
        if found is None:
            raise self._unreadable()
        return _clause(found)

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return found

    def _unreadable(self) -> InputError:
        return InputError(
            f"cannot read the filter {self._text!r} at {self._text[self._at :]!r}; write clauses such as year>=2020, "
            "lang=en or tag in a,b, joined by and, or, not and parentheses; other values need double quotes"
        )


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
