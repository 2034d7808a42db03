from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from diffretriever.ahead import ahead


def test_items_come_in_order_and_one_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int | None]:
        for i in range(5):
            made.append(i)
            yield None if i == 3 else i

    got = ahead(items())
    assert next(got) == 0
    assert list(got) == [1, 2, None, 4]
    assert made == [0, 1, 2, 3, 4]


def test_the_next_is_made_while_this_one_is_used() -> None:
    used, made = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        assert used.wait(60)
        made.set()
        yield 1

    got = ahead(items())
    assert next(got) == 0
    used.set()
    assert made.wait(60)
    assert list(got) == [1]


def test_an_error_is_raised_in_its_place_and_stopping_early_ends_the_thread() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise ValueError("bad line")

    got = ahead(items())
    assert next(got) == 0
    with pytest.raises(ValueError, match="bad line"):
        next(got)
    before = threading.active_count()
    running = ahead(range(10**9))
    assert next(running) == 0
    running.close()
    assert threading.active_count() <= before
