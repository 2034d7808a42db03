"""Tuning: the weight of the dense side in hybrid search, chosen on judgements that are not the test's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffretriever.errors import InputError
from diffretriever.evaluation.measures import evaluate
from diffretriever.evaluation.qrels import Qrel
from diffretriever.evaluation.runs import Run, ScoredPassage
from diffretriever.fusion import DEPTH, Ranking, fuse

#: Weights that are tried by default.
ALPHAS = tuple(i / 20 for i in range(21))


@dataclass(frozen=True)
class Tuning:
    """What each weight is worth.

    Attributes:
        measure: name of the measure.
        queries: judged queries.
        alphas: the weights tried.
        values: mean of the measure at each weight.
        best_alpha: the weight chosen: the best; of several, the one nearest to .5, then the smaller.
        best: its value.
        rrf: value of reciprocal rank fusion.
    """

    measure: str
    queries: int
    alphas: tuple[float, ...]
    values: tuple[float, ...]
    best_alpha: float
    best: float
    rrf: float


def tune(
    dense: Run,
    sparse: Run,
    qrels: Sequence[Qrel],
    measure: str = "nDCG@10",
    *,
    alphas: Sequence[float] = ALPHAS,
    depth: int | None = None,
) -> Tuning:
    """Return the value of every weight, and the best.

    Args:
        dense: the dense rankings.
        sparse: the sparse rankings; one shorter than `depth` is taken to list every passage that shares a term, so that
            passages missing from it have the score 0 (see `diffretriever.fusion`).
        qrels: judgements.
        measure: name as ir_measures writes it.
        alphas: weights to try.
        depth: length at which sparse rankings were cut; by default that of the longest.

    Raises:
        InputError: there is no weight, one lies outside 0..1, the measure is unknown, or the runs share no query.
    """
    if not alphas:
        raise InputError("give at least one weight to try")
    queries = [q for q in dense.rankings if q in sparse.rankings]
    if not queries:
        raise InputError(f"the runs {dense.tag!r} and {sparse.tag!r} share no query; give two runs of one collection")
    cut = depth or max(len(ranking) for ranking in sparse.rankings.values())
    pairs = [
        (
            as_ranking(dense.rankings[q], None),
            as_ranking(sparse.rankings[q], 0.0 if len(sparse.rankings[q]) < cut else None),
        )
        for q in queries
    ]
    values = [_value(queries, [fuse(d, s, alpha=a) for d, s in pairs], qrels, measure) for a in alphas]
    best = max(range(len(alphas)), key=lambda i: (round(values[i], 9), -abs(alphas[i] - 0.5), -alphas[i]))
    rrf = _value(queries, [fuse(d, s, method="rrf") for d, s in pairs], qrels, measure)
    judged = len({q.query_id for q in qrels})
    return Tuning(measure, judged, tuple(alphas), tuple(values), alphas[best], values[best], rrf)


def as_ranking(ranking: Sequence[ScoredPassage], floor: float | None) -> Ranking:
    """Return a ranking of a run in the form that is fused, cut to the depth of fusion."""
    cut = ranking[:DEPTH]
    return Ranking([p.passage_id for p in cut], np.array([p.score for p in cut], dtype=np.float64), floor=floor)


def _value(queries: Sequence[str], fused: Sequence[Ranking], qrels: Sequence[Qrel], measure: str) -> float:
    results = [[ScoredPassage(p, s) for p, s in zip(r.passage_ids, r.scores.tolist(), strict=True)] for r in fused]
    return evaluate(Run.of(queries, results, "fused"), qrels, [measure])[measure]
