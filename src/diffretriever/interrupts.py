"""Interrupts: Ctrl-C stops work between writes, never inside one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done, then let it do what it does otherwise: raise KeyboardInterrupt.

    An index must not be left with half of a batch because the signal came while it was being written. Blocks may lie
    in one another; the outermost ends the waiting. Outside the main thread, which no signal reaches, nothing is done.
    """
    pending: list[FrameType | None] = []

    def remember(signal_number: int, frame: FrameType | None) -> None:
        pending[:] = [frame]

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
            _deliver(previous, pending.pop())


def _deliver(handler: Any, frame: FrameType | None) -> None:  # noqa: ANN401  (what getsignal returns)
    """Do what a program does on Ctrl-C: not KeyboardInterrupt itself, it may have a handler or ignore the signal."""
    if callable(handler):
        # Not by a second signal, which an event loop would hear as well: it is told of signals beside the handler.
        handler(signal.SIGINT, frame)
    elif handler == signal.SIG_DFL:
        signal.raise_signal(signal.SIGINT)
