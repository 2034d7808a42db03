from __future__ import annotations

import math
import sys

import pytest

from diffretriever.errors import InputError, MissingExtraError
from diffretriever.evaluation import Qrel, Run, ScoredPassage, evaluate

QRELS = [Qrel("1", "a", 1), Qrel("1", "b", 1), Qrel("2", "c", 1)]


def run_of(**rankings):
    ids = [name.removeprefix("q") for name in rankings]
    results = [[ScoredPassage(p, 1.0) for p in passages] for passages in rankings.values()]
    return Run.of(ids, results, "t")


def test_values_worked_by_hand_and_unanswered_queries_count_zero():
    result = evaluate(run_of(q1=["a", "x", "b"]), QRELS)
    ideal = 1 + 1 / math.log2(3)
    assert result.queries == 2
    assert result["nDCG@10"] == pytest.approx((1 + 1 / math.log2(4)) / ideal / 2, abs=1e-6)
    assert result["R@100"] == pytest.approx(0.5)


def test_tied_scores_are_judged_in_the_order_given():
    # trec_eval would put "z" before "c" at a tie.
    assert evaluate(run_of(q2=["c", "z"]), QRELS[2:], ["RR@10"])["RR@10"] == 1.0
    assert evaluate(run_of(q2=["z", "c"]), QRELS[2:], ["RR@10"])["RR@10"] == 0.5


def test_own_ids_are_dropped_only_when_asked():
    run = run_of(q2=["2", "c"])
    assert evaluate(run, QRELS[2:], ["RR@10"])["RR@10"] == 0.5
    assert evaluate(run, QRELS[2:], ["RR@10"], drop_own_ids=True)["RR@10"] == 1.0


def test_unknown_measure_and_missing_extra(monkeypatch):
    with pytest.raises(InputError, match="ndcg_of_ten"):
        evaluate(run_of(q2=["c"]), QRELS, ["ndcg_of_ten"])
    with pytest.raises(InputError, match="was not computed"):
        evaluate(run_of(q2=["c"]), QRELS)["AP"]
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingExtraError, match=r"diffretriever\[eval\]"):
        evaluate(run_of(q2=["c"]), QRELS)
