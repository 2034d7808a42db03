from __future__ import annotations

import pytest

from diffretriever.errors import InputError
from diffretriever.evaluation import Qrel, Run, ScoredPassage, evaluate
from diffretriever.evaluation.tuning import tune

QRELS = [Qrel("1", "a", 1), Qrel("2", "b", 1)]


def run_of(tag, **rankings):
    results = [[ScoredPassage(p, s) for p, s in r.items()] for r in rankings.values()]
    return Run.of([q.removeprefix("q") for q in rankings], results, tag)


DENSE = run_of("dense", q1={"x": 3.0, "a": 2.0, "y": 1.0}, q2={"b": 3.0, "x": 1.0, "y": 0.5})
SPARSE = run_of("sparse", q1={"a": 9.0, "y": 2.0, "x": 1.0}, q2={"x": 4.0, "b": 3.0, "y": 1.0})


def test_the_best_weight_worked_by_hand():
    # Query 1: x gets alpha, a gets alpha / 2 + (1 - alpha): a is first below 2/3.
    # Query 2: b gets alpha + (1 - alpha) 2/3, x gets alpha / 5 + (1 - alpha): b is first above 5/17.
    found = tune(DENSE, SPARSE, QRELS, "RR@10", alphas=[0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert found.values == pytest.approx((0.75, 0.75, 1.0, 1.0, 0.75, 0.75))
    assert (found.best_alpha, found.best, found.queries) == (0.4, 1.0, 2)
    # Query 1: a has ranks 2 and 1, x has 1 and 3. Query 2: b has ranks 1 and 2, x has 2 and 1; the tie goes to b by id.
    assert found.rrf == 1.0


def test_alpha_1_and_0_are_the_two_runs():
    found = tune(DENSE, SPARSE, QRELS, "nDCG@10", alphas=[0.0, 1.0])
    assert found.values[0] == pytest.approx(evaluate(SPARSE, QRELS)["nDCG@10"])
    assert found.values[1] == pytest.approx(evaluate(DENSE, QRELS)["nDCG@10"])


def test_a_passage_missing_from_a_sparse_list_that_is_whole_has_its_true_score():
    # a shares a term with the query and b does not: at alpha 0 a stands first though it is alone and thus the worst of
    # its list, because the list goes on with passages that score 0. A list that was cut tells no such thing.
    dense = run_of("dense", q1={"b": 2.0, "a": 1.0})
    sparse = run_of("sparse", q1={"a": 5.0})
    qrels = [Qrel("1", "a", 1)]
    assert tune(dense, sparse, qrels, "RR@10", alphas=[0.4], depth=1000).values == (1.0,)
    assert tune(dense, sparse, qrels, "RR@10", alphas=[0.4], depth=1).values == (0.5,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": []}, "at least one weight"),
        ({"alphas": [1.5]}, "alpha must lie between"),
        ({"measure": "nope"}, "nope"),
        ({"sparse": run_of("s", q9={"a": 1.0})}, "share no query"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(InputError, match=message):
        tune(**{"dense": DENSE, "sparse": SPARSE, "qrels": QRELS, "measure": "RR@10", **options})
