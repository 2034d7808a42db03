"""Workers: processes that hold a system each, one per device, and answer what they are asked.

A worker reads its next question and sends its last answer while it computes, so two questions keep it busy. Answers
come back in any order, each to the `Asked` that stands for its question; one that nobody holds any longer goes with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Literal, NamedTuple, NoReturn, cast

from diffretriever import errors
from diffretriever.ahead import ahead
from diffretriever.conventions import System
from diffretriever.encoder import PassageLike
from diffretriever.errors import AttentionError, CheckpointError, InputError, PromptError, WorkerError
from diffretriever.interrupts import uninterrupted
from diffretriever.prompted import PromptedEncoder
from diffretriever.prompts import Prompt
from diffretriever.representations import FloatArray, Provenance, Representations
from diffretriever.systems.opening import SystemOptions, open_system

#: Questions a worker may have: the one it computes, and the next.
_PER_WORKER = 2
#: Errors of a worker that the caller gets as they are.
_PASSED_ON = (InputError, PromptError, CheckpointError, AttentionError)
_END_SECONDS = 5.0
_CLOSED = "the workers are closed; open the system again"
_MEMORY = "If memory ran out, use fewer devices or a smaller --batch-tokens"
#: Words of the errors that PyTorch and CUDA raise where memory is short, in small letters.
_OUT_OF_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "alloc_failed", "memoryerror", "outofmemoryerror")


@dataclass(frozen=True)
class Opening:
    """What every worker opens; see `open_system`.

    Attributes:
        model: name or path.
        system: name of the system.
        options: the other options, but for the device.
        threads: threads that a worker computes with on a CPU.
    """

    model: str
    system: System | None
    options: SystemOptions
    threads: int

    def on(self, device: str) -> PromptedEncoder:
        """Return the system on a device."""
        import torch

        torch.set_num_threads(self.threads)
        options: SystemOptions = {**self.options, "device": device}
        return open_system(self.model, self.system, **options)


@dataclass(frozen=True)
class Facts:
    """What a system is, as far as somebody without it must know."""

    provenance: Provenance
    dim: int
    vocabulary_size: int
    term_idf: FloatArray | None
    batch_tokens: int
    prompt: Prompt


class Question(NamedTuple):
    """What a worker is asked.

    Attributes:
        number: its number, which the answer repeats.
        about: what is asked for.
        texts: queries, passages or one vocabulary id.
        words: predicted words to keep per slot.
    """

    number: int
    about: Literal["queries", "passages", "term"]
    texts: Sequence[str] | Sequence[PassageLike] | int
    words: int = 0


class _Failure(NamedTuple):
    """An error of a worker: the name of its class, and its message."""

    kind: str
    message: str


class _Answer(NamedTuple):
    number: int
    content: Representations | str | _Failure


@dataclass(eq=False)
class Asked:
    """A question that a worker has.

    Attributes:
        device: the device of the worker.
        content: its answer, or the error that came instead; None until then.
    """

    device: str
    content: Representations | str | _Failure | None = None


@dataclass
class _Worker:
    """A process, and what it was asked and has not answered yet: number -> question."""

    device: str
    process: SpawnProcess
    connection: Connection
    asked: dict[int, Asked] = field(default_factory=dict)


class Workers:
    """One worker per device.

    Attributes:
        facts: what all of them hold.

    Args:
        opening: what they open.
        devices: their devices; one may be named more than once.

    Raises:
        CheckpointError: the model cannot be found or loaded.
        InputError: an option is out of range, or the devices lead to different numbers.
        WorkerError: a worker ended.
    """

    def __init__(self, opening: Opening, devices: Sequence[str]) -> None:
        if multiprocessing.current_process().daemon:
            raise WorkerError(
                "this process is one of a multiprocessing.Pool, or another daemon, and may start none itself: name the "
                "devices outside the pool, or open the system in each of its processes with one device"
            )
        self._number = 0
        self._workers: list[_Worker] = []
        try:
            for device in devices:
                with uninterrupted():  # a process that was started is one that `close` knows
                    self._workers.append(_started(opening, device))
            found = [self._facts(worker) for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self.facts = found[0]
        for worker, facts in zip(self._workers, found, strict=True):
            if facts.provenance != self.facts.provenance:
                self.close()
                raise InputError(
                    f"{worker.device} computes in {facts.provenance.dtype} and {devices[0]} in "
                    f"{self.facts.provenance.dtype}: their numbers differ; choose one dtype for both"
                )

    @property
    def room(self) -> int:
        """Number of questions that keep all workers busy."""
        return _PER_WORKER * len(self._workers)

    @property
    def process_ids(self) -> list[int]:
        """Numbers of the processes, in the order of the devices; none once they are closed."""
        return [worker.process.pid or 0 for worker in self._workers]

    def ask(
        self,
        about: Literal["queries", "passages", "term"],
        texts: Sequence[str] | Sequence[PassageLike] | int,
        words: int = 0,
    ) -> Asked:
        """Return a question that the least busy worker now has, waiting until one has room."""
        if not self._workers:
            raise WorkerError(_CLOSED)
        while len((worker := min(self._workers, key=lambda w: len(w.asked))).asked) >= _PER_WORKER:
            self._receive()
        with uninterrupted():  # half a message would spoil all that follow
            self._number += 1
            try:
                worker.connection.send(Question(self._number, about, texts, words))
            except OSError:
                self._ended(worker)
            asked = worker.asked[self._number] = Asked(worker.device)
        return asked

    def answer(self, asked: Asked) -> Representations | str:
        """Return the answer to a question.

        Raises:
            DiffRetrieverError: that of the worker.
            WorkerError: a worker failed otherwise or ended.
        """
        while asked.content is None:
            if not self._workers:  # nothing would ever arrive
                raise WorkerError(_CLOSED)
            self._receive()
        if isinstance(asked.content, _Failure):
            _raise(asked.content, asked.device, _MEMORY)
        return asked.content

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            # A worker ends when its connection does, unless it is busy with a long computation.
            worker.process.join(_END_SECONDS if not worker.asked else 0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []

    def _facts(self, worker: _Worker) -> Facts:
        try:
            found = worker.connection.recv()
        except (EOFError, OSError):
            self._ended(worker, loaded=False)
        if isinstance(found, _Failure):
            _raise(found, worker.device, "If memory ran out, use fewer devices or a narrower --dtype")
        return cast(Facts, found)

    def _receive(self) -> None:
        """Take in the answers that are there, waiting for the first."""
        by_connection: dict[object, _Worker] = {worker.connection: worker for worker in self._workers}
        for connection in wait([worker.connection for worker in self._workers if worker.asked]):
            worker = by_connection[connection]
            # The waiting is over, and what is on its way is read to its end: an interrupt in the middle of a message
            # would leave the rest of it to be taken for the next one.
            with uninterrupted():
                try:
                    number, content = worker.connection.recv()
                except (EOFError, OSError):
                    self._ended(worker)
                worker.asked.pop(number).content = content

    def _ended(self, worker: _Worker, *, loaded: bool = True) -> NoReturn:
        process, device = worker.process, worker.device
        process.join(_END_SECONDS)
        code, number = process.exitcode, process.pid
        self.close()
        if code is None:
            raise WorkerError(
                f"the worker on {device}, process {number}, cannot be talked to although it had not ended; all workers "
                "are ended now. What was written is whole; open the system again"
            )
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if loaded:
            raise WorkerError(
                f"the worker on {device} ended by {how}. What was written is whole, and the same command goes on. "
                f"{_MEMORY}"
            )
        if code < 0:
            raise WorkerError(
                f"the worker on {device} ended by {how} before it had loaded the model. If memory ran out, use fewer "
                "devices"
            )
        raise WorkerError(
            f"the worker on {device} ended by {how} before it had loaded the model; what it wrote above says why. A "
            "worker reads the main script anew: what opens a system on devices must stand below `if __name__ == "
            '"__main__":`, in a script that is a file and not standard input'
        )


def _started(opening: Opening, device: str) -> _Worker:
    # Spawned, not forked: a fork of a process with threads or a GPU in use may hang.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, opening, device), name=f"worker on {device}", daemon=True)
    process.start()
    theirs.close()
    return _Worker(device, process, ours)


def _work(connection: Connection, opening: Opening, device: str) -> None:
    """Open the system and answer questions until the connection ends."""
    # Ctrl-C reaches every process of a terminal; the one that asks decides what becomes of the work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if device.startswith("cuda"):
            import torch

            # Streams and kernels that are not told of a device go to the current one.
            torch.cuda.set_device(device)
        encoder = opening.on(device)
        facts = Facts(
            encoder.provenance,
            encoder.dim,
            encoder.vocabulary_size,
            encoder.term_idf,
            encoder.batch_tokens,
            encoder.prompt,
        )
    except Exception as error:
        connection.send(_failure(error))
        return
    connection.send(facts)
    with ThreadPoolExecutor(1, thread_name_prefix="answers") as answers:
        for question in ahead(_questions(connection)):
            answers.submit(_send, connection, _answer(encoder, question))


def _send(connection: Connection, answer: _Answer) -> None:
    """Send an answer, or the error that keeps it from being made a message, such as want of memory."""
    try:
        try:
            message = ForkingPickler.dumps(answer)
        except BaseException as error:
            message = ForkingPickler.dumps(_Answer(answer.number, _failure(error)))
        connection.send_bytes(message)
    except BaseException:
        # Somebody waits for the answer: the end of the process is what they hear of instead. To end this thread would
        # not do, as the main one goes on to wait for questions.
        os._exit(1)


def _questions(connection: Connection) -> Iterator[Question]:
    while True:
        try:
            question = connection.recv()
        except (EOFError, OSError):
            return
        yield question


def _answer(encoder: PromptedEncoder, question: Question) -> _Answer:
    number, about, texts, words = question
    try:
        if isinstance(texts, int):
            return _Answer(number, encoder.term(texts))
        if about == "queries":
            return _Answer(number, encoder.encode_queries(cast(Sequence[str], texts), words=words))
        # As one chunk of a stream, so that the numbers are those of a single process.
        return _Answer(number, next(encoder.encode_chunks([texts], words=words)))
    except Exception as error:
        return _Answer(number, _failure(error))


def _failure(error: BaseException) -> _Failure:
    return _Failure(type(error).__name__, str(error))


def _raise(failure: _Failure, device: str, on_memory: str) -> NoReturn:
    kind = getattr(errors, failure.kind, None)
    if kind in _PASSED_ON:
        raise kind(failure.message)
    said = f"{failure.kind}: {failure.message}"
    short = any(words in said.lower() for words in _OUT_OF_MEMORY)
    advice = on_memory if short else "Open the system on this device alone to see where that comes from"
    raise WorkerError(f"the worker on {device} failed: {said.rstrip('.')}. {advice}")
