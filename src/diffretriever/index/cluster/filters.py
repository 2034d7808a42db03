"""Filters in the words of a Qdrant server."""

from __future__ import annotations

from collections.abc import Sequence

from qdrant_client import models

from diffretriever.index.filters import Filter
from diffretriever.index.points.payload_filters import translate


def cluster_filter(condition: Filter) -> models.Filter:
    """Return the server's form of a filter; it matches exactly what `filters.matches` does."""
    return translate(condition, _ClusterDialect())


class _ClusterDialect:
    def every(self, parts: Sequence[models.Filter]) -> models.Filter:
        return models.Filter(must=[*parts])

    def either(self, parts: Sequence[models.Filter]) -> models.Filter:
        return models.Filter(should=[*parts])

    def negate(self, part: models.Filter) -> models.Filter:
        return models.Filter(must_not=[part])

    def nothing(self) -> models.Filter:
        return models.Filter(must=[models.HasIdCondition(has_id=[])])

    def one_of(self, path: str, values: Sequence[str]) -> models.Filter:
        match = models.MatchValue(value=values[0]) if len(values) == 1 else models.MatchAny(any=[*values])
        return models.Filter(must=[models.FieldCondition(key=path, match=match)])

    def equals(self, path: str, value: int) -> models.Filter:
        return models.Filter(must=[models.FieldCondition(key=path, match=models.MatchValue(value=value))])

    def beyond(self, path: str, value: int, *, above: bool) -> models.Filter:
        limit = models.Range(gt=value) if above else models.Range(lt=value)
        return models.Filter(must=[models.FieldCondition(key=path, range=limit)])
