from __future__ import annotations

import pytest
import torch

from diffretriever.studies.timing import Schedule, Timing, interleaved, paired_ratio

CPU = torch.device("cpu")


def test_median_and_p95_are_those_of_the_durations():
    timing = Timing.of([0.001 * n for n in range(1, 22)])
    assert timing.samples == 21
    assert timing.median_ms == pytest.approx(11.0)
    assert timing.p95_ms == pytest.approx(20.0)
    assert timing.least_ms == pytest.approx(1.0)


def test_calls_take_turns_after_a_warm_up_and_every_round_begins_with_another():
    seen = []
    calls = {name: lambda number, name=name: seen.append((name, number)) for name in "abc"}
    seconds = interleaved(calls, Schedule(rounds=4, warm_up=1, seconds=60), CPU)
    assert [name for name, _ in seen] == list("abc" + "abc" + "bca" + "cab" + "abc")
    assert [number for _, number in seen[3:]] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert {name: len(found) for name, found in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_rounds_end_early_but_three_are_made():
    seconds = interleaved({"a": lambda _: None}, Schedule(rounds=1000, warm_up=0, seconds=0.0), CPU)
    assert len(seconds["a"]) == 3


def test_ratio_is_taken_round_by_round():
    # The second round is slow for both; the ratio of medians would be 2, and that of each round is 3.
    assert paired_ratio([3.0, 30.0, 3.0], [1.0, 10.0, 1.0]) == pytest.approx(3.0)
