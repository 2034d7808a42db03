from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffretriever.errors import InputError
from diffretriever.evaluation import Qrel, Run, ScoredPassage, evaluate
from diffretriever.evaluation.significance import compare, holm, randomisation_test, t_test

FIRST = [0.9, 0.7, 0.8, 0.4, 0.6]
SECOND = [0.5, 0.6, 0.8, 0.5, 0.1]


def enumerated(first, second):
    """All 2^n ways to exchange the values of queries, counted one by one."""
    differences = np.array(first) - np.array(second)
    observed = differences.sum()
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in product((1, -1), repeat=len(first))
    ]
    at_least = sum(s >= observed - 1e-12 for s in sums) / len(sums)
    at_most = sum(s <= observed + 1e-12 for s in sums) / len(sums)
    return min(1.0, 2 * min(at_least, at_most))


def test_three_queries_worked_by_hand():
    # Differences 1, 2, 3. Of the 8 ways to choose their signs, only +++ gives a sum of 6 or more, and only --- of -6 or
    # less: p = 2/8. With 1, 2, -1 the sum is 2; +++ , ++-, -++ and -+- ... give 4, 2, 2, 0: at least 2 are 3 of 8.
    assert randomisation_test([1, 2, 3], [0, 0, 0]) == pytest.approx(2 / 8)
    assert randomisation_test([1, 2, -1], [0, 0, 0]) == pytest.approx(2 * 3 / 8)


def test_the_exact_test_is_the_enumeration_of_all_exchanges():
    assert randomisation_test(FIRST, SECOND) == pytest.approx(enumerated(FIRST, SECOND))
    assert randomisation_test(SECOND, FIRST) == pytest.approx(enumerated(FIRST, SECOND))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=6))
def test_exact_for_any_few_queries(pairs):
    first, second = zip(*pairs, strict=True)
    assert randomisation_test(first, second) == pytest.approx(enumerated(first, second))


def test_random_exchanges_come_near_the_exact_value_and_are_seeded():
    rng = np.random.default_rng(0)
    first, second = rng.random(12) + 0.1, rng.random(12)
    exact = randomisation_test(first, second, resamples=2**12)
    drawn = randomisation_test(first, second, resamples=2000, seed=1)
    assert exact == pytest.approx(enumerated(first, second))
    assert drawn == randomisation_test(first, second, resamples=2000, seed=1)
    assert drawn == pytest.approx(exact, abs=0.04)


def test_the_t_test_is_scipys():
    assert t_test(FIRST, SECOND) == pytest.approx(stats.ttest_rel(FIRST, SECOND).pvalue)
    # By hand: differences .4 .1 0 -.1 .5, mean .18, standard deviation .2588, t = 1.555 with 4 degrees of freedom.
    assert t_test(FIRST, SECOND) == pytest.approx(2 * stats.t.sf(1.5552, 4), abs=1e-4)


@pytest.mark.parametrize("test", [t_test, randomisation_test])
def test_nothing_to_tell_apart(test):
    assert test([0.5, 0.2], [0.5, 0.2]) == 1.0
    assert test([0.5], [0.1]) == 1.0


def test_the_same_difference_everywhere():
    assert t_test([1, 1, 1], [0, 0, 0]) == 0.0
    assert randomisation_test([1, 1, 1], [0, 0, 0]) == pytest.approx(2 / 8)


def test_holm_on_a_published_example():
    # The example of the article "Holm-Bonferroni method" in Wikipedia; R's p.adjust(p, "holm") gives the same.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for p, a in zip(p_values, adjusted, strict=True):
        assert p <= a <= min(1.0, len(p_values) * p) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_what_is_no_p_value():
    assert holm([]) == []
    with pytest.raises(InputError, match="between 0 and 1, got nan"):
        holm([0.5, float("nan")])


QRELS = [Qrel(str(i), f"good{i}", 1) for i in range(6)]


def run_of(tag, ranks):
    """A run that has the relevant passage of query i at rank ranks[i]; None: not at all."""
    results = []
    for i, rank in enumerate(ranks):
        ids = [f"x{j}" for j in range(5)]
        if rank is not None:
            ids.insert(rank - 1, f"good{i}")
        results.append([ScoredPassage(p, float(10 - j)) for j, p in enumerate(ids)])
    return Run.of([str(i) for i in range(len(ranks))], results, tag)


class TestCompare:
    MEASURES = ("RR@10", "R@5")
    RUNS = (("a", [1, 1, 1, 2, 1, None]), ("b", [2, 1, 3, 1, None, None]), ("c", [None, None, 4, 4, 4, 4]))

    def evaluations(self):
        return {tag: evaluate(run_of(tag, ranks), QRELS, self.MEASURES) for tag, ranks in self.RUNS}

    def test_every_pair_by_every_measure_the_better_first(self):
        found = compare(self.evaluations(), self.MEASURES)
        assert [(p.measure, p.first, p.second) for p in found] == [
            (m, *pair) for m in self.MEASURES for pair in (("a", "b"), ("a", "c"), ("b", "c"))
        ]
        first = found[0]
        assert (first.wins, first.ties, first.losses) == (3, 2, 1)
        assert first.difference == pytest.approx((0.5 + 2 / 3 - 0.5 + 1) / 6)
        values = self.evaluations()
        a, b = (list(values[t].per_query["RR@10"].values()) for t in "ab")
        assert first.t_p == pytest.approx(stats.ttest_rel(a, b).pvalue)
        assert first.randomisation_p == pytest.approx(enumerated(a, b))
        assert [p.t_holm for p in found] == holm([p.t_p for p in found])
        assert [p.randomisation_holm for p in found] == holm([p.randomisation_p for p in found])

    def test_pairs_with_a_baseline(self):
        found = compare(self.evaluations(), ["RR@10"], baseline="a")
        assert [(p.first, p.second) for p in found] == [("b", "a"), ("c", "a")]
        assert found[0].difference < 0
        with pytest.raises(InputError, match="the baseline 'z' is none of the runs a, b, c"):
            compare(self.evaluations(), ["RR@10"], baseline="z")

    def test_other_queries_cannot_be_paired(self):
        other = evaluate(run_of("d", [1]), QRELS[:1], self.MEASURES)
        with pytest.raises(InputError, match="judged over different queries"):
            compare({**self.evaluations(), "d": other}, self.MEASURES)
