"""ahead: the next item made in a thread while the one before is in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield items in order; each is made while the consumer works with the one before, no more than one ahead.

    An error while an item is made is raised where the item would have been yielded.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        following = thread.submit(_step, iterator)
        while (item := following.result()) is not None:
            following = thread.submit(_step, iterator)
            yield item[0]


def _step(iterator: Iterator[T]) -> tuple[T] | None:
    """Return the next item, boxed since it may be None itself; None at the end."""
    for item in iterator:
        return (item,)
    return None
