"""Workers that fail, and Ctrl-C while one is waited for: real processes throughout."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from diffretriever.errors import WorkerError
from diffretriever.prompted import PromptedEncoder
from diffretriever.representations import Representations
from diffretriever.systems.parallel import ParallelEncoder
from diffretriever.systems.workers import Opening, Question, Workers, _work
from tests.conftest import CHECKPOINTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are stopped and pipes looked at as on Linux")

MODEL = CHECKPOINTS / "tiny-dream"
SMALL = {"dtype": "float32", "query_slots": 2, "passage_slots": 4}
LONG = 120.0


@pytest.fixture(scope="module")
def encoder() -> Iterator[ParallelEncoder]:
    with ParallelEncoder(MODEL, devices=["cpu"], **SMALL) as made:
        yield made


@dataclass(frozen=True)
class Faulty(Opening):
    """Opens a system that answers queries by what cannot be sent, or whose way to the caller is cut meanwhile."""

    way: Connection | None = None

    def on(self, device: str) -> PromptedEncoder:
        encoder = super().on(device)

        def answer(queries: object, *, words: int = 0, progress: bool = False) -> object:
            if self.way is not None:
                self.way.close()
            return (None for _ in ())

        encoder.encode_queries = answer  # type: ignore[method-assign, assignment]
        return encoder


def in_time(work: Callable[[], object]) -> list[object]:
    """What a call returned or raised; the list is empty if it waits for ever."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG)
    return found


def test_an_answer_that_cannot_be_sent_is_an_error_and_the_worker_goes_on() -> None:
    workers = Workers(Faulty(str(MODEL), None, SMALL, 1), ["cpu"])  # type: ignore[arg-type]
    try:
        (said,) = in_time(lambda: workers.answer(workers.ask("queries", ["x"])))
        assert isinstance(said, WorkerError)
        assert "cannot pickle 'generator' object" in str(said)
        assert "memory" not in str(said)
        (found,) = in_time(lambda: workers.answer(workers.ask("passages", ["x", "y"])))
        assert isinstance(found, Representations)
        assert len(found) == 2
    finally:
        workers.close()


def test_a_worker_ends_when_nothing_can_be_sent() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    opening = Faulty(str(MODEL), None, SMALL, 1, theirs)  # type: ignore[arg-type]
    process = context.Process(target=_work, args=(theirs, opening, "cpu"), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(LONG)
        ours.recv()
        ours.send(Question(1, "queries", ["x"]))
        process.join(LONG)
        assert process.exitcode == 1
    finally:
        process.kill()


def waiting_bytes(connection: Connection) -> int:
    """How much of what was sent is not read yet."""
    return int(struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.FIONREAD, b"\0" * 4))[0])


def writable(connection: Connection) -> bool:
    return bool(select.select([], [connection], [], 0)[1])


def until(reached: Callable[[], bool]) -> bool:
    end = time.monotonic() + LONG
    while not reached() and time.monotonic() < end:
        time.sleep(0.001)
    return reached()


def interrupted(encoder: ParallelEncoder, when: Callable[[], bool], work: Callable[[], object]) -> bool:
    """Stop the worker, do something that waits for it, press Ctrl-C as soon as `when`, let the worker go on."""
    process = encoder.process_ids[0]
    reached: list[bool] = []

    def strike() -> None:
        reached.append(until(when))
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(process, signal.SIGCONT)

    thread = threading.Thread(target=strike)

    def wait() -> None:
        thread.start()
        work()
        thread.join()

    os.kill(process, signal.SIGSTOP)
    with pytest.raises(KeyboardInterrupt):
        wait()
    thread.join()
    return reached == [True]


def assert_healthy(encoder: ParallelEncoder, processes: list[int], before: Representations) -> None:
    assert encoder.process_ids == processes
    np.testing.assert_array_equal(encoder.encode_queries(["a query"]).dense, before.dense)


