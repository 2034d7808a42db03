"""Recall: what approximate searches of an index find of what they should, against comparing with everything."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from diffretriever.fusion import Ranking
from diffretriever.index.calibration import Calibration, Recall
from diffretriever.index.manifest import Manifest
from diffretriever.index.sampling import sample_passages
from diffretriever.index.store import Store
from diffretriever.representations import Representations

#: Lengths of the rankings that a calibration compares, as far as the index has ten times as many passages.
LENGTHS = (10, 100, 1000)
#: Queries of a calibration, and multiply-adds of comparing them with everything that cost fewer than that many.
_QUERIES, _LEAST_QUERIES, _WORK = 64, 12, 2 * 10**11
#: Recall above which deeper searches are not looked at.
_ENOUGH = 0.998
#: Share of the passages above which scoring candidates costs what comparing with all does.
_MOST = 0.5


def calibrate(store: Store, manifest: Manifest) -> Calibration:
    """Return what searches of several depths find for queries made of an index's own passages.

    A query takes K_q of a passage's vectors, drawn at random, and their mean; the passage itself does not count. The
    random choices depend on the number of passages alone.
    """
    count, slots = len(store), manifest.provenance.query_slots
    cost = max(1, count * manifest.width * (manifest.provenance.passage_slots + 1) * slots)
    sample = sample_queries(store, slots, int(np.clip(_WORK // cost, _LEAST_QUERIES, _QUERIES)))
    if sample is None:
        return Calibration(count, 0, ())
    lengths = [k for k in LENGTHS if k <= count // 10] or [LENGTHS[0]]
    rows = [row for row in measure(store, sample[0], lengths, sample[1]) if row.depth]
    return Calibration(count, len(sample[0]), tuple(rows))


def sample_queries(store: Store, slots: int, count: int) -> tuple[Representations, list[str]] | None:
    """Return queries made of passages, and the ids of those passages; None where no passage has vectors.

    Args:
        store: the index.
        slots: vectors of a query.
        count: how many to make; fewer come back where fewer passages have vectors.
    """
    rng = np.random.default_rng(len(store))
    held = [s for s in sample_passages(store, 2 * count, rng) if len(s.representations.dense)]
    drawn = [held[i] for i in rng.permutation(len(held))[:count].tolist()]
    if not drawn:
        return None
    queries = Representations.concatenate([_query_of(stored.representations, slots, rng) for stored in drawn])
    return queries, [stored.passage.passage_id for stored in drawn]


def measure(
    store: Store, queries: Representations, lengths: Sequence[int], own: Sequence[str] | None = None
) -> Iterator[Recall]:
    """Yield the recalls of a search that compares with everything (depth 0), then of deeper and deeper ones.

    Args:
        store: the index.
        queries: queries as the index compares them.
        lengths: lengths of the rankings that are compared.
        own: a passage for each query that does not count.
    """
    k = max(lengths) + (own is not None)
    truth, took = _search(store, queries, k, own, exact=True, depth=None)
    yield from (Recall(0, length, 1.0, 0.0, took) for length in lengths)
    for depth in _depths(min(lengths), int(_MOST * len(store))):
        found, took = _search(store, queries, min(k, depth), own, exact=False, depth=depth)
        rows = [_recall(found, truth, depth, length, took) for length in lengths]
        yield from rows
        if all(row.mean >= _ENOUGH for row in rows):
            return


def _depths(first: int, last: int) -> Iterator[int]:
    """Yield depths, each half or a third larger than the one before."""
    depth = max(5 * first, 50)
    while depth <= last:
        yield depth
        if 3 * depth // 2 <= last:
            yield 3 * depth // 2
        depth *= 2


def _search(
    store: Store,
    queries: Representations,
    k: int,
    own: Sequence[str] | None,
    *,
    exact: bool,
    depth: int | None,
) -> tuple[list[list[str]], float]:
    found, times = [], []
    for i in range(len(queries)):
        query = queries.select([i])
        started = time.perf_counter()
        ranking: Ranking = store.search(query, "multi", k, where=None, exact=exact, depth=depth)[0]
        times.append(time.perf_counter() - started)
        found.append([p for p in ranking.passage_ids if own is None or p != own[i]])
    return found, 1000 * float(np.median(times)) if times else 0.0


def _recall(found: list[list[str]], truth: list[list[str]], depth: int, k: int, took: float) -> Recall:
    shares = np.array([len({*f[:k]} & {*t[:k]}) / max(1, len(t[:k])) for f, t in zip(found, truth, strict=True)])
    error = float(shares.std(ddof=1) / np.sqrt(len(shares))) if len(shares) > 1 else 0.0
    return Recall(depth, k, float(shares.mean()), error, took)


def _query_of(passage: Representations, slots: int, rng: np.random.Generator) -> Representations:
    rows = np.sort(rng.choice(len(passage.dense), min(slots, len(passage.dense)), replace=False))
    dense = passage.dense[rows]
    pooled = dense.mean(axis=0, keepdims=True)
    return replace(passage, dense=dense, offsets=np.array([0, len(dense)]), pooled=pooled, words=None)
