"""Estimating: what an index will need of disk, memory and time, from a sample of its input."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffretriever.cli.console import message, show, size_text, time_text
from diffretriever.cli.filling import Survey, work_of

if TYPE_CHECKING:
    from diffretriever.corpus import Passage
    from diffretriever.encoder import Encoder
    from diffretriever.index import Storage
    from diffretriever.index.manifest import Backend
    from diffretriever.representations import Representations

#: Passages encoded for an estimate, after a few that only warm the machine up.
_SAMPLE, _SMALL_SAMPLE, _WARM_UP = 128, 32, 8
#: What the engine writes beside the data, measured: files reserved in advance, and its write-ahead log, which keeps the
#: last writes, in single precision, up to a limit.
_OVERHEAD, _LOG_BYTES = 1.1, 48_000_000
#: Bytes of a passage's links in the graph of pooled vectors and in the id tables.
_LINKS = 250
#: Bytes of a passage beside its vectors, terms and texts: its id, digests, metadata and where its parts begin.
_EDGE_KEYS, _EXACT_KEYS = 200, 70


@dataclass(frozen=True)
class Estimate:
    """What an index of one storage will need.

    Attributes:
        backend: its engine.
        storage: in what form vectors are kept.
        disk_bytes: its size on disk.
        memory_bytes: memory that searching it at full speed takes, page cache included.
    """

    backend: Backend
    storage: Storage
    disk_bytes: float
    memory_bytes: float


def estimate_index(encoder: Encoder, passages: Iterable[Passage], found: Survey, *, words: int) -> None:
    """Show what an index of all passages would need, for every storage.

    Args:
        encoder: what encodes the passages.
        passages: the corpus.
        found: what a first reading found in it.
        words: predicted words kept per slot.
    """
    from rich.table import Table

    sample = _spread(passages, found.passages, _SAMPLE)
    encoded, per_work = _timed(encoder, sample, words=words)
    table = Table("backend", "storage", "disk", "memory", "per passage", title_justify="left")
    for row in estimates(sample, encoded, found.passages):
        each = size_text(row.disk_bytes / max(1, found.passages))
        table.add_row(row.backend, str(row.storage), size_text(row.disk_bytes), size_text(row.memory_bytes), each)
    show(table)
    message(
        f"{found.passages:,} passages, about {time_text(per_work * found.work)} to encode; from a sample of "
        f"{len(sample):,}, {np.diff(encoded.offsets).mean():.1f} vectors of {encoded.dim} dimensions each. pca and "
        "drop are examples; nothing was written"
    )


def estimates(sample: Sequence[Passage], encoded: Representations, count: int) -> list[Estimate]:
    """Return the estimates of an index of `count` passages such as those of a sample, one per way to keep them."""
    texts = sum(len(p.text.encode()) + len(p.title.encode()) + len(p.passage_id) for p in sample) / len(sample)
    if encoded.words is not None:
        texts += 30 * encoded.words.ids.size / len(sample)
    from diffretriever.index.storage.compression import drop_redundant

    rows = []
    for backend, storage in _choices(encoded.dim):
        kept = encoded if storage.drop is None else drop_redundant(encoded, storage.drop)
        slots, terms = len(kept.dense) / len(sample), encoded.sparse.nnz / len(sample)
        pooled = (4 if storage.precision == "float32" else 2) * storage.width(encoded.dim)
        if backend == "exact":
            disk = slots * storage.vector_bytes(encoded.dim) + pooled + 8 * terms + texts + _EXACT_KEYS
            # The inverted index is made when first asked for, beside the terms.
            rows.append(Estimate(backend, storage, count * disk, count * (disk + 8 * terms - texts)))
            continue
        # One more vector per passage: the zero vector that keeps similarities from counting below 0.
        vectors, codes = ((slots + 1) * f(encoded.dim) for f in (storage.vector_bytes, storage.code_bytes))
        disk = vectors + pooled + 16 * terms + texts + _EDGE_KEYS
        memory = (codes or vectors) + pooled + 8 * terms + _LINKS
        log = min(_LOG_BYTES, 4 * count * (slots + 1) * storage.width(encoded.dim))
        rows.append(Estimate(backend, storage, log + _OVERHEAD * count * disk, count * memory))
    return rows


def _choices(dim: int) -> list[tuple[Backend, Storage]]:
    from diffretriever.index import Storage

    quarter = max(1, dim // 4)
    edge = [Storage("float32"), Storage(), Storage(codes="int8"), Storage(codes="binary"), Storage(drop=0.95)]
    if dim >= 8:
        edge += [Storage(pca=2 * quarter), Storage(pca=quarter)]
    exact = [Storage("float32"), Storage(), Storage("int8"), Storage("binary")]
    return [*(("edge", storage) for storage in edge), *(("exact", storage) for storage in exact)]


class EncodingEstimate(NamedTuple):
    """What encoding a corpus to files will need.

    Attributes:
        seconds: time.
        bytes: size of the files.
    """

    seconds: float
    bytes: float


def encoding_estimate(encoder: Encoder, passages: Iterable[Passage], count: int) -> EncodingEstimate:
    """Return what encoding `count` passages will need, from a small sample of them."""
    sample = _spread(passages, count, _SMALL_SAMPLE)
    encoded, per_work = _timed(encoder, sample, words=0)
    share = count / max(1, len(sample))
    stored = encoded.dense.nbytes + encoded.pooled.nbytes + encoded.offsets.nbytes + 8 * encoded.sparse.nnz
    return EncodingEstimate(per_work * sum(map(work_of, sample)) * share, stored * share)


def _timed(encoder: Encoder, sample: Sequence[Passage], *, words: int) -> tuple[Representations, float]:
    """Return the representations of a sample, and the seconds that a unit of work took."""
    encoder.encode_passages(sample[:_WARM_UP], words=words)
    started = time.monotonic()
    encoded = encoder.encode_passages(sample, words=words)
    return encoded, (time.monotonic() - started) / max(1, sum(map(work_of, sample)))


def _spread(passages: Iterable[Passage], count: int, wanted: int) -> list[Passage]:
    """Return passages from all over a corpus."""
    step = max(1, count // wanted)
    return list(islice(islice(passages, 0, None, step), wanted))
