"""Segment: a batch of passages with their representations as plain arrays, in memory or memory-mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError
from diffretriever.index.exact.vectors import Vectors, check_form
from diffretriever.index.integrity.digests import SIZE, content_digest, metadata_digest, whole_digest
from diffretriever.index.manifest import NOT_DAMAGE, Manifest, sync_folder
from diffretriever.index.points.slot_words import word_rows, words_from_json, words_to_json
from diffretriever.index.store import Metadata, Record, StoredPassage
from diffretriever.representations import IntArray, Provenance, Representations

Array = npt.NDArray[np.generic]
#: Names of the arrays that every segment has; each is a .npy file on disk.
ARRAYS = ("dense", "offsets", "pooled", "indptr", "indices", "weights", "lines", "digests")
_COPY_ROWS = 4096


@dataclass(frozen=True)
class Segment:
    """N passages as arrays that never change, but for `metadata`.

    Attributes:
        passage_ids: [N] ids.
        metadata: [N] metadata; replaced in memory when a passage's metadata are set.
        dense: [T, D] vectors in the form of the storage.
        offsets: [N + 1] where each passage's vectors begin.
        pooled: [N, D] pooled vectors in storage precision.
        sparse: [N, V] term weights.
        lines: [N + 1] where each passage's line begins in `blob`.
        blob: JSON lines holding title, text and slot words.
        digests: [N, 16] `digests.content_digest` of each passage.
    """

    passage_ids: list[str]
    metadata: list[Metadata]
    dense: Vectors
    offsets: IntArray
    pooled: Array
    sparse: sp.csr_matrix
    lines: IntArray
    blob: npt.NDArray[np.uint8]
    digests: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.passage_ids)

    def record(self, row: int) -> Record:
        """Return what hits show of a passage."""
        with self._reading(row):
            title, text, words = self._line(row)
            return Record(Passage(self.passage_ids[row], text, title, self.metadata[row]), word_rows(words))

    def stored(self, row: int, provenance: Provenance) -> StoredPassage:
        """Return a passage with its representations."""
        with self._reading(row):
            return self._stored(row, provenance)

    def _stored(self, row: int, provenance: Provenance) -> StoredPassage:
        title, text, words = self._line(row)
        vectors = self.dense[self.offsets[row] : self.offsets[row + 1]].astype(np.float32)
        representations = Representations(
            dense=vectors,
            offsets=np.array([0, len(vectors)]),
            pooled=self.pooled[row : row + 1].astype(np.float32),
            sparse=self.sparse[row],
            words=words_from_json(words),
            provenance=provenance,
        )
        return StoredPassage(Passage(self.passage_ids[row], text, title, self.metadata[row]), representations)

    def digest(self, row: int) -> bytes:
        """Return the digest of a passage and its present metadata."""
        return whole_digest(self.digests[row].tobytes(), metadata_digest(self.metadata[row]))

    def _line(self, row: int) -> tuple[str, str, str]:
        title, text, words = json.loads(self.blob[self.lines[row] : self.lines[row + 1]].tobytes())
        return title, text, words

    @contextmanager
    def _reading(self, row: int) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise IndexFormatError(
                f"passage {self.passage_ids[row]!r} is damaged ({error}); repair the index with "
                "`diffretriever check DIR --repair`, and add the passage again"
            ) from error


class _Allocate(Protocol):
    def __call__(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array: ...


def new_segment(passages: Sequence[Passage], representations: Representations, manifest: Manifest) -> Segment:
    """Return a segment in memory."""
    lines = [
        json.dumps([p.title, p.text, words_to_json(representations, i)], separators=(",", ":")).encode() + b"\n"
        for i, p in enumerate(passages)
    ]
    return Segment(
        passage_ids=[p.passage_id for p in passages],
        metadata=[p.metadata for p in passages],
        dense=Vectors.of(representations.dense, manifest.storage),
        offsets=representations.offsets,
        pooled=representations.pooled.astype(manifest.storage.precision),
        sparse=sp.csr_matrix(representations.sparse, dtype=np.float32),
        lines=_starts([len(line) for line in lines]),
        blob=np.frombuffer(b"".join(lines), dtype=np.uint8),
        digests=np.frombuffer(
            b"".join(content_digest(p, representations, i) for i, p in enumerate(passages)), dtype=np.uint8
        ).reshape(len(passages), SIZE),
    )


def write_segment(segment: Segment, folder: Path, manifest: Manifest) -> Segment:
    """Write a segment into a new folder and return it memory-mapped; it is on disk when this returns."""
    return merge_segments([(segment, np.arange(len(segment)))], folder, manifest)


def merge_segments(parts: Sequence[tuple[Segment, IntArray]], folder: Path | None, manifest: Manifest) -> Segment:
    """Return one segment of the chosen rows of several, row after row.

    Args:
        parts: segments and the rows to keep of each.
        folder: a new folder to write to, block by block, or None to stay in memory.
        manifest: what the index holds.
    """
    allocate: _Allocate = _in_memory
    if folder is not None:
        folder.mkdir(parents=True)
        allocate = _in_folder(folder)
    lengths = np.concatenate([np.diff(s.offsets)[rows] for s, rows in parts])
    terms = np.concatenate([np.diff(s.sparse.indptr)[rows] for s, rows in parts])
    line_lengths = np.concatenate([np.diff(s.lines)[rows] for s, rows in parts])
    first = parts[0][0]
    count, columns = len(lengths), first.sparse.shape[1]
    # scipy copies both arrays unless they have one integer type, the smaller one where it suffices.
    index_type = np.int32 if max(int(terms.sum()), columns) < 2**31 else np.int64
    dense = _merged_vectors(parts, int(lengths.sum()), allocate)
    pooled = allocate("pooled", (count, first.pooled.shape[1]), first.pooled.dtype)
    indices = allocate("indices", (int(terms.sum()),), index_type)
    weights = allocate("weights", (int(terms.sum()),), np.float32)
    blob = allocate("blob", (int(line_lengths.sum()),), np.uint8)
    digests = allocate("digests", (count, SIZE), np.uint8)
    starts: dict[str, IntArray] = {
        "offsets": _starts(lengths),
        "indptr": _starts(terms).astype(index_type),
        "lines": _starts(line_lengths),
    }
    for name, values in starts.items():
        allocate(name, values.shape, values.dtype)[:] = values
    _fill(pooled, ((s.pooled, np.arange(len(s) + 1), rows) for s, rows in parts))
    _fill(indices, ((s.sparse.indices, s.sparse.indptr, rows) for s, rows in parts))
    _fill(weights, ((s.sparse.data, s.sparse.indptr, rows) for s, rows in parts))
    _fill(digests, ((s.digests, np.arange(len(s) + 1), rows) for s, rows in parts))
    _fill(blob, ((s.blob, s.lines, rows) for s, rows in parts))
    ids = [s.passage_ids[r] for s, rows in parts for r in rows.tolist()]
    metadata = [s.metadata[r] for s, rows in parts for r in rows.tolist()]
    if folder is None:
        sparse = sp.csr_matrix((weights, indices, starts["indptr"]), shape=(count, columns))
        text, marks = cast(npt.NDArray[np.uint8], blob), cast(npt.NDArray[np.uint8], digests)
        return Segment(ids, metadata, dense, starts["offsets"], pooled, sparse, starts["lines"], text, marks)
    for array in (dense.numbers, dense.scales, pooled, indices, weights, blob, digests):
        if array is not None:
            cast(np.memmap, array).flush()
    (folder / "keys.json").write_text(json.dumps({"ids": ids, "metadata": metadata}), encoding="utf-8")
    _synchronise(folder)
    return open_segment(folder, manifest)


def _merged_vectors(parts: Sequence[tuple[Segment, IntArray]], count: int, allocate: _Allocate) -> Vectors:
    first = parts[0][0].dense
    numbers = allocate("dense", (count, first.numbers.shape[1]), first.numbers.dtype)
    _fill(numbers, ((s.dense.numbers, s.offsets, rows) for s, rows in parts))
    if first.scales is None:
        return Vectors(numbers, None, first.dim)
    scales = allocate("scales", (count,), first.scales.dtype)
    _fill(scales, ((cast(Array, s.dense.scales), s.offsets, rows) for s, rows in parts))
    return Vectors(numbers, scales, first.dim)


def open_segment(folder: Path, manifest: Manifest) -> Segment:
    """Return a segment of a folder, memory-mapped.

    Raises:
        IndexFormatError: a file is missing or damaged.
        OSError: the system does not let a file be read now (too many open, no memory, no permission).
        MemoryError: there is no memory for what is read of it.
    """
    try:
        keys = json.loads((folder / "keys.json").read_text(encoding="utf-8"))
        names = (*ARRAYS, "blob", *(("scales",) if manifest.storage.is_coarse else ()))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
        check_form(arrays["dense"], arrays.get("scales"), manifest.storage, manifest.width)
        count = len(keys["ids"])
        if not count == len(keys["metadata"]) == len(arrays["pooled"]) == len(arrays["lines"]) - 1:
            raise ValueError("its files disagree on the number of passages")
        if not len(arrays["digests"]) == count or not len(arrays["offsets"]) == count + 1:
            raise ValueError("its files disagree on the number of passages")
        _check_spans(arrays["offsets"], len(arrays["dense"]), "vectors")
        _check_spans(arrays["lines"], len(arrays["blob"]), "texts")
        _check_spans(arrays["indptr"], len(arrays["indices"]), "terms")
        sparse = sp.csr_matrix(
            (arrays["weights"], arrays["indices"], arrays["indptr"]), shape=(count, manifest.vocabulary_size)
        )
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in NOT_DAMAGE):
            raise  # called damage, it would have a repair give up a segment that is whole
        # Of any kind: numpy parses the head of a file as Python, and fails in as many ways.
        raise IndexFormatError(f"{folder} is damaged ({error}); restore the index from a copy or rebuild it") from error
    return Segment(
        keys["ids"],
        keys["metadata"],
        Vectors(arrays["dense"], arrays.get("scales"), manifest.width),
        np.asarray(arrays["offsets"]),
        arrays["pooled"],
        sparse,
        np.asarray(arrays["lines"]),
        arrays["blob"],
        arrays["digests"],
    )


def file_sums(folder: Path) -> dict[str, str]:
    """Return the BLAKE2 sum of every file of a segment, in hexadecimal digits."""
    sums = {}
    for path in sorted(folder.iterdir()):
        state = blake2b(digest_size=SIZE)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                state.update(block)
        sums[path.name] = state.hexdigest()
    return sums


def _check_spans(starts: Array, end: int, what: str) -> None:
    if starts[0] != 0 or starts[-1] != end or (np.diff(starts) < 0).any():
        raise ValueError(f"its {what} do not lie one after the other")


def _fill(target: Array, parts: Iterable[tuple[Array, npt.NDArray[np.integer], IntArray]]) -> None:
    """Copy the spans of chosen rows of several arrays, one after the other, into `target`."""
    at = 0
    for source, starts, rows in parts:
        for block in range(0, len(rows), _COPY_ROWS):
            chosen = rows[block : block + _COPY_ROWS]
            first, lengths = starts[chosen].astype(np.int64), np.diff(starts)[chosen].astype(np.int64)
            # Position of each copied element: its place within its span plus where that span begins.
            ends = np.cumsum(lengths)
            total = int(ends[-1]) if len(ends) else 0
            picked = np.arange(total) + np.repeat(first - (ends - lengths), lengths)
            target[at : at + total] = source[picked]
            at += total


def _starts(lengths: npt.ArrayLike) -> IntArray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _in_memory(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    return np.empty(shape, dtype)


def _in_folder(folder: Path) -> _Allocate:
    def allocate(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        path = folder / f"{name}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
        if hasattr(os, "posix_fallocate"):
            # Writing to a map of blocks that a full disk does not have would end the process.
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
        return array

    return allocate


def _synchronise(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
    sync_folder(folder.parent)
