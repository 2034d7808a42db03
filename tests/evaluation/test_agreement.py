from __future__ import annotations

import math

import pytest

from diffretriever.errors import InputError
from diffretriever.evaluation.agreement import rank_agreement
from diffretriever.evaluation.runs import Run, ScoredPassage


def run(*rankings: str) -> Run:
    lists = [[ScoredPassage(name, -float(place)) for place, name in enumerate(ranking)] for ranking in rankings]
    return Run.of([f"q{i}" for i in range(len(rankings))], lists, "run")


def test_equal_runs_agree_wholly() -> None:
    same = rank_agreement(run("abcd", "efg"), run("abcd", "efg"), depth=3)
    assert (same.queries, same.depth, same.overlap, same.first, same.tau) == (2, 3, 1.0, 1.0, 1.0)


def test_each_number_is_what_it_says() -> None:
    # In common: b, c, d of four; of their three pairs one is turned round.
    found = rank_agreement(run("abcd"), run("cbde"), depth=4)
    assert found.overlap == 0.75
    assert found.first == 0
    assert found.tau == pytest.approx(1 / 3)
    assert rank_agreement(run("abcd"), run("dcba")).tau == -1


def test_what_cannot_be_compared() -> None:
    assert math.isnan(rank_agreement(run("ab"), run("cd")).tau)
    assert rank_agreement(run(""), run("")).overlap == 1
    with pytest.raises(InputError, match="depth is 0"):
        rank_agreement(run("a"), run("a"), depth=0)
    with pytest.raises(InputError, match="no query in common"):
        rank_agreement(run("a"), run())
