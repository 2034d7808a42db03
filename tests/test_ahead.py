from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

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


ROOT = Path(__file__).parents[1]
#: A source that gives one item and then waits for its standard input.
WAITING = """
import os, sys
from diffretriever.ahead import ahead

def source():
    yield 1
    print("waiting", flush=True)
    os.read(0, 1)
    yield 2
"""
LONG = 60.0


def started(code: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", WAITING + code], cwd=ROOT, text=True, **pipes)


def ended(process: subprocess.Popen[str]) -> int:
    """How a process ended whose standard input says nothing; one that waits for it is killed."""
    try:
        return process.wait(LONG)
    finally:
        process.kill()
        process.communicate()


def test_an_interrupt_and_an_early_end_do_not_wait_for_a_source_that_waits() -> None:
    waiting, release = threading.Event(), threading.Event()
    given: list[int] = []

    def items() -> Iterator[int]:
        yield 0
        waiting.set()
        release.wait(LONG)
        given.append(1)
        yield 1

    def interrupt() -> None:
        if waiting.wait(LONG):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    got = ahead(items())
    with pytest.raises(KeyboardInterrupt):
        for _ in got:
            pass
    got.close()  # type: ignore[attr-defined]
    thread.join()
    assert given == []
    waiting.clear()
    early = ahead(items())
    assert next(early) == 0
    assert waiting.wait(LONG)
    early.close()  # type: ignore[attr-defined]
    assert given == []
    release.set()


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on Unix")
def test_an_interrupted_program_ends_though_its_source_waits() -> None:
    process = started("for item in ahead(source()):\n    pass")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert ended(process) == -signal.SIGINT


def test_a_program_ends_with_a_stream_that_it_has_not_read_to_its_end() -> None:
    assert ended(started("stream = ahead(source())\nassert next(stream) == 1")) == 0


def test_an_item_belongs_to_the_consumer_alone() -> None:
    """While the next item is long in coming, the one before is not kept by the thread."""
    release, gone = threading.Event(), threading.Event()

    class Item:
        def __del__(self) -> None:
            gone.set()

    def items() -> Iterator[Item | None]:
        yield Item()
        yield None
        release.wait(LONG)

    got = ahead(items())
    assert isinstance(next(got), Item)
    assert next(got) is None
    assert gone.wait(LONG)
    release.set()
    assert list(got) == []
