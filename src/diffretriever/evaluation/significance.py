"""Significance: whether two runs differ by more than the choice of queries explains.

Two paired tests over the judged queries, both two-sided and by scipy: Student's t, and the randomisation test, which
exchanges the two values of random queries (of all subsets of queries, where there are few). The p-values of one family
are corrected by Holm's step-down procedure (Holm 1979), so that the chance of one false finding or more stays below the
level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from diffretriever.errors import InputError
from diffretriever.evaluation.measures import Evaluation

#: Random exchanges: enough for p-values that stay below .05 after the correction for a thousand comparisons.
RESAMPLES = 100_000
#: Differences below this are rounding.
_TIE = 1e-9
#: Most exchanged values held at once.
_BATCH_VALUES = 2**22


@dataclass(frozen=True)
class Pair:
    """Two runs by one measure.

    Attributes:
        measure: its name.
        first: label of one run.
        second: label of the other.
        difference: mean of the first less mean of the second.
        wins: queries on which the first is better.
        ties: queries on which they are equal.
        losses: queries on which the first is worse.
        t_p: p-value of the t-test.
        t_holm: the same after Holm's correction over all pairs and measures.
        randomisation_p: p-value of the randomisation test.
        randomisation_holm: the same after Holm's correction over all pairs and measures.
    """

    measure: str
    first: str
    second: str
    difference: float
    wins: int
    ties: int
    losses: int
    t_p: float
    t_holm: float
    randomisation_p: float
    randomisation_holm: float


def compare(
    evaluations: Mapping[str, Evaluation],
    measures: Sequence[str],
    *,
    baseline: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Pair]:
    """Return every pair of runs by every measure, the better run of a pair first (by the first measure).

    Args:
        evaluations: label -> values of a run, all over the same judgements.
        measures: the measures, all computed in each evaluation.
        baseline: label of a run; only pairs with it, which then comes second.
        resamples: random exchanges of the randomisation test; all exchanges where there are no more than these.
        seed: seed of the exchanges.

    Raises:
        InputError: the baseline is none of the runs, or the runs were judged over other queries.
    """
    if baseline is not None and baseline not in evaluations:
        raise InputError(f"the baseline {baseline!r} is none of the runs {', '.join(evaluations)}")
    ranked = sorted(evaluations, key=lambda label: -evaluations[label][measures[0]])
    pairs = list(combinations(ranked, 2))
    if baseline is not None:
        pairs = [(label, baseline) for label in ranked if label != baseline]
    rows = []
    for measure in measures:
        for first, second in pairs:
            a, b = paired_values(evaluations[first], evaluations[second], measure)
            rows.append((measure, first, second, a, b, t_test(a, b), randomisation_test(a, b, resamples, seed)))
    t_holm, random_holm = holm([row[5] for row in rows]), holm([row[6] for row in rows])
    return [
        Pair(measure, first, second, float((a - b).mean()), *_counts(a - b), t, th, r, rh)
        for (measure, first, second, a, b, t, r), th, rh in zip(rows, t_holm, random_holm, strict=True)
    ]


def paired_values(
    first: Evaluation, second: Evaluation, measure: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the values of two runs by one measure, query by query.

    Raises:
        InputError: they were judged over different queries.
    """
    left, right = first.per_query[measure], second.per_query[measure]
    if left.keys() != right.keys():
        raise InputError(f"{first.tag} and {second.tag} were judged over different queries; use the same judgements")
    return np.array(list(left.values())), np.array([right[query_id] for query_id in left])


def t_test(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return the p-value of the paired t-test; 1 where all differences are 0 or there is a single query."""
    from scipy import stats

    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if len(differences) < 2 or np.abs(differences).max() < _TIE:
        return 1.0
    if np.ptp(differences) < _TIE:
        return 0.0  # the same difference everywhere: no variance, which scipy warns about
    return float(stats.ttest_rel(first, second).pvalue)


def randomisation_test(first: npt.ArrayLike, second: npt.ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the p-value of the paired randomisation test of the difference of means.

    Exact where there are no more than `resamples` ways to exchange values; else (hits + 1) / (resamples + 1).
    """
    from scipy import stats

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(a) < 2 or np.abs(a - b).max() < _TIE:
        return 1.0
    done = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH_VALUES // (2 * len(a))),
        rng=np.random.default_rng(seed),
    )
    return float(done.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted by Holm's procedure, in the order given.

    The i-th smallest of m (from 0) is multiplied by m - i; no adjusted value is below one before it, nor above 1.
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for i, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if not 0.0 <= p_values[place] <= 1.0 or math.isnan(p_values[place]):
            raise InputError(f"a p-value lies between 0 and 1, got {p_values[place]}")
        largest = max(largest, (len(p_values) - i) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


def _counts(differences: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    wins, losses = int((differences > _TIE).sum()), int((differences < -_TIE).sum())
    return wins, len(differences) - wins - losses, losses
