"""ParallelEncoder: one system on several devices, a process each; texts go to whichever is free."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, cast

import torch
from typing_extensions import Self, Unpack

from diffretriever.backbones.hardware import device_named, usable_threads
from diffretriever.conventions import System
from diffretriever.corpus import Passage
from diffretriever.encoder import PassageLike
from diffretriever.errors import InputError
from diffretriever.progress import progress_bar
from diffretriever.representations import FloatArray, Provenance, Representations
from diffretriever.systems.opening import SystemOptions
from diffretriever.systems.workers import Asked, Opening, Workers

About = Literal["queries", "passages"]
#: Tokens of a forward pass for which a piece holds one more text, and the least texts of a piece.
_PIECE_TOKENS, _PIECE = 64, 64


class ParallelEncoder:
    """An `Encoder` whose texts are encoded by one process per device.

    Every chunk of `encode_chunks` is encoded as in a single process, so both give the same numbers, in the same order.
    As each process is started anew, a script that makes one needs `if __name__ == "__main__":`.

    Attributes:
        device: the first device, for what is computed in this process.
        batch_tokens: tokens per forward pass of a process.
        prompt: the template around the texts.
    """

    def __init__(
        self,
        name_or_path: str | Path = "mini",
        system: System | None = None,
        *,
        devices: Sequence[str],
        **options: Unpack[SystemOptions],
    ) -> None:
        """Start the processes and return when each has loaded the model.

        Args:
            name_or_path: what `open_system` takes.
            system: likewise.
            devices: such as ["cuda:0", "cuda:1"]; ["cpu", "cpu"] makes two processes that share the cores.
            options: those of `open_system` but for the device.

        Raises:
            CheckpointError: the model cannot be found or loaded.
            InputError: a device is not here, or an option is out of range.
            WorkerError: a process ended.
        """
        if not devices:
            raise InputError("devices is empty; name at least one, such as 'cuda:0'")
        if options.get("device") or options.get("device_map"):
            raise InputError("device and device_map go with one process; give either these or devices")
        placed = [device_named(device) for device in devices]
        on_cpu = sum(device.type == "cpu" for device in placed)
        threads = max(1, usable_threads() // max(1, on_cpu))
        self.device = placed[0]
        self._workers = Workers(Opening(str(name_or_path), system, options, threads), devices)
        facts = self._workers.facts
        self.batch_tokens, self.prompt = facts.batch_tokens, facts.prompt

    @property
    def provenance(self) -> Provenance:
        """How this encoder makes its numbers."""
        return self._workers.facts.provenance

    @property
    def dim(self) -> int:
        """Width D of the dense vectors."""
        return self._workers.facts.dim

    @property
    def vocabulary_size(self) -> int:
        """Number V of columns of the sparse representations; 0 for a system without them."""
        return self._workers.facts.vocabulary_size

    @property
    def term_idf(self) -> FloatArray | None:
        """[V] how rare the model takes each term to be; None where that is not known."""
        return self._workers.facts.term_idf

    @property
    def process_ids(self) -> list[int]:
        """Numbers of the processes, in the order of the devices; none once they are closed."""
        return self._workers.process_ids

    def term(self, term_id: int) -> str:
        """Return the readable text of a vocabulary id."""
        return str(self._workers.answer(self._workers.ask("term", term_id)))

    def encode_queries(
        self, queries: str | Sequence[str], *, words: int = 0, progress: bool = False
    ) -> Representations:
        """Return the representations of N queries, row i for query i; see `TextEncoder.encode_queries`."""
        texts = [queries] if isinstance(queries, str) else list(queries)
        return self._together(texts, "queries", words, progress)

    def encode_passages(
        self, passages: PassageLike | Sequence[PassageLike], *, words: int = 0, progress: bool = False
    ) -> Representations:
        """Return the representations of N passages, row i for passage i; see `TextEncoder.encode_passages`.

        They are cut into pieces for the processes. A text's numbers differ in their last digits with the texts that
        it is encoded with.
        """
        texts = [passages] if isinstance(passages, str | Passage | Mapping) else list(passages)
        return self._together(texts, "passages", words, progress)

    def encode_chunks(self, chunks: Iterable[Sequence[PassageLike]], *, words: int = 0) -> Iterator[Representations]:
        """Yield the representations of each chunk of passages, in order.

        Args:
            chunks: passages as `encode_passages` takes them; read a few chunks ahead, two per process.
            words: how many predicted words to keep per slot.
        """
        yield from self._in_order((list(chunk) for chunk in chunks), "passages", words)

    def close(self) -> None:
        """End the processes."""
        self._workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _together(self, texts: Sequence[PassageLike], about: About, words: int, progress: bool) -> Representations:
        size = max(_PIECE, self.batch_tokens // _PIECE_TOKENS)
        pieces = [list(texts[start : start + size]) for start in range(0, len(texts), size)]
        done: list[Representations] = []
        with progress_bar(f"encoding {about}", len(texts), enabled=progress) as advance:
            # Without texts there is still one answer, of no rows.
            for part in self._in_order(pieces or [[]], about, words):
                done.append(part)
                advance(len(part))
        return Representations.concatenate(done) if len(done) > 1 else done[0]

    def _in_order(self, pieces: Iterable[list[PassageLike]], about: About, words: int) -> Iterator[Representations]:
        """Yield what the pieces give, in order, while the workers are busy with later ones."""
        asked: deque[Asked] = deque()
        for piece in pieces:
            asked.append(self._workers.ask(about, piece, words))
            if len(asked) == self._workers.room:
                yield self._next(asked)
        while asked:
            yield self._next(asked)

    def _next(self, asked: deque[Asked]) -> Representations:
        return cast(Representations, self._workers.answer(asked.popleft()))


def devices_named(names: str) -> list[str]:
    """Return the devices of a list with commas; "all" stands for every CUDA GPU.

    Raises:
        InputError: one of them is no device of this machine, or there is no GPU.
    """
    if names.strip() == "all":
        if not torch.cuda.device_count():
            raise InputError("no CUDA GPU is here; name the devices, such as cpu,cpu")
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    found = [name.strip() for name in names.split(",") if name.strip()]
    if not found:
        raise InputError(f"devices is {names!r}; write such as cuda:0,cuda:1")
    for name in found:
        device_named(name)
    return found
