"""Timing: durations of several calls, warm and interleaved, so that a machine's moods reach all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

#: A call that is timed; it gets the number of its round, to vary its input.
Call = Callable[[int], object]


@dataclass(frozen=True)
class Timing:
    """Durations of one call in milliseconds.

    Attributes:
        samples: number of timed calls.
        median_ms: their median.
        p95_ms: their 95th percentile, interpolated.
        least_ms: the shortest.
    """

    samples: int
    median_ms: float
    p95_ms: float
    least_ms: float

    @staticmethod
    def of(seconds: list[float]) -> Timing:
        """Return the timing of some durations in seconds."""
        ms = 1000.0 * np.asarray(seconds)
        return Timing(len(ms), float(np.median(ms)), float(np.percentile(ms, 95)), float(ms.min()))


@dataclass(frozen=True)
class Schedule:
    """How often calls are timed.

    Attributes:
        rounds: timed calls of each.
        warm_up: calls of each beforehand, not timed.
        seconds: time after which the rounds end early; at least three are made.
    """

    rounds: int = 20
    warm_up: int = 2
    seconds: float = 60.0


#: Rounds that are made whatever they take: a median needs three.
_FEWEST = 3


def interleaved(
    calls: Mapping[str, Call], schedule: Schedule, device: torch.device, advance: Callable[[int], None] | None = None
) -> dict[str, list[float]]:
    """Return the durations in seconds of each call: A B C, B C A, C A B, ..., after a warm-up.

    Every round begins with another call, so none always follows the same one. On an accelerator a call ends when its
    work has ended.

    Args:
        calls: name -> call; round r calls it with r.
        schedule: how often.
        device: the device to wait for.
        advance: told after every round.
    """
    names = list(calls)
    for name in names:
        for number in range(schedule.warm_up):
            calls[name](number)
    wait_for(device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    began = time.perf_counter()
    for number in range(schedule.rounds):
        if number >= _FEWEST and time.perf_counter() - began > schedule.seconds:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            calls[name](number)
            wait_for(device)
            seconds[name].append(time.perf_counter() - started)
        if advance is not None:
            advance(1)
    return seconds


def wait_for(device: torch.device) -> None:
    """Return when the work queued on a device has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def paired_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the median over the rounds of the ratio of two calls of the same round."""
    rounds = min(len(numerator), len(denominator))
    return float(np.median(np.asarray(numerator[:rounds]) / np.asarray(denominator[:rounds])))
