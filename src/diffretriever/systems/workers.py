"""Workers: processes that hold a system each, one per device, and answer what they are asked.

A worker reads its next question and sends its last answer while it computes, so two questions keep it busy. Answers
come back in any order and are kept until somebody wants them.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Literal, NamedTuple, NoReturn, cast

from diffretriever import errors
from diffretriever.ahead import ahead
from diffretriever.conventions import System
from diffretriever.encoder import PassageLike
from diffretriever.errors import AttentionError, CheckpointError, InputError, PromptError, WorkerError
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


@dataclass
class _Worker:
    """A process, and what it was asked and has not answered yet."""

    device: str
    process: SpawnProcess
    connection: Connection
    asked: set[int] = field(default_factory=set)


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
        # A failure is kept as well: what was asked for before it is whole and comes first.
        self._done: dict[int, tuple[str, Representations | str | _Failure]] = {}
        self._unwanted: set[int] = set()
        self._number = 0
        self._workers: list[_Worker] = []
        try:
            self._workers = [_started(opening, device) for device in devices]
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
    ) -> int:
        """Return the number of a question that the least busy worker now has, waiting until one has room."""
        if not self._workers:
            raise WorkerError(_CLOSED)
        while len((worker := min(self._workers, key=lambda w: len(w.asked))).asked) >= _PER_WORKER:
            self._receive()
        self._number += 1
        try:
            worker.connection.send(Question(self._number, about, texts, words))
        except OSError:
            self._ended(worker)
        worker.asked.add(self._number)
        return self._number

    def answer(self, number: int) -> Representations | str:
        """Return the answer to a question, once.

        Raises:
            DiffRetrieverError: that of the worker.
            WorkerError: a worker failed otherwise or ended.
        """
        while number not in self._done:
            if not self._workers:  # nothing would ever arrive
                raise WorkerError(_CLOSED)
            self._receive()
        device, content = self._done.pop(number)
        if isinstance(content, _Failure):
            _raise(content, device)
        return content

    def forget(self, numbers: Sequence[int]) -> None:
        """Drop the answers to questions, those included that are still to come."""
        for number in numbers:
            if self._done.pop(number, None) is None:
                self._unwanted.add(number)

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
            self._ended(worker)
        if isinstance(found, _Failure):
            _raise(found, worker.device)
        return cast(Facts, found)

    def _receive(self) -> None:
        """Take in the answers that are there, waiting for the first."""
        by_connection: dict[object, _Worker] = {worker.connection: worker for worker in self._workers}
        for connection in wait([worker.connection for worker in self._workers if worker.asked]):
            worker = by_connection[connection]
            try:
                number, content = worker.connection.recv()
            except (EOFError, OSError):
                self._ended(worker)
            worker.asked.discard(number)
            if number in self._unwanted:
                self._unwanted.discard(number)
            else:
                self._done[number] = worker.device, content

    def _ended(self, worker: _Worker) -> NoReturn:
        worker.process.join(_END_SECONDS)
        code = worker.process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        device = worker.device
        self.close()
        raise WorkerError(
            f"the worker on {device} ended by {how}. What was written is whole, and the same command goes on. If "
            "memory ran out, use fewer devices or a smaller --batch-tokens"
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
        encoder = opening.on(device)
    except Exception as error:
        connection.send(_Failure(type(error).__name__, str(error)))
        return
    connection.send(
        Facts(
            encoder.provenance,
            encoder.dim,
            encoder.vocabulary_size,
            encoder.term_idf,
            encoder.batch_tokens,
            encoder.prompt,
        )
    )
    with ThreadPoolExecutor(1, thread_name_prefix="answers") as answers:
        for question in ahead(_questions(connection)):
            answers.submit(connection.send, _answer(encoder, question))


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
        return _Answer(number, _Failure(type(error).__name__, str(error)))


def _raise(failure: _Failure, device: str) -> NoReturn:
    kind = getattr(errors, failure.kind, None)
    if kind in _PASSED_ON:
        raise kind(failure.message)
    raise WorkerError(
        f"the worker on {device} failed: {failure.kind}: {failure.message}. If memory ran out, use a smaller "
        "--batch-tokens"
    )