def test_an_interrupt_in_the_middle_of_an_answer_leaves_the_workers_as_they_were(encoder: ParallelEncoder) -> None:
    processes, before = encoder.process_ids, encoder.encode_queries(["a query"])
    workers = encoder._workers
    way = workers._workers[0].connection
    # An answer too large for the pipe, so that the worker has sent a part of it when it is stopped.
    asked = workers.ask("passages", [f"text {i} of planet river" for i in range(1500)])
    assert until(lambda: waiting_bytes(way) > 0)
    assert interrupted(encoder, lambda: waiting_bytes(way) == 0, lambda: workers.answer(asked))
    assert_healthy(encoder, processes, before)


def test_an_interrupt_in_the_middle_of_a_question_leaves_the_workers_as_they_were(encoder: ParallelEncoder) -> None:
    processes, before = encoder.process_ids, encoder.encode_queries(["a query"])
    (worker,) = encoder._workers._workers
    # What the pipe can hold of the question is in it: nothing more fits.
    long = ["planet " * 400_000]
    assert interrupted(encoder, lambda: not writable(worker.connection), lambda: encoder.encode_queries(long))
    assert_healthy(encoder, processes, before)


def test_answers_that_nobody_wants_any_longer_are_dropped(encoder: ParallelEncoder) -> None:
    processes, before = encoder.process_ids, encoder.encode_queries(["a query"])
    (worker,) = encoder._workers._workers

    def held() -> int:
        gc.collect()
        return sum(type(thing) is Representations for thing in gc.get_objects())

    first = held()
    for _ in range(3):
        assert interrupted(encoder, lambda: len(worker.asked) == 2, lambda: encoder.encode_passages(["a text"] * 200))
        assert_healthy(encoder, processes, before)
    assert held() == first


def test_a_connection_that_ends_before_its_process_is_said_so(
    encoder: ParallelEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test that uses `encoder`: it ends its worker."""
    monkeypatch.setattr("diffretriever.systems.workers._END_SECONDS", 0.01)
    encoder._workers._workers[0].connection.close()
    with pytest.raises(WorkerError, match=r"process \d+, cannot be talked to although it had not ended"):
        encoder.encode_queries(["x"])
    assert encoder.process_ids == []


UNGUARDED = f"""
from diffretriever.systems.parallel import ParallelEncoder
ParallelEncoder({str(MODEL)!r}, devices=["cpu"])
"""


@pytest.mark.parametrize("way", ["file", "standard input"])
def test_a_script_without_a_guard_is_told_of_it(tmp_path: Path, way: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED, encoding="utf-8")
    with script.open(encoding="utf-8") as text:
        done = subprocess.run(
            [sys.executable, "-"] if way == "standard input" else [sys.executable, str(script)],
            stdin=text, capture_output=True, text=True, timeout=2 * LONG, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "ended by exit code 1 before it had loaded the model" in last
    assert 'if __name__ == "__main__":' in last
    assert "memory" not in last


def _in_a_pool(model: str) -> str:
    try:
        ParallelEncoder(model, devices=["cpu"]).close()
    except WorkerError as error:
        return str(error)
    return "opened"


def test_a_process_of_a_pool_is_told_that_it_may_start_none() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        said = pool.apply_async(_in_a_pool, [str(MODEL)]).get(LONG)
    assert "multiprocessing.Pool" in said


@pytest.mark.parametrize(
    ("error", "advice"),
    [("Torch not compiled with CUDA enabled", "on this device alone"), ("CUDA out of memory. Tried", "fewer devices")],
)
def test_advice_about_memory_is_given_where_that_is_the_cause(error: str, advice: str) -> None:
    with pytest.raises(WorkerError) as found:
        Workers(Broken(str(MODEL), None, SMALL, 1, error), ["cpu"])  # type: ignore[arg-type]
    assert error in str(found.value)
    assert advice in str(found.value)
    assert ("memory" in str(found.value)) == ("memory" in error)


@dataclass(frozen=True)
class Broken(Opening):
    """Opens nothing, as where a device cannot be used."""

    error: str = ""

    def on(self, device: str) -> PromptedEncoder:
        raise RuntimeError(self.error)
