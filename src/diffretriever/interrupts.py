"""Interrupts: Ctrl-C stops work between writes, never inside one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done, then let it do what it does otherwise: raise KeyboardInterrupt.

    An index must not be left with half of a batch because the signal came while it was being written. Blocks may lie
    in one another; the outermost ends the waiting. Outside the main thread, which no signal reaches, nothing is done.
    """
    pending = False

    def remember(signal_number: int, frame: FrameType | None) -> None:
        nonlocal pending
        pending = True

    previous = signal.getsignal(signal.SIGINT)
    try:
        if held := previous is not None:  # a handler that was not set from Python could not be put back
            signal.signal(signal.SIGINT, remember)
    except ValueError:  # only the main thread may set a handler
        held = False
    try:
        yield
    finally:
        if held:
            signal.signal(signal.SIGINT, previous)
        if pending:
            # Not KeyboardInterrupt itself: a program may have a handler of its own, or ignore the signal.
            signal.raise_signal(signal.SIGINT)
