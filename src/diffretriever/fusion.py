"""Fusion of two rankings of the same query, one implementation for every index backend.

* min-max interpolation (docs/method.md, 9): `alpha * minmax(dense) + (1 - alpha) * minmax(sparse)`;
* reciprocal rank fusion (Cormack et al., 2009): `sum over rankings of 1 / (k + rank)`, k = 60.

Both give a passage that a ranking does not hold 0 from that ranking. Equal fused scores are ordered by passage id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from diffretriever.errors import InputError

FusionName = Literal["minmax", "rrf"]
Scores = npt.NDArray[np.float64]

#: Length of the rankings that are fused, as in the paper.
DEPTH = 1000
#: Constant of reciprocal rank fusion.
RRF_K = 60


@dataclass(frozen=True)
class Ranking:
    """The passages found for one query, best first.

    Attributes:
        passage_ids: ids, each once, score descending.
        scores: [n] the scores, in the same order.
        exact: False when an approximate search may have missed passages.
        floor: score of every passage of the collection that is not listed, when that is known (0 for a sparse
            ranking that lists every passage sharing a term); None otherwise.
    """

    passage_ids: Sequence[str]
    scores: Scores
    exact: bool = True
    floor: float | None = None

    def __post_init__(self) -> None:
        if len(self.passage_ids) != len(self.scores):
            raise InputError(
                f"a ranking needs one score per passage, got {len(self.passage_ids)} ids and {len(self.scores)} scores"
            )

    def __len__(self) -> int:
        return len(self.passage_ids)

    @staticmethod
    def sort(
        passage_ids: Sequence[str],
        scores: npt.ArrayLike,
        *,
        k: int | None = None,
        exact: bool = True,
        floor: float | None = None,
    ) -> Ranking:
        """Return the k best passages (all when None): score descending, then passage id ascending."""
        values = np.asarray(scores, dtype=np.float64)
        order = np.argsort(-values, kind="stable")
        ordered = values[order]
        # Sorting by id in Python is slow and needed only within runs of equal scores.
        changes = np.flatnonzero(np.diff(ordered)) + 1
        for start, end in zip(np.r_[0, changes].tolist(), np.r_[changes, len(order)].tolist(), strict=True):
            if k is not None and start >= k:
                break
            if end - start > 1:
                order[start:end] = sorted(order[start:end].tolist(), key=passage_ids.__getitem__)
        order = order[:k]
        return Ranking([passage_ids[i] for i in order.tolist()], values[order], exact=exact, floor=floor)


def interpolate(dense: Ranking, sparse: Ranking, *, alpha: float = 0.5, depth: int = DEPTH) -> Ranking:
    """Return `alpha * minmax(dense) + (1 - alpha) * minmax(sparse)` over the union of both rankings.

    Each ranking is cut to its `depth` best and normalised over that list of that query: its best passage gets 1 and
    its worst 0, and so does every passage of a list whose scores are all equal. A passage missing from a list gets 0
    from it. Where `Ranking.floor` is known and the list is shorter than `depth`, the floor is the worst score: the
    list would go on with passages of that score.

    Args:
        dense: ranking by vectors.
        sparse: ranking by term weights.
        alpha: weight of the dense side, 0 to 1.
        depth: how much of each ranking takes part.

    Raises:
        InputError: when alpha lies outside 0..1 or depth < 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha must lie between 0 (sparse only) and 1 (dense only), got {alpha}")
    return _weighted_sum([(alpha, _normalise(dense, depth)), (1.0 - alpha, _normalise(sparse, depth))])


def reciprocal_rank(rankings: Sequence[Ranking], *, k: int = RRF_K, depth: int = DEPTH) -> Ranking:
    """Return the passages of all rankings by the sum of `1 / (k + rank)`, ranks counted from 1.

    Args:
        rankings: any number of rankings of one query.
        k: how little the first ranks are favoured over the later ones; at least 1.
        depth: how much of each ranking takes part.

    Raises:
        InputError: when k < 1 or depth < 1.
    """
    if k < 1:
        raise InputError(f"k of reciprocal rank fusion must be at least 1, got {k}")
    cut = [_cut(ranking, depth) for ranking in rankings]
    return _weighted_sum([(1.0, replace(r, scores=_reciprocal_ranks(len(r), k))) for r in cut])


def fuse(
    dense: Ranking,
    sparse: Ranking,
    *,
    method: FusionName = "minmax",
    alpha: float = 0.5,
    depth: int = DEPTH,
) -> Ranking:
    """Return the fusion of both rankings by the named method; `alpha` matters to "minmax" only.

    Raises:
        InputError: when the method is unknown or an argument out of range.
    """
    if method == "minmax":
        return interpolate(dense, sparse, alpha=alpha, depth=depth)
    if method == "rrf":
        return reciprocal_rank([dense, sparse], depth=depth)
    raise InputError(f"fusion must be 'minmax' or 'rrf', got {method!r}")


def minmax(scores: npt.ArrayLike, floor: float | None = None) -> Scores:
    """Return the scores mapped linearly so that the least (or the floor, if lower) is 0 and the greatest 1.

    Scores that are all equal, floor included, become 0.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        return values
    low, high = float(values.min()), float(values.max())
    if floor is not None:
        low = min(low, floor)
    if high <= low:
        return np.zeros_like(values)
    return (values - low) / (high - low)


def _reciprocal_ranks(count: int, k: int) -> Scores:
    return np.reciprocal(k + np.arange(1, count + 1, dtype=np.float64))


def _cut(ranking: Ranking, depth: int) -> Ranking:
    if depth < 1:
        raise InputError(f"depth must be at least 1, got {depth}")
    if len(ranking) <= depth:
        return ranking
    return replace(ranking, passage_ids=ranking.passage_ids[:depth], scores=ranking.scores[:depth])


def _normalise(ranking: Ranking, depth: int) -> Ranking:
    cut = _cut(ranking, depth)
    floor = cut.floor if len(cut) < depth else None
    return replace(cut, scores=minmax(cut.scores, floor))


def _weighted_sum(weighted: Sequence[tuple[float, Ranking]]) -> Ranking:
    total: dict[str, float] = {}
    for weight, ranking in weighted:
        for passage_id, score in zip(ranking.passage_ids, ranking.scores.tolist(), strict=True):
            total[passage_id] = total.get(passage_id, 0.0) + weight * score
    exact = all(ranking.exact for _, ranking in weighted)
    return Ranking.sort(list(total), list(total.values()), exact=exact)
