from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffretriever.errors import InputError
from diffretriever.fusion import Ranking, fuse, interpolate, minmax, reciprocal_rank


def ranking(scores: dict[str, float], floor: float | None = None, exact: bool = True) -> Ranking:
    return Ranking.sort(list(scores), list(scores.values()), floor=floor, exact=exact)


def pairs(r: Ranking) -> dict[str, float]:
    return dict(zip(r.passage_ids, r.scores.tolist(), strict=True))


def test_interpolation_normalises_each_list_over_itself():
    fused = interpolate(ranking({"a": 3.0, "b": 2.0, "c": 1.0}), ranking({"c": 40.0, "d": 30.0, "a": 20.0}), alpha=0.7)
    assert pairs(fused) == pytest.approx({"a": 0.7, "b": 0.35, "c": 0.3, "d": 0.15})
    assert list(fused.passage_ids) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("alpha", "order"), [(1.0, ["a", "b", "c"]), (0.0, ["c", "a", "b"])])
def test_alpha_goes_from_sparse_only_to_dense_only(alpha, order):
    fused = interpolate(ranking({"a": 2.0, "b": 1.0}), ranking({"c": 1.0}, floor=0.0), alpha=alpha)
    assert list(fused.passage_ids) == order


def test_a_constant_list_counts_nothing():
    fused = interpolate(ranking({"a": 5.0, "b": 5.0}), ranking({"b": 2.0, "c": 1.0}), alpha=0.5)
    assert pairs(fused) == {"b": 0.5, "a": 0.0, "c": 0.0}


def test_a_known_floor_is_the_worst_score_of_a_short_list():
    short = ranking({"a": 4.0, "b": 2.0}, floor=0.0)
    nothing = ranking({})
    assert pairs(interpolate(nothing, short, alpha=0.0)) == {"a": 1.0, "b": 0.5}
    assert pairs(interpolate(nothing, short, alpha=0.0, depth=2)) == {"a": 1.0, "b": 0.0}


def test_only_the_depth_best_take_part():
    dense = ranking({"a": 3.0, "b": 2.0, "c": 1.0})
    assert pairs(interpolate(dense, ranking({}), depth=2)) == {"a": 0.5, "b": 0.0}
    assert "c" not in pairs(reciprocal_rank([dense], depth=2))


def test_reciprocal_rank_sums_over_the_lists():
    fused = reciprocal_rank([ranking({"a": 9.0, "b": 1.0}), ranking({"b": 0.2, "c": 0.1})])
    assert pairs(fused) == pytest.approx({"b": 1 / 62 + 1 / 61, "a": 1 / 61, "c": 1 / 62})
    assert list(fused.passage_ids) == ["b", "a", "c"]


def test_equal_scores_are_ordered_by_id():
    assert list(ranking({"c": 1.0, "a": 1.0, "b": 2.0}).passage_ids) == ["b", "a", "c"]
    fused = reciprocal_rank([ranking({"z": 1.0}), ranking({"y": 1.0})])
    assert list(fused.passage_ids) == ["y", "z"]


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 3)), unique_by=lambda p: p[0]), st.integers(1, 8))
def test_sort_is_by_score_then_id_and_cuts_to_k(scored, k):
    made = Ranking.sort([i for i, _ in scored], [s for _, s in scored], k=k)
    expected = sorted(scored, key=lambda p: (-p[1], p[0]))[:k]
    assert list(zip(made.passage_ids, made.scores.tolist(), strict=True)) == expected


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.one_of(st.none(), st.floats(-1e6, 1e6)))
def test_minmax_stays_within_0_and_1_and_keeps_the_order(scores, floor):
    mapped = minmax(scores, floor)
    assert mapped.min() >= 0.0
    assert mapped.max() <= 1.0
    for i, j in zip(np.argsort(scores)[:-1], np.argsort(scores)[1:], strict=True):
        assert mapped[i] <= mapped[j]


def test_fusing_an_approximate_list_is_approximate():
    assert not interpolate(ranking({"a": 1.0}, exact=False), ranking({"a": 1.0})).exact
    assert not reciprocal_rank([ranking({"a": 1.0}), ranking({"a": 1.0}, exact=False)]).exact
    assert interpolate(ranking({"a": 1.0}), ranking({"a": 1.0})).exact


def test_two_empty_lists_fuse_to_an_empty_one():
    for method in ("minmax", "rrf"):
        assert len(fuse(ranking({}), ranking({}), method=method)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.5}, "alpha must lie between"),
        ({"alpha": float("nan")}, "alpha must lie between"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"method": "dbsf"}, "fusion must be 'minmax' or 'rrf', got 'dbsf'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        fuse(ranking({"a": 1.0}), ranking({"a": 1.0}), **arguments)


def test_a_ranking_needs_a_score_per_passage():
    with pytest.raises(InputError, match="1 ids and 2 scores"):
        Ranking(["a"], np.zeros(2))
    with pytest.raises(InputError, match="k of reciprocal rank"):
        reciprocal_rank([], k=0)
