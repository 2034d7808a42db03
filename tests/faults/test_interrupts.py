"""Ctrl-C, and errors of the disk, at every point where an exact index waits for the disk."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import pytest

from diffretriever.corpus import Passage
from diffretriever.index import Index
from diffretriever.index.transfer import copy_index
from diffretriever.interrupts import uninterrupted
from tests.faults.inspection import held_passages, make_encoder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals are sent and handles named as on Linux")

#: More than any of the works below waits for the disk.
MOST = 200


def passages(first: int, count: int, text: str = "w1") -> list[Passage]:
    return [Passage(f"p{i}", f"{text} w{i % 30}", metadata={"i": i}) for i in range(first, first + count)]


#: What is done, and the sizes of the batches that are there before.
WORKS: dict[str, tuple[Callable[[Index], object], list[int]]] = {
    "add": (lambda index: index.add(passages(20, 5), words=1), [20]),
    "replace": (lambda index: index.add(passages(15, 10, "w2"), words=1), [20]),
    "delete": (lambda index: index.delete(["p3", "p4"]), [20]),
    "set metadata": (lambda index: index.set_metadata({"p3": {"new": 1}, "p4": {}}), [20]),
    "merge": (lambda index: index.add(passages(45, 5), words=1), [40, 5]),
    "merge all": (lambda index: index.delete([f"p{i}" for i in range(12)]), [20, 5]),
}


@pytest.fixture(autouse=True)
def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge after few writes, and do not wait for a disk whose power is not cut here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr("diffretriever.index.exact.store.MAX_SEGMENTS", 2)
    monkeypatch.setattr("diffretriever.index.exact.store._DEAD_LEAST", 12)


def make(folder: Path, batches: list[int]) -> None:
    """Make an index; one like it is made once a test and then copied."""
    whole = folder.parent / "-".join(["made", *map(str, batches)])
    if not whole.exists():
        with Index.create(whole, make_encoder(), backend="exact") as index:
            for i, size in enumerate(batches):
                index.add(passages(sum(batches[:i]), size), words=1)
    shutil.copytree(whole, folder)


def at_fsync(monkeypatch: pytest.MonkeyPatch, number: int, strike: Callable[[int], object]) -> Callable[[], bool]:
    """Strike once, while the number-th fsync runs; returns a function that says whether it came to that."""
    calls = 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            strike(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return lambda: calls >= number


def ctrl_c(handle: int) -> None:
    # Sent while a system call runs, it comes to Python's handler just when that returns.
    os.kill(os.getpid(), signal.SIGINT)


def fail(handle: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def expect_whole(folder: Path, allowed: list[dict[str, Passage]], now: dict[str, Passage]) -> None:
    """Open an index that must hold just `now`, which must be one of the allowed states."""
    assert now in allowed
    with Index.open(folder, make_encoder()) as index:
        held, wrong = held_passages(index)
        assert wrong == []
        assert held == now
        assert index.check().problems == ()


def states(tmp_path: Path, work: str) -> list[dict[str, Passage]]:
    """Return what an index holds before and after the work."""
    do, batches = WORKS[work]
    make(tmp_path / "whole", batches)
    with Index.open(tmp_path / "whole", make_encoder()) as index:
        before = held_passages(index)[0]
        do(index)
        return [before, held_passages(index)[0]]


@pytest.mark.parametrize("strike", [ctrl_c, fail])
@pytest.mark.parametrize("work", WORKS)
def test_what_strikes_during_a_write_leaves_it_done_or_not(tmp_path, work, strike):
    do, batches = WORKS[work]
    allowed = states(tmp_path, work)
    for number in range(1, MOST):
        folder = tmp_path / str(number)
        make(folder, batches)
        with Index.open(folder, make_encoder()) as index, pytest.MonkeyPatch.context() as patch:
            struck = at_fsync(patch, number, strike)
            try:
                do(index)
            except (KeyboardInterrupt, OSError):
                assert struck()
            patch.undo()
            now = held_passages(index)[0]
        expect_whole(folder, allowed, now)
        if not struck():
            break
    assert 1 < number < MOST - 1


@pytest.mark.parametrize("strike", [ctrl_c, fail])
@pytest.mark.parametrize("work", ["add", "merge", "merge all"])
def test_an_index_that_was_struck_goes_on(tmp_path, work, strike):
    do, batches = WORKS[work]
    for number in range(1, MOST):
        folder = tmp_path / str(number)
        make(folder, batches)
        with Index.open(folder, make_encoder()) as index:
            with pytest.MonkeyPatch.context() as patch:
                struck = at_fsync(patch, number, strike)
                try:
                    do(index)
                except (KeyboardInterrupt, OSError):
                    assert struck()
            index.set_metadata({"p19": {"later": 1}} if "p19" in index else {})
            index.add([Passage("new", "w5")], words=1)
            # As after very many changes; a segment that is left on disk must not be taken for a lost one then.
            index._store._rewrite_log(index._store._parts, [])
            now = held_passages(index)[0]
        expect_whole(folder, [now], now)
        if not struck():
            break


def test_a_copy_that_is_interrupted_is_completed_by_doing_it_again(tmp_path):
    make(tmp_path / "source", [20, 20])
    for number in range(1, MOST):
        target = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            struck = at_fsync(patch, number, ctrl_c)
            try:
                copy_index(tmp_path / "source", target, backend="exact")
            except KeyboardInterrupt:
                assert struck()
        assert copy_index(tmp_path / "source", target, backend="exact").complete
        if not struck():
            break
    assert 1 < number < MOST - 1


def fail_on_log(handle: int) -> None:
    if os.readlink(f"/proc/self/fd/{handle}").endswith("log.jsonl"):
        fail(handle)


@pytest.mark.parametrize("work", ["add", "delete", "set metadata"])
def test_a_line_that_cannot_be_taken_back_is_before_the_next_one_or_at_the_end(tmp_path, work):
    """The disk fails while a line of the log is written, and again when that is to be undone."""
    do, batches = WORKS[work]
    before, after = states(tmp_path, work)
    for name, later in (("closed", False), ("written", True)):
        folder = tmp_path / name
        make(folder, batches)
        index = Index.open(folder, make_encoder())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "ftruncate", lambda handle, size: fail(handle))
            patch.setattr(os, "fsync", fail_on_log)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                do(index)
            assert held_passages(index)[0] == before
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                index.add([Passage("too early", "w5")], words=1)
            if not later:
                with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                    index.close()
        if later:
            index.add([Passage("new", "w5")], words=1)
            index.delete(["new"])
            assert held_passages(index)[0] == before
        index.close()
        with Index.open(folder, make_encoder()) as again:
            held, wrong = held_passages(again)
            assert wrong == []
            assert held == before or (held == after and not later)
            assert again.check().problems == ()


def test_blocks_within_one_another_wait_for_the_outermost():
    done = []

    def write():
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_is_not_lost_with_an_error():
    def write() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            raise OSError("no space left on device")

    with pytest.raises(KeyboardInterrupt):
        write()


@pytest.mark.parametrize("handler", ["own", "ignore"])
def test_a_handler_of_the_program_is_kept_to(handler):
    heard = []
    own = signal.SIG_IGN if handler == "ignore" else lambda number, frame: heard.append(number)
    before = signal.signal(signal.SIGINT, own)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert heard == []
        assert heard == ([] if handler == "ignore" else [signal.SIGINT])
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_event_loop_hears_one_interrupt_once():
    heard = []

    async def write() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, heard.append, "Ctrl-C")
        with uninterrupted():
            ctrl_c(0)
        # The loop comes to what is said to it from elsewhere after a turn; two are given.
        for _ in range(2):
            await asyncio.to_thread(int)

    asyncio.run(write())
    assert heard == ["Ctrl-C"]


def test_what_a_program_does_not_handle_ends_it():
    program = """
        import signal
        from diffretriever.interrupts import uninterrupted
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            print("done", flush=True)
        print("not reached")
    """
    done = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "done\n", "")


def test_an_index_can_be_written_from_another_thread(tmp_path):
    make(tmp_path / "index", [20])
    errors = []

    def write() -> None:
        try:
            with closing(Index.open(tmp_path / "index", make_encoder())) as index:
                index.add(passages(20, 5), words=1)
                index.delete(["p3"])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert errors == []
    with Index.open(tmp_path / "index") as index:
        assert set(index) == {f"p{i}" for i in range(25)} - {"p3"}
