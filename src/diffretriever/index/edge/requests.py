"""What the embedded engine is asked for one ranking: a request of any length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import qdrant_edge as qe

from diffretriever.representations import Representations

#: Request for so many points; None for a query that finds nothing.
Ask = Callable[[int], qe.QueryRequest] | None

_EXACT = qe.SearchParams(exact=True, quantization=qe.QuantizationSearchParams(ignore=True))


@dataclass(frozen=True)
class Candidates:
    """How an approximate dense search chooses what it compares.

    Attributes:
        depth: passages that the pooled vectors choose.
        exhaustive: whether all pooled vectors are compared for that; otherwise their graph is searched.
        oversampling: of codes, if there are any: passages that they choose for each point asked for.
        terms: passages that the terms choose besides.
    """

    depth: int
    exhaustive: bool
    oversampling: Callable[[int], float] | None
    terms: int


def sparse_ask(queries: Representations, i: int, condition: qe.Filter | None) -> Ask:
    """Return the request for the ranking of query i by terms."""
    if (terms := _terms(queries, i)) is None:
        return None
    return lambda limit: qe.QueryRequest(query=terms, limit=limit, filter=condition)


def single_ask(
    queries: Representations, i: int, condition: qe.Filter | None, *, exact: bool, candidates: Candidates
) -> Ask:
    """Return the request for the ranking of query i by pooled vectors."""
    if not len(queries.vectors(i)):
        return None
    pooled, besides = _pooled(queries, i), _besides(queries, i, condition, candidates)

    def ask(limit: int) -> qe.QueryRequest:
        if exact or not besides:
            params = qe.SearchParams(exact=exact)
            return qe.QueryRequest(query=pooled, limit=limit, filter=condition, params=params)
        prefetches = [qe.Prefetch(limit=limit, query=pooled, filter=condition), *besides]
        return qe.QueryRequest(query=pooled, limit=limit, prefetches=prefetches, params=_EXACT)

    return ask


def multi_ask(
    queries: Representations, i: int, condition: qe.Filter | None, *, exact: bool, candidates: Candidates
) -> Ask:
    """Return the request for the ranking of query i by MaxSim: candidates and their scores in one."""
    if not len(slots := queries.vectors(i)):
        return None
    multi, pooled = qe.Query.Nearest(slots.tolist(), using="multi"), _pooled(queries, i)
    besides = _besides(queries, i, condition, candidates)

    def ask(limit: int) -> qe.QueryRequest:
        if exact:
            return qe.QueryRequest(query=multi, limit=limit, filter=condition, params=_EXACT)
        if candidates.oversampling is None:
            params = qe.SearchParams(exact=candidates.exhaustive)
            first = qe.Prefetch(limit=max(candidates.depth, limit), query=pooled, filter=condition, params=params)
        else:
            codes = qe.QuantizationSearchParams(rescore=True, oversampling=candidates.oversampling(limit))
            params = qe.SearchParams(quantization=codes)
            if not besides:
                return qe.QueryRequest(query=multi, limit=limit, filter=condition, params=params)
            first = qe.Prefetch(limit=limit, query=multi, filter=condition, params=params)
        return qe.QueryRequest(query=multi, limit=limit, prefetches=[first, *besides], params=_EXACT)

    return ask


def _pooled(queries: Representations, i: int) -> qe.Query:
    return qe.Query.Nearest(queries.pooled[i].tolist(), using="pooled")


def _terms(queries: Representations, i: int) -> qe.Query | None:
    weights = queries.sparse[i]
    if weights.nnz == 0:
        return None
    return qe.Query.Nearest(qe.SparseVector(weights.indices.tolist(), weights.data.tolist()), using="sparse")


def _besides(
    queries: Representations, i: int, condition: qe.Filter | None, candidates: Candidates
) -> list[qe.Prefetch]:
    terms = _terms(queries, i) if candidates.terms else None
    return [] if terms is None else [qe.Prefetch(limit=candidates.terms, query=terms, filter=condition)]
