"""How long a call takes, by the clock on the wall or by the processor time of this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np

#: The processor's clock counts what this process computes, all threads together: what other work on the machine takes
#: away stays out, and so does waiting for the disk.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def p50(calls: Iterable[Callable[[], object]], clock: str = "wall") -> float:
    """Return the median time of some calls in milliseconds."""
    now, times = CLOCKS[clock], []
    for call in calls:
        started = now()
        call()
        times.append(now() - started)
    return 1000 * float(np.median(times))
