"""The oracle per query: how much a choice of the best variant for every query would bring, and how much of it is luck.

An oracle picks, for each query, the variant with the best value. Its gain over the best single variant is an upper
bound of what an adaptive choice of K could bring, but part of it is no property of K: the best of many noisy values is
high whatever they vary in. The control is an oracle over as many variants that differ in noise alone: other wordings
of the prompt, or a little noise on the masked positions, at one and the same K. What the first gains over the second
is the headroom that K itself offers.

Intervals are percentiles of a bootstrap over queries: in each sample the best single variant is chosen anew, as it was
in the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diffretriever.errors import InputError

Matrix = npt.NDArray[np.float64]

#: Samples of the bootstrap, how many at once, and the part of them within an interval.
SAMPLES, _AT_ONCE, LEVEL = 10_000, 500, 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Oracle:
    """An oracle over some variants.

    Attributes:
        name: what the variants vary in.
        variants: their names.
        queries: number of queries.
        best: name of the best single variant.
        best_mean: its mean.
        average_mean: mean over all variants and queries.
        oracle_mean: mean over the queries of the best variant's value.
        gain: oracle minus best single variant.
        spread: mean over the queries of the standard deviation over the variants: how much they differ at all.
    """

    name: str
    variants: tuple[str, ...]
    queries: int
    best: str
    best_mean: float
    average_mean: float
    oracle_mean: float
    gain: Interval
    spread: float


@dataclass(frozen=True)
class Headroom:
    """What an oracle gains beyond its control.

    Attributes:
        oracle: over the variants of K.
        control: over as many variants of one K.
        excess: gain of the oracle minus gain of the control, over the same samples of queries.
    """

    oracle: Oracle
    control: Oracle
    excess: Interval


def oracle_over(name: str, values: Mapping[str, Mapping[str, float]], *, seed: int = 1) -> Oracle:
    """Return the oracle over variants.

    Args:
        name: what the variants vary in.
        values: variant -> query id -> value, all over the same queries.
        seed: seed of the bootstrap.

    Raises:
        InputError: there is no variant or query, or the queries differ.
    """
    matrix, _ = _matrix(name, values)
    means = matrix.mean(axis=1)
    best = int(means.argmax())
    sampled = _sampled_gains([matrix], seed)[0]
    oracle_mean = float(matrix.max(axis=0).mean())
    return Oracle(
        name=name,
        variants=tuple(values),
        queries=matrix.shape[1],
        best=list(values)[best],
        best_mean=float(means[best]),
        average_mean=float(matrix.mean()),
        oracle_mean=oracle_mean,
        gain=_interval(oracle_mean - float(means[best]), sampled),
        spread=float(matrix.std(axis=0).mean()),
    )


def headroom(
    values: Mapping[str, Mapping[str, float]],
    control: Mapping[str, Mapping[str, float]],
    *,
    name: str = "K",
    control_name: str = "noise",
    seed: int = 1,
) -> Headroom:
    """Return an oracle, its control and the difference of their gains.

    Args:
        values: variant of K -> query id -> value.
        control: variant of noise -> query id -> value; as many variants, the same queries.
        name: what the variants vary in.
        control_name: what those of the control vary in.
        seed: seed of the bootstrap.

    Raises:
        InputError: the numbers of variants or the queries differ: the gains could not be compared.
    """
    if len(values) != len(control):
        raise InputError(
            f"{len(values)} variants of {name} against {len(control)} of {control_name}: an oracle over more variants "
            "gains more by chance; give as many"
        )
    first, queries = _matrix(name, values)
    second, others = _matrix(control_name, control)
    if queries != others:
        raise InputError(f"the variants of {name} and of {control_name} were judged on different queries")
    gains = [float(m.max(axis=0).mean() - m.mean(axis=1).max()) for m in (first, second)]
    sampled = _sampled_gains([first, second], seed)
    return Headroom(
        oracle_over(name, values, seed=seed),
        oracle_over(control_name, control, seed=seed),
        _interval(gains[0] - gains[1], sampled[0] - sampled[1]),
    )


def _matrix(name: str, values: Mapping[str, Mapping[str, float]]) -> tuple[Matrix, list[str]]:
    """Return [variants, queries] values, and the ids of the queries, sorted."""
    if not values or not next(iter(values.values())):
        raise InputError(f"an oracle over {name} needs at least one variant and one query")
    queries = sorted(next(iter(values.values())))
    for variant, own in values.items():
        if sorted(own) != queries:
            raise InputError(f"variant {variant!r} of {name} was judged on other queries than {next(iter(values))!r}")
    return np.array([[own[query] for query in queries] for own in values.values()]), queries


def _sampled_gains(matrices: list[Matrix], seed: int) -> list[Matrix]:
    """Return the gain of each matrix [V, Q] in each of `SAMPLES` samples of the queries, the same for all."""
    rng = np.random.default_rng(seed)
    count = matrices[0].shape[1]
    gains: list[list[Matrix]] = [[] for _ in matrices]
    for _ in range(0, SAMPLES, _AT_ONCE):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE) / count
        for own, matrix in zip(gains, matrices, strict=True):
            own.append(weights @ matrix.max(axis=0) - (weights @ matrix.T).max(axis=1))
    return [np.concatenate(own) for own in gains]


def _interval(value: float, sampled: Matrix) -> Interval:
    low, high = np.quantile(sampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
