from __future__ import annotations

import math
import random
import sys

import pytest

from diffretriever.errors import InputError, MissingExtraError
from diffretriever.evaluation import Qrel, Run, ScoredPassage, evaluate, read_qrels, read_run
from diffretriever.evaluation.measures import parse_measures

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


@pytest.mark.parametrize("tied", [True, False])
def test_a_foreign_run_with_grades_has_the_values_of_ir_measures(tmp_path, tied):
    import ir_measures

    rng = random.Random(0)
    names = ["nDCG@10", "nDCG@3", "RR", "RR(rel=2)", "R@1000", "R(rel=2)@5", "AP", "AP(rel=2)", "P@3"]
    # Given ties, ir_measures cuts RR@k in another order than trec_eval's, which is ours for every measure.
    names += [] if tied else ["RR@10", "RR(rel=2)@3"]
    run, qrels = tmp_path / "r.trec", tmp_path / "q.trec"
    scores = [1.0, 0.5, 0.25, 0.125] if tied else [rng.random() for _ in range(10_000)]
    run.write_text(
        "".join(f"q{q} Q0 d{d} 1 {rng.choice(scores)} t\n" for q in range(8) for d in rng.sample(range(12), 9))
    )
    qrels.write_text("".join(f"q{q} 0 d{d} {rng.randint(0, 3)}\n" for q in range(9) for d in range(0, 12, 2)))
    found = evaluate(read_run(run), read_qrels(qrels), names)
    expected = ir_measures.calc(
        [ir_measures.parse_measure(name) for name in names],
        list(ir_measures.read_trec_qrels(str(qrels))),
        list(ir_measures.read_trec_run(str(run))),
    )
    for measure, value in expected.aggregated.items():
        assert found[str(measure)] == pytest.approx(value, abs=1e-9), measure
    for metric in expected.per_query:
        assert found.per_query[str(metric.measure)][metric.query_id] == pytest.approx(metric.value, abs=1e-9)


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("P", "measure 'P': invalid param cutoff"),
        ("nDCG(foo=1)@10", "measure 'nDCG.foo=1.@10': "),
        ("nDCG@0", "looks at the first 0 passages; it must be 1 or more"),
    ],
)
def test_a_measure_that_cannot_be_computed_is_named_before_anything_starts(name, message):
    with pytest.raises(InputError, match=message):
        parse_measures(["nDCG@10", name])


def test_an_error_of_the_program_behind_a_measure_names_it():
    """ERR is computed by a script that wants numbers as query ids."""
    run = Run("r", {"one": [ScoredPassage("p", 1.0)]})
    with pytest.raises(InputError, match="ERR@10 cannot be computed by ir_measures"):
        evaluate(run, [Qrel("one", "p", 1)], ["ERR@10"])
