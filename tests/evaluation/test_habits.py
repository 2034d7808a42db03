from __future__ import annotations

import pytest

from diffretriever.evaluation.habits import default_measures, drops_own_ids


@pytest.mark.parametrize(
    ("name", "dropped", "measures"),
    [
        ("arguana", True, ("nDCG@10", "R@100", "R@1000")),
        ("beir-quora-test", True, ("nDCG@10", "R@100", "R@1000")),
        ("msmarco_dl19_pool", False, ("nDCG@10", "R(rel=2)@100", "R(rel=2)@1000")),
        ("msmarco-passage-trec-dl-2020-judged", False, ("nDCG@10", "R(rel=2)@100", "R(rel=2)@1000")),
        ("msmarco-passage-v2-trec-dl-2021-judged", False, ("nDCG@10", "R(rel=2)@100", "R(rel=2)@1000")),
        ("dl23", False, ("nDCG@10", "R(rel=2)@100", "R(rel=2)@1000")),
        ("msmarco-passage-trec-dl-hard", False, ("nDCG@10", "R(rel=2)@100", "R(rel=2)@1000")),
        ("msmarco-document-trec-dl-2019-judged", False, ("nDCG@10", "R@100", "R@1000")),
        ("scifact", False, ("nDCG@10", "R@100", "R@1000")),
    ],
)
def test_habits_of_the_field(name, dropped, measures):
    assert drops_own_ids(name) is dropped
    assert default_measures(name, 1000) == measures
    assert default_measures(name, 100) == measures[:2]
