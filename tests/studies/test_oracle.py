from __future__ import annotations

import numpy as np
import pytest

from diffretriever.errors import InputError
from diffretriever.studies.oracle import headroom, oracle_over

#: Two variants that are each perfect on two of four queries and worth 0 on the others.
COMPLEMENTS = {"a": {"1": 1.0, "2": 1.0, "3": 0.0, "4": 0.0}, "b": {"1": 0.0, "2": 0.0, "3": 1.0, "4": 1.0}}
SAME = {"x": {"1": 1.0, "2": 0.5, "3": 0.0, "4": 0.5}, "y": {"1": 1.0, "2": 0.5, "3": 0.0, "4": 0.5}}


def drawn(rng, means, queries):
    """Variants whose values depend on their mean and on noise of their own."""
    return {
        f"v{i}": {str(q): float(v) for q, v in enumerate(mean + 0.2 * rng.standard_normal(queries))}
        for i, mean in enumerate(means)
    }


def test_a_perfect_complement_gains_half():
    found = oracle_over("K", COMPLEMENTS)
    assert (found.best_mean, found.oracle_mean, found.average_mean) == (0.5, 1.0, 0.5)
    assert found.gain.value == 0.5
    assert found.spread == 0.5
    assert (found.best, found.queries, found.variants) == ("a", 4, ("a", "b"))


def test_equal_variants_gain_nothing():
    found = oracle_over("K", SAME)
    assert (found.gain.value, found.gain.low, found.gain.high, found.spread) == (0.0, 0.0, 0.0, 0.0)


def test_the_control_takes_away_what_is_its_own():
    found = headroom(COMPLEMENTS, SAME)
    assert found.excess.value == 0.5
    assert found.control.gain.value == 0.0
    assert headroom(COMPLEMENTS, COMPLEMENTS).excess.value == 0.0


def test_an_oracle_never_falls_below_its_best_variant():
    rng = np.random.default_rng(3)
    for _ in range(20):
        found = oracle_over("K", drawn(rng, rng.random(4), 15))
        assert found.gain.low >= -1e-12
        assert found.oracle_mean >= found.best_mean >= found.average_mean


def test_noise_alone_looks_like_headroom_and_the_control_shows_that_it_is_none():
    rng = np.random.default_rng(1)
    found = headroom(drawn(rng, [0.5] * 5, 400), drawn(rng, [0.5] * 5, 400))
    assert found.oracle.gain.low > 0.15
    assert found.excess.low < 0 < found.excess.high
    # The mean of the largest of five normal values is 1.163 deviations.
    assert found.oracle.gain.value == pytest.approx(0.2 * 1.163, abs=0.03)


def test_real_differences_stand_above_the_control():
    rng = np.random.default_rng(2)
    kinds = rng.integers(0, 5, 400)
    values = drawn(rng, [0.5] * 5, 400)
    for i, own in enumerate(values.values()):
        for query in own:
            own[query] += 0.5 * (kinds[int(query)] == i)
    found = headroom(values, drawn(rng, [0.6] * 5, 400))
    assert found.excess.low > 0.1


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(5)
    values = drawn(rng, [0.4, 0.5], 30)
    assert oracle_over("K", values, seed=7) == oracle_over("K", values, seed=7)
    assert oracle_over("K", values, seed=7).gain != oracle_over("K", values, seed=8).gain


@pytest.mark.parametrize(
    ("values", "control", "said"),
    [
        (COMPLEMENTS, {"x": SAME["x"]}, "2 variants of K against 1 of noise"),
        (COMPLEMENTS, {"x": {"1": 1.0}, "y": {"1": 1.0}}, "different queries"),
        ({"a": COMPLEMENTS["a"], "b": {"1": 1.0}}, SAME, "'b' of K was judged on other queries than 'a'"),
        ({}, {}, "at least one variant"),
    ],
)
def test_what_cannot_be_compared_is_refused(values, control, said):
    with pytest.raises(InputError, match=said):
        headroom(values, control)
