"""Exhaustive search over the parts of an exact store."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from diffretriever.fusion import Ranking
from diffretriever.index.exact.best import Best
from diffretriever.index.exact.part import Part
from diffretriever.index.exact.segment import Segment
from diffretriever.index.filters import Filter, matches
from diffretriever.index.store import StoreMode
from diffretriever.late_interaction import Slots, maxsim_blocks
from diffretriever.representations import Representations
from diffretriever.scoring import ScoreBlock, pooled_blocks, sparse_scores

#: Most sparse scores held at once.
_SPARSE_VALUES = 2**25


def search_parts(
    parts: Sequence[Part],
    queries: Representations,
    mode: StoreMode,
    k: int,
    where: Filter | None,
) -> list[Ranking]:
    """Return the k best passages of each query, of those that meet a condition."""
    best = [Best(k) for _ in range(len(queries))]
    starts = [0]
    for part in parts:
        eligible = part.live if where is None else part.live & _mask(part.segment, where)
        if mode == "sparse":
            _collect_sparse(part, queries, eligible, starts[-1], best)
        else:
            eligible = eligible & part.has_vectors
            if eligible.any():
                _collect_dense(part, queries, mode, eligible, starts[-1], best)
        starts.append(starts[-1] + len(part.segment))

    def name(position: int) -> str:
        i = bisect_right(starts, position) - 1
        return parts[i].segment.passage_ids[position - starts[i]]

    return [b.ranking(name, floor=0.0 if mode == "sparse" else None) for b in best]


def _collect_dense(
    part: Part,
    queries: Representations,
    mode: StoreMode,
    eligible: npt.NDArray[np.bool_],
    start: int,
    best: Sequence[Best],
) -> None:
    # A query without vectors finds nothing, rather than everything with score 0.
    asking = np.flatnonzero(np.diff(queries.offsets))
    if not len(asking):
        return
    for span, block in _dense_blocks(part.segment, queries, mode):
        scores, rows = block.numpy(), np.flatnonzero(eligible[span])
        chosen: slice | npt.NDArray[np.int64] = slice(None) if len(rows) == scores.shape[1] else rows
        for q in asking.tolist():
            best[q].add(scores[q, chosen], rows + (span.start + start))


def _dense_blocks(segment: Segment, queries: Representations, mode: StoreMode) -> Iterator[ScoreBlock]:
    if mode == "multi":
        slots = Slots(queries.dense, queries.offsets)
        return maxsim_blocks(slots, Slots(segment.dense.blocks, segment.offsets), floor=True)
    return pooled_blocks(queries.pooled, segment.pooled)


def _collect_sparse(
    part: Part,
    queries: Representations,
    eligible: npt.NDArray[np.bool_],
    start: int,
    best: Sequence[Best],
) -> None:
    step = max(1, _SPARSE_VALUES // len(part.segment))
    for first in range(0, len(queries), step):
        scores = sparse_scores(queries.sparse[first : first + step], part.postings)
        for q in range(scores.shape[0]):
            span = slice(scores.indptr[q], scores.indptr[q + 1])
            rows, values = scores.indices[span], scores.data[span]
            keep = eligible[rows] & (values > 0)
            best[first + q].add(values[keep], rows[keep].astype(np.int64) + start)


def _mask(segment: Segment, where: Filter) -> npt.NDArray[np.bool_]:
    return np.fromiter((matches(where, m) for m in segment.metadata), dtype=np.bool_, count=len(segment))
