"""Agreement: how alike two runs rank, whatever the judgements say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffretriever.errors import InputError
from diffretriever.evaluation.runs import Run


@dataclass(frozen=True)
class Agreement:
    """How alike two runs rank; each number is a mean over the queries.

    Attributes:
        queries: queries that both runs hold.
        depth: K, passages of a ranking that count.
        overlap: share of the K best of the one run that are among the K best of the other.
        first: share of the queries with the same best passage.
        tau: Kendall's tau-b between the places of the passages that both rank among the K best.
    """

    queries: int
    depth: int
    overlap: float
    first: float
    tau: float


def rank_agreement(one: Run, other: Run, depth: int = 10) -> Agreement:
    """Return how alike two runs rank the K best passages of their queries.

    A query with fewer than two passages in common has no tau and does not count for it.

    Args:
        one: a run.
        other: a run of the same queries.
        depth: K.

    Raises:
        InputError: K < 1, or the runs have no query in common.
    """
    if depth < 1:
        raise InputError(f"depth is {depth}; at least the best passage must count")
    common = [query_id for query_id in one.rankings if query_id in other.rankings]
    if not common:
        raise InputError(f"the runs {one.tag} and {other.tag} have no query in common")
    overlaps, firsts, taus = [], [], []
    for query_id in common:
        first, second = ([p.passage_id for p in run.rankings[query_id][:depth]] for run in (one, other))
        shared = [passage_id for passage_id in first if passage_id in second]
        overlaps.append(len(shared) / max(1, len(first), len(second)) if first or second else 1.0)
        firsts.append(first[:1] == second[:1])
        if len(shared) > 1:
            taus.append(_tau([second.index(passage_id) for passage_id in shared]))
    tau = float(np.mean(taus)) if taus else float("nan")
    return Agreement(len(common), depth, float(np.mean(overlaps)), float(np.mean(firsts)), tau)


def _tau(places: Sequence[int]) -> float:
    """Return Kendall's tau between some places and their order; places differ, so tau-b and tau-a are one."""
    rising = [a < b for i, a in enumerate(places) for b in places[i + 1 :]]
    return 2 * sum(rising) / len(rising) - 1
