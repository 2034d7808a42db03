"""Searching: the rankings of a store made into hits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from diffretriever.errors import InputError
from diffretriever.fusion import FusionName, Ranking, fuse
from diffretriever.index.calibration import RECALL, Calibration
from diffretriever.index.filters import Filter
from diffretriever.index.hit import Hit
from diffretriever.index.manifest import Manifest
from diffretriever.index.store import DenseMode, Record, Store
from diffretriever.representations import Representations

Mode = Literal["hybrid", "multi", "single", "sparse"]


@dataclass(frozen=True)
class SearchOptions:
    """What to search for beside the query; see `Index.search`."""

    k: int
    mode: Mode
    alpha: float
    fusion: FusionName
    where: Filter | None
    depth: int
    dense: DenseMode
    exact: bool | None
    recall: float = RECALL

    def check(self, manifest: Manifest) -> None:
        """Raise InputError when an option is out of range or the index lacks what the mode compares."""
        if self.mode not in get_args(Mode):
            raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.dense not in get_args(DenseMode):
            raise InputError(f"dense must be 'multi' or 'single', got {self.dense!r}")
        if self.fusion not in get_args(FusionName):
            raise InputError(f"fusion must be 'minmax' or 'rrf', got {self.fusion!r}")
        if self.k < 1 or self.depth < 1:
            raise InputError(f"k and depth must be at least 1, got k={self.k} and depth={self.depth}")
        if not 0.0 < self.recall <= 1.0:
            raise InputError(f"recall must lie above 0 and be at most 1, got {self.recall}")
        if not 0.0 <= self.alpha <= 1.0:
            raise InputError(f"alpha must lie between 0 (sparse only) and 1 (dense only), got {self.alpha}")
        if self.mode != "sparse" and manifest.dim == 0:
            raise InputError(f"mode {self.mode!r} compares vectors and this index holds none; use mode='sparse'")
        if self.mode in ("sparse", "hybrid") and manifest.vocabulary_size == 0:
            raise InputError(f"mode {self.mode!r} compares term weights and this index holds none; use mode='multi'")


@dataclass(frozen=True)
class _Result:
    """A final ranking and the rankings it came from."""

    final: Ranking
    dense: Ranking | None
    sparse: Ranking | None


#: Gives the calibration of an index; None where there is none and none can be made.
Calibrate = Callable[[], Calibration | None]


def search_store(
    store: Store, queries: Representations, options: SearchOptions, calibrate: Calibrate
) -> list[list[Hit]]:
    """Return the hits of each query, best first."""
    return [_hits(store, result, options.k) for result in _results(store, queries, options, calibrate)]


def _results(store: Store, queries: Representations, options: SearchOptions, calibrate: Calibrate) -> list[_Result]:
    where, exact = options.where, options.exact
    if options.mode == "sparse":
        rankings = store.search(queries, "sparse", options.k, where=where, exact=exact)
        return [_Result(r, None, r) for r in rankings]
    if options.mode != "hybrid":
        exact, depth = _effort(store, queries, options.mode, options.k, options, calibrate)
        rankings = store.search(queries, options.mode, options.k, where=where, exact=exact, depth=depth)
        return [_Result(r, r, None) for r in rankings]
    length = max(options.depth, options.k)
    return [
        _Result(fuse(d, s, method=options.fusion, alpha=options.alpha, depth=length), d, s)
        for d, s in hybrid_rankings(store, queries, options, calibrate)
    ]


def hybrid_rankings(
    store: Store, queries: Representations, options: SearchOptions, calibrate: Calibrate
) -> list[tuple[Ranking, Ranking]]:
    """Return the dense and the sparse ranking that hybrid search fuses, for each query."""
    # A hit must be able to come from either ranking alone.
    k = max(options.depth, options.k)
    exact, depth = _effort(store, queries, options.dense, k, options, calibrate)
    dense, sparse = store.search_both(queries, options.dense, k, where=options.where, exact=exact, depth=depth)
    return list(zip(dense, sparse, strict=True))


def _effort(
    store: Store, queries: Representations, mode: DenseMode, k: int, options: SearchOptions, calibrate: Calibrate
) -> tuple[bool | None, int | None]:
    """Return whether a dense search is exact, and how deep an approximate one by MaxSim has to be."""
    exact, depth = options.exact, None
    slots = int(np.diff(queries.offsets).max(initial=0))
    if mode == "multi" and (exact is False or (exact is None and store.approximates(mode, slots))):
        calibration = calibrate()
        depth = calibration.depth(k, options.recall) if calibration is not None else None
        exact = calibration is not None and depth is None
    return exact, depth


def _hits(store: Store, result: _Result, k: int) -> list[Hit]:
    ids = list(result.final.passage_ids[:k])
    dense, sparse = _scores(result.dense, ids), _scores(result.sparse, ids)
    records = store.records(ids)
    scores = result.final.scores[:k].tolist()
    return [
        _hit(record, score, rank, dense.get(i), sparse.get(i), result.final.exact)
        for rank, (i, record, score) in enumerate(zip(ids, records, scores, strict=True), 1)
        if record is not None
    ]


def _scores(ranking: Ranking | None, passage_ids: Sequence[str]) -> dict[str, float]:
    if ranking is None:
        return {}
    wanted = set(passage_ids)
    pairs = zip(ranking.passage_ids, ranking.scores.tolist(), strict=True)
    return {passage_id: score for passage_id, score in pairs if passage_id in wanted}


def _hit(record: Record, score: float, rank: int, dense: float | None, sparse: float | None, exact: bool) -> Hit:
    passage = record.passage
    return Hit(
        passage_id=passage.passage_id,
        score=score,
        rank=rank,
        text=passage.text,
        title=passage.title,
        metadata=passage.metadata,
        slot_words=record.slot_words,
        dense=dense,
        sparse=sparse,
        exact=exact,
    )
