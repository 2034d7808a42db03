"""Filters in the words of the embedded engine."""

from __future__ import annotations

from collections.abc import Sequence

import qdrant_edge as qe

from diffretriever.index.filters import Filter
from diffretriever.index.points.payload_filters import translate


def edge_filter(condition: Filter) -> qe.Filter:
    """Return the engine's form of a filter; it matches exactly what `filters.matches` does."""
    return translate(condition, _EdgeDialect())


class _EdgeDialect:
    def every(self, parts: Sequence[qe.Filter]) -> qe.Filter:
        return qe.Filter(must=[*parts])

    def either(self, parts: Sequence[qe.Filter]) -> qe.Filter:
        return qe.Filter(should=[*parts])

    def negate(self, part: qe.Filter) -> qe.Filter:
        return qe.Filter(must_not=[part])

    def nothing(self) -> qe.Filter:
        return qe.Filter(must=[qe.HasIdCondition(set())])

    def one_of(self, path: str, values: Sequence[str]) -> qe.Filter:
        match = qe.MatchValue(values[0]) if len(values) == 1 else qe.MatchAny([*values])
        return qe.Filter(must=[qe.FieldCondition(key=path, match=match)])

    def equals(self, path: str, value: int) -> qe.Filter:
        return qe.Filter(must=[qe.FieldCondition(key=path, match=qe.MatchValue(value))])

    def beyond(self, path: str, value: int, *, above: bool) -> qe.Filter:
        limit = qe.RangeFloat(gt=value) if above else qe.RangeFloat(lt=value)
        return qe.Filter(must=[qe.FieldCondition(key=path, range=limit)])
