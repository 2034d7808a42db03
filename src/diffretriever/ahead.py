"""ahead: the next item made in a thread while the one before is in use."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

#: Seconds that the thread has at the end to finish the item it makes. A source that computes is done by then, so that
#: it is never used behind the back of the caller; one that waits, such as a terminal, is left to itself.
_END_SECONDS = 1.0


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield items in order; each is made while the consumer works with the one before, no more than one ahead.

    An error while an item is made is raised where the item would have been yielded. An interrupt, or an end before the
    last item, does not wait for a source that waits: the item it makes then is dropped.
    """
    wanted: SimpleQueue[Future[tuple[T] | None] | None] = SimpleQueue()
    # The threads of an executor are waited for at the end of the program, however long a source waits.
    thread = threading.Thread(target=_make, args=(iter(items), wanted), name="ahead", daemon=True)
    end = partial(_end, thread, wanted)
    thread.start()
    # At the end of the program as well: a thread that computes while the interpreter goes away can crash it.
    atexit.register(end)
    try:
        following = _asked(wanted)
        while (item := following.result()) is not None:
            following = _asked(wanted)
            yield item[0]
    finally:
        atexit.unregister(end)
        end()


def _asked(wanted: SimpleQueue[Future[tuple[T] | None] | None]) -> Future[tuple[T] | None]:
    future: Future[tuple[T] | None] = Future()
    wanted.put(future)
    return future


def _make(iterator: Iterator[T], wanted: SimpleQueue[Future[tuple[T] | None] | None]) -> None:
    """Make an item for every future, until None comes instead of one."""
    while (future := wanted.get()) is not None:
        try:
            future.set_result(_step(iterator))
        except BaseException as error:
            future.set_exception(error)
        # An item is the consumer's alone: it may be large, and the next one may be long in coming.
        del future


def _step(iterator: Iterator[T]) -> tuple[T] | None:
    """Return the next item, boxed since it may be None itself; None at the end."""
    for item in iterator:
        return (item,)
    return None


def _end(thread: threading.Thread, wanted: SimpleQueue[Future[tuple[T] | None] | None]) -> None:
    wanted.put(None)
    thread.join(_END_SECONDS)
