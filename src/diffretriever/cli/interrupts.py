"""Interrupts: Ctrl-C stops work between writes, never inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done, then raise its KeyboardInterrupt.

    An index must not be left with half of a batch because the signal came while it was being written.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone, and only it may set a handler
        return
    pending = False

    def remember(signal_number: int, frame: FrameType | None) -> None:
        nonlocal pending
        pending = True

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pending:
        raise KeyboardInterrupt
