"""Encodings: a corpus encoded once, kept in a folder shard by shard, and found again by what made it.

The folder's name is a digest of the encoder's provenance (but for the name of the model) and of the corpus, so an
evaluation finds the encodings of another that asked for the same numbers, and never others. A shard gets its name
when it is complete: after an interruption, a kill included, the shards that are there are whole and are not encoded
again. Every shard is encoded by itself, so the numbers do not depend on interruptions.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

from diffretriever.corpus import Passage
from diffretriever.encoder import Encoder
from diffretriever.errors import CorpusError, InputError
from diffretriever.evaluation.facts import CorpusFacts
from diffretriever.evaluation.records import read_record, write_record
from diffretriever.folder_lock import FolderTakenError, sole_writer
from diffretriever.progress import progress_bar
from diffretriever.representations import Provenance, Representations

_ABOUT_FILE = "encodings.json"
#: 2: the pooled vectors of the default protocol have length 1.
_FORMAT = 2
#: Passages of a shard, at least and at most, and how many shards a corpus is cut into in between.
_SMALLEST, _LARGEST, _SHARDS = 256, 8192, 1000


@dataclass(frozen=True)
class About:
    """What a folder of encodings holds.

    Attributes:
        format: version of the folder's layout.
        provenance: how the numbers are made.
        corpus_hash: digest of the passages.
        passages: how many there are.
        shard_size: passages of every shard but the last.
    """

    format: int
    provenance: Provenance
    corpus_hash: str
    passages: int
    shard_size: int


@dataclass(frozen=True)
class Filling:
    """What completing the encodings took.

    Attributes:
        encoded: passages encoded now.
        reused: passages that were there.
        seconds: time spent on encoding.
    """

    encoded: int
    reused: int
    seconds: float


class Encodings:
    """The encodings of one corpus by one encoder, complete or not.

    Args:
        folder: where the shards are.
        about: what they are.
    """

    def __init__(self, folder: Path, about: About) -> None:
        self.folder = folder
        self.about = about

    @staticmethod
    def open(root: Path, encoder: Encoder, corpus: CorpusFacts, *, shard_size: int | None = None) -> Encodings:
        """Return the encodings of a corpus below a folder; new ones hold nothing yet.

        Args:
            root: folder of the encodings of any number of corpora and encoders.
            encoder: what encodes the passages.
            corpus: facts of the corpus.
            shard_size: passages of a shard of new encodings; by default a thousandth of the corpus, 256 to 8,192.

        Raises:
            CorpusError: what is there is damaged.
        """
        folder = root / _key(encoder.provenance, corpus.digest)
        if (folder / _ABOUT_FILE).is_file():
            return Encodings(folder, read_record(About, folder / _ABOUT_FILE))
        size = shard_size or min(_LARGEST, max(_SMALLEST, len(corpus) // _SHARDS))
        about = About(_FORMAT, encoder.provenance, corpus.digest, len(corpus), size)
        folder.mkdir(parents=True, exist_ok=True)
        write_record(about, folder / _ABOUT_FILE)
        return Encodings(folder, about)

    def missing(self) -> list[slice]:
        """Return the rows of the corpus of each shard that is not there yet."""
        return [rows for number, rows in enumerate(self._spans()) if not self._path(number).is_dir()]

    def bytes(self) -> int:
        """Return the size on disk of what is there."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def fill(self, encoder: Encoder, passages: Iterable[Passage], *, progress: bool = False) -> Filling:
        """Encode the passages of every missing shard.

        Args:
            encoder: the encoder.
            passages: the corpus, in order.
            progress: whether to show a progress bar on a terminal.

        Raises:
            InputError: there are fewer or more passages than when the corpus was surveyed, or another process is
                encoding them.
        """
        with self._alone() if self.missing() else nullcontext():
            return self._fill(encoder, passages, progress=progress)

    def _fill(self, encoder: Encoder, passages: Iterable[Passage], *, progress: bool) -> Filling:
        started = time.perf_counter()
        encoded = 0
        stream = iter(passages)
        with progress_bar("encoding passages", self.about.passages, enabled=progress) as advance:
            for number, rows in enumerate(self._spans()):
                chunk = list(islice(stream, rows.stop - rows.start))
                if len(chunk) != rows.stop - rows.start:
                    raise InputError("the corpus changed while it was read; run the command again")
                if not self._path(number).is_dir():
                    self._write(number, encoder.encode_passages(chunk))
                    encoded += len(chunk)
                advance(len(chunk))
        return Filling(encoded, self.about.passages - encoded, time.perf_counter() - started if encoded else 0.0)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from writing the same shards."""
        with ExitStack() as held:
            try:
                held.enter_context(sole_writer(self.folder))
            except FolderTakenError as error:
                raise InputError(
                    f"{self.folder}: {error.owner} is encoding this collection; run the command again when it is done"
                ) from error
            yield

    def shards(self) -> Iterator[tuple[slice, Representations]]:
        """Yield the rows of each shard and its representations.

        Raises:
            CorpusError: a shard is missing or damaged; names its folder.
        """
        for number, rows in enumerate(self._spans()):
            yield rows, self._shard(number, rows)

    def sample(self, passages: int) -> Iterator[Representations]:
        """Yield whole shards from all over the corpus, of so many passages or a few more; errors as in `shards`."""
        spans = list(enumerate(self._spans()))
        step = max(1, len(spans) // -(-passages // self.about.shard_size))
        yield from (self._shard(number, rows) for number, rows in spans[::step])

    def _shard(self, number: int, rows: slice) -> Representations:
        path = self._path(number)
        try:
            shard = Representations.load(path)
        except InputError as error:
            raise CorpusError(f"{path}: cannot be read ({error}); delete this folder and run again") from error
        if len(shard) != rows.stop - rows.start:
            raise CorpusError(f"{path}: holds {len(shard)} passages; delete this folder and run again")
        return shard

    def _spans(self) -> list[slice]:
        size, count = self.about.shard_size, self.about.passages
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05}"

    def _write(self, number: int, representations: Representations) -> None:
        path = self._path(number)
        unfinished = path.with_name("." + path.name)
        shutil.rmtree(unfinished, ignore_errors=True)
        representations.save(unfinished)
        unfinished.rename(path)


def _key(provenance: Provenance, corpus_hash: str) -> str:
    """Return the name of a folder: a digest of everything that decides its numbers."""
    decisive = {name: value for name, value in asdict(provenance).items() if name != "model"}
    text = json.dumps([_FORMAT, decisive, corpus_hash], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:24]
