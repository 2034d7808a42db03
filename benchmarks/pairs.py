"""Paired comparison of two ways to compute the same: interleaved, warmed up, outputs checked against each other."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

HEADER = "| comparison | ratio of CPU time, median (min to max) | of wall time | ours, CPU s | other, CPU s | load |"
RULE = "|---|---|---|---|---|---|"


class DisagreementError(AssertionError):
    """The two sides of a comparison gave different outputs, so their times mean nothing."""


@dataclass(frozen=True)
class Timing:
    """One call: seconds on the wall, and seconds of processor time of this process, all threads together."""

    wall: float
    cpu: float


@dataclass
class Comparison:
    """Times of two sides, round by round.

    Attributes:
        name: what was compared.
        ours: times of our side, one per round.
        other: times of the other side in the same rounds.
        load: load average of the machine at the start and at the end.
    """

    name: str
    ours: list[Timing] = field(default_factory=list)
    other: list[Timing] = field(default_factory=list)
    load: tuple[float, float] = (0.0, 0.0)

    def ratios(self, clock: str = "cpu") -> list[float]:
        """Return, round by round, how many times as long the other side took; `clock` is "cpu" or "wall"."""
        return [getattr(b, clock) / max(1e-9, getattr(a, clock)) for a, b in zip(self.ours, self.other, strict=True)]

    def median(self, clock: str = "cpu") -> float:
        """Return the median of the paired ratios."""
        return statistics.median(self.ratios(clock))

    def row(self) -> str:
        """Return one row of the Markdown table that `HEADER` and `RULE` begin."""
        shown = [f"{self.median(c):.2f} ({min(self.ratios(c)):.2f} to {max(self.ratios(c)):.2f})" for c in CLOCKS]
        seconds = [statistics.median(t.cpu for t in side) for side in (self.ours, self.other)]
        load = " to ".join(f"{value:.1f}" for value in self.load)
        return f"| {self.name} | {shown[0]} | {shown[1]} | {seconds[0]:.3f} | {seconds[1]:.3f} | {load} |"


CLOCKS = ("cpu", "wall")


def timed(call: Callable[[], T]) -> tuple[T, Timing]:
    """Return what a call returns, and its time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, Timing(time.perf_counter() - wall, time.process_time() - cpu)


def compare(
    name: str,
    ours: Callable[[], T],
    other: Callable[[], T],
    check: Callable[[T, T], str | None],
    *,
    rounds: int = 5,
) -> Comparison:
    """Return the times of both sides over some rounds, in the order ours, other, ours, other ...

    A round of each before the first is not counted. Its outputs and those of the last round are compared.

    Args:
        name: what is compared.
        ours: our side.
        other: the other side; it computes the same.
        check: says what is wrong with a pair of outputs (ours, other), None when they agree.
        rounds: number of rounds counted.

    Raises:
        DisagreementError: the outputs differ.
    """
    comparison = Comparison(name)
    before = _load()
    _agree(name, check, ours(), other())
    for number in range(rounds):
        mine, my_time = timed(ours)
        theirs, their_time = timed(other)
        comparison.ours.append(my_time)
        comparison.other.append(their_time)
        if number == rounds - 1:
            _agree(name, check, mine, theirs)
    comparison.load = (before, _load())
    return comparison


def print_table(*comparisons: Comparison) -> None:
    """Print comparisons as a Markdown table."""
    sys.stdout.write("\n".join([HEADER, RULE, *(c.row() for c in comparisons)]) + "\n")
    sys.stdout.flush()


def _agree(name: str, check: Callable[[T, T], str | None], mine: T, theirs: T) -> None:
    if wrong := check(mine, theirs):
        raise DisagreementError(f"{name}: {wrong}; no times are reported")


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
