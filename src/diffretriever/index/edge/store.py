"""EdgeStore: the embedded Qdrant engine, one point per passage; `points` says what a point is.

The vectors `multi` are compared exhaustively, `pooled` by an HNSW graph, `sparse` by an inverted index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast
from uuid import UUID

import numpy as np
import qdrant_edge as qe

from diffretriever.corpus import Passage
from diffretriever.errors import InputError
from diffretriever.fusion import Ranking
from diffretriever.index.edge.engine import EdgeEngine
from diffretriever.index.edge.filters import edge_filter
from diffretriever.index.edge.points import engine_config, payload_of, to_point, to_stored
from diffretriever.index.edge.requests import Ask, Candidates, multi_ask, single_ask, sparse_ask
from diffretriever.index.filters import Filter
from diffretriever.index.folder.copying import copy_folder
from diffretriever.index.manifest import Manifest
from diffretriever.index.points.points import (
    DIGEST_FIELDS,
    MULTIVECTOR_LIMIT,
    id_of,
    metadata_payload,
    point_fault,
    point_id,
    recorded_digest,
    to_record,
)
from diffretriever.index.stats import disk_bytes
from diffretriever.index.store import DenseMode, Fault, Metadata, Record, StoredPassage, StoreMode
from diffretriever.representations import Representations

#: Multiply-adds up to which every passage is compared when the caller leaves the choice open: about 0.1 s of one
#: core for MaxSim, and less for the pooled vectors, whose HNSW graph is fast.
EXACT_MULTI_WORK, EXACT_SINGLE_WORK = 10**9, 10**8
#: Candidates by pooled vector that MaxSim reranks when the search is approximate.
CANDIDATES, CANDIDATES_PER_HIT = 1000, 4
#: Pooled vectors that are compared in the time in which their graph finds one more candidate (about 2 us; 384
#: dimensions).
SCAN_PER_CANDIDATE = 50
#: Candidates that codes choose for each hit.
OVERSAMPLING: dict[str, float] = {"int8": 4.0, "binary": 16.0}
#: Most numbers of one write: bounds the write-ahead log's entries.
_WRITE_NUMBERS = 2_000_000
#: How often about a write goes to disk: its log, its points, and what the files reserve.
_WRITE_COPIES = 4
_OPTIMIZE_LEAST, _OPTIMIZE_SHARE = 1000, 0.1
_SCROLL, _QUERIES = 1000, 32
_KNOWN_NAMES = 1_000_000


class EdgeStore:
    """Keeps and searches passages with the embedded Qdrant engine."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Open the store of a folder; a new one if the folder is empty.

        Raises:
            IndexLockedError: another process holds the folder open.
            IndexFormatError: the engine cannot read the folder.
        """
        self._manifest = manifest
        self._names: dict[int, str] = {}
        self._length: int | None = None
        self._folder = folder
        self._engine = EdgeEngine(folder, engine_config(manifest))

    def __len__(self) -> int:
        if self._length is None:
            self._length = int(self._engine.ask("count", lambda shard: shard.count(qe.CountRequest(exact=True))))
        return self._length

    def ids(self) -> Iterator[str]:
        """Yield every id, in the order of the points."""
        for record in self._scroll(["id"]):
            yield id_of(payload_of(record), record.id)

    def upsert(self, passages: Sequence[Passage], representations: Representations) -> None:
        """Store passages; an id that exists is replaced whole."""
        sizes = (np.diff(representations.offsets) + 1) * representations.dim
        for passage, size in zip(passages, sizes.tolist(), strict=True):
            if size >= MULTIVECTOR_LIMIT:
                raise InputError(
                    f"passage {passage.passage_id!r} has {size // representations.dim - 1} vectors of "
                    f"{representations.dim} dimensions; the edge backend holds fewer than {MULTIVECTOR_LIMIT:,} "
                    "numbers per passage; use backend='exact'"
                )
        points: list[qe.Point] = []
        numbers = 0
        for i, passage in enumerate(passages):
            points.append(to_point(passage, representations, i, representations.vectors(i)))
            numbers += int(sizes[i]) + len(passage.text)
            if numbers >= _WRITE_NUMBERS:
                self._write(qe.UpdateOperation.upsert_points(points), 4 * numbers)
                points, numbers = [], 0
        if points:
            self._write(qe.UpdateOperation.upsert_points(points), 4 * numbers)

    def set_metadata(self, metadata: Mapping[str, Metadata]) -> None:
        """Replace the metadata of existing passages."""
        for passage_id, values in metadata.items():
            self._write(qe.UpdateOperation.set_payload([point_id(passage_id)], metadata_payload(values)))

    def delete(self, passage_ids: Sequence[str]) -> None:
        """Remove existing passages."""
        self._write(qe.UpdateOperation.delete_points([point_id(i) for i in passage_ids]))

    def records(self, passage_ids: Sequence[str]) -> list[Record | None]:
        """Return what hits show of these passages; None for an id that is not held."""
        points = [point_id(i) for i in passage_ids]
        found = {record.id: payload_of(record) for record in self._retrieve(points, True)}
        return [to_record(found[p]) if p in found else None for p in points]

    def get(self, passage_id: str) -> StoredPassage | None:
        """Return one passage with its representations, or None."""
        return self.get_many([passage_id])[0]

    def get_many(self, passage_ids: Sequence[str]) -> list[StoredPassage | None]:
        """Return passages with their representations; None for an id that is not held."""
        points = [point_id(i) for i in passage_ids]
        records = self._retrieve(points, True, vectors=True)
        found = {record.id: to_stored(record, self._manifest) for record in records}
        return [found.get(p) for p in points]

    def digests(self, passage_ids: Sequence[str]) -> list[bytes | None]:
        """Return the digest recorded when each passage was written; None for an id that is not held."""
        points = [point_id(i) for i in passage_ids]
        found = {record.id: payload_of(record) for record in self._retrieve(points, DIGEST_FIELDS)}
        return [recorded_digest(found[p]) if p in found else None for p in points]

    def faults(self) -> Iterator[Fault]:
        """Yield points that are no passages of this index, such as those whose payload is lost."""
        for record in self._scroll(True):
            if text := point_fault(payload_of(record), cast(UUID, record.id)):
                remove = qe.UpdateOperation.delete_points([record.id])
                yield Fault(text, partial(self._write, remove))

    def snapshot(self, folder: Path) -> None:
        """Write a copy into a new folder; nothing changes the files while the one writer is busy with this."""
        self.flush()
        copy_folder(self._folder, folder)

    def search(
        self,
        queries: Representations,
        mode: StoreMode,
        k: int,
        *,
        where: Filter | None,
        exact: bool | None,
        depth: int | None = None,
    ) -> list[Ranking]:
        """Return the k best passages of each query; dense searches of many passages approximate by default."""
        return self._search(queries, (mode,), k, where=where, exact=exact, depth=depth)[0]

    def search_both(
        self,
        queries: Representations,
        dense: DenseMode,
        k: int,
        *,
        where: Filter | None,
        exact: bool | None,
        depth: int | None = None,
    ) -> tuple[list[Ranking], list[Ranking]]:
        """Return the dense and the sparse rankings of each query, from one request to the engine."""
        found = self._search(queries, (dense, "sparse"), k, where=where, exact=exact, depth=depth)
        return found[0], found[1]

    def approximates(self, mode: StoreMode, query_slots: int) -> bool:
        """Return whether a search is approximate by default: where codes are, and beyond some work per query."""
        numbers = len(self) * self._manifest.width
        if mode == "single":
            return numbers > EXACT_SINGLE_WORK
        if self._manifest.storage.codes is not None:
            return True
        return numbers * (self._manifest.provenance.passage_slots + 1) * query_slots > EXACT_MULTI_WORK

    def maintain(self) -> None:
        """Let the engine build its graphs and merge its segments once enough was written since the last time."""
        # Three named vectors per point; the engine counts the sparse one as indexed at once.
        pending = (3 * len(self) - int(self._engine.ask("count", lambda shard: shard.info()).indexed_vectors_count)) / 2
        if pending >= max(_OPTIMIZE_LEAST, _OPTIMIZE_SHARE * len(self)):
            self._engine.check_space(disk_bytes(self._folder))
            self._engine.ask("optimise", lambda shard: shard.optimize())

    def flush(self) -> None:
        """Return when everything written is on disk."""
        self._engine.ask("flush", lambda shard: shard.flush())

    def close(self) -> None:
        """Flush and release the folder."""
        self._engine.close()

    def _write(self, operation: qe.UpdateOperation, size: int = 0) -> None:
        self._engine.check_space(_WRITE_COPIES * size)
        self._length = None
        self._engine.ask("write", lambda shard: shard.update(operation))

    def _scroll(self, payload: bool | list[str]) -> Iterator[qe.Record]:
        offset = None
        while True:
            request = qe.ScrollRequest(offset=offset, limit=_SCROLL, with_payload=payload)
            records, offset = self._engine.ask("read", lambda shard, r=request: shard.scroll(r))  # type: ignore[misc]
            yield from records
            if offset is None:
                return

    def _retrieve(self, points: Sequence[UUID], payload: bool | list[str], *, vectors: bool = False) -> list[qe.Record]:
        # The engine answers twice what it is asked for twice.
        wanted: list[int | UUID | str] = list(dict.fromkeys(points))
        records: list[qe.Record] = self._engine.ask("read", lambda shard: shard.retrieve(wanted, payload, vectors))
        return records

    def _search(
        self,
        queries: Representations,
        modes: tuple[StoreMode, ...],
        k: int,
        *,
        where: Filter | None,
        exact: bool | None,
        depth: int | None,
    ) -> list[list[Ranking]]:
        """Return the rankings of each query for each mode; those of some queries in all modes are one request."""
        condition = None if where is None else edge_filter(where)
        candidates = self._candidates(k, depth, with_terms=modes[1:] == ("sparse",))
        rankings: list[list[Ranking]] = [[] for _ in modes]
        for start in range(0, len(queries), _QUERIES):
            wanted = [(m, i) for m in range(len(modes)) for i in range(start, min(start + _QUERIES, len(queries)))]
            choices = [modes[m] == "sparse" or self._is_exact(queries, i, modes[m], exact) for m, i in wanted]
            asks = [
                _ask(queries, i, modes[m], condition, choice, candidates)
                for (m, i), choice in zip(wanted, choices, strict=True)
            ]
            for (m, _), choice, points in zip(wanted, choices, self._past_ties(k, asks), strict=True):
                kept = [p for p in points if p.score > 0] if modes[m] == "sparse" else points
                floor = 0.0 if modes[m] == "sparse" else None
                rankings[m].append(self._ranking(kept, k, exact=choice, floor=floor))
        return rankings

    def _is_exact(self, queries: Representations, i: int, mode: StoreMode, exact: bool | None) -> bool:
        return exact if exact is not None else not self.approximates(mode, len(queries.vectors(i)))

    def _candidates(self, k: int, depth: int | None, *, with_terms: bool) -> Candidates:
        """Return how an approximate search for the k best chooses what it compares, of a given depth or a usual one."""
        most = OVERSAMPLING.get(self._manifest.storage.codes or "")

        def oversampling(limit: int) -> float:
            return cast(float, most) if depth is None else max(1.0, depth / limit)

        wanted = depth or max(CANDIDATES, CANDIDATES_PER_HIT * k)
        return Candidates(
            wanted,
            len(self) <= SCAN_PER_CANDIDATE * wanted,
            None if most is None else oversampling,
            k if with_terms and self._manifest.vocabulary_size else 0,
        )

    def _past_ties(self, k: int, asks: Sequence[Ask]) -> list[list[qe.ScoredPoint]]:
        """Return for each query at least the k best points, and all that tie with the k-th, so that ids can decide."""
        found: list[list[qe.ScoredPoint]] = [[] for _ in asks]
        limits = {i: k + 1 for i, ask in enumerate(asks) if ask is not None}
        while limits:
            requests = [ask(limits[i]) for i, ask in enumerate(asks) if ask is not None and i in limits]
            for i, points in zip(limits, self._ask_best(requests), strict=True):
                found[i] = points
            tied = [i for i, n in limits.items() if len(found[i]) == n and found[i][-1].score >= found[i][k - 1].score]
            limits = {i: 4 * limits[i] for i in tied}
        return found

    def _ask_best(self, requests: list[qe.QueryRequest]) -> list[list[qe.ScoredPoint]]:
        batch = qe.QueryBatchRequest(requests)
        points: list[list[qe.ScoredPoint]] = self._engine.ask("search", lambda shard: shard.query_batch(batch))
        return points

    def _ranking(self, points: Sequence[qe.ScoredPoint], k: int, *, exact: bool, floor: float | None) -> Ranking:
        names = self._names_of([cast(UUID, p.id) for p in points])
        return Ranking.sort(names, [p.score for p in points], k=k, exact=exact, floor=floor)

    def _names_of(self, points: Sequence[UUID]) -> list[str]:
        """Return the passage ids of points. They are remembered: reading payloads takes longer than the search."""
        if len(self._names) > _KNOWN_NAMES:
            self._names.clear()
        # By number: a UUID computes its hash and compares itself in Python.
        numbers = [p.int for p in points]
        if unknown := [p for p, n in zip(points, numbers, strict=True) if n not in self._names]:
            for record in self._retrieve(unknown, ["id"]):
                self._names[cast(UUID, record.id).int] = id_of(payload_of(record), record.id)
        return [self._names[n] for n in numbers]


def _ask(
    queries: Representations, i: int, mode: StoreMode, condition: qe.Filter | None, exact: bool, candidates: Candidates
) -> Ask:
    if mode == "sparse":
        return sparse_ask(queries, i, condition)
    dense_ask = single_ask if mode == "single" else multi_ask
    return dense_ask(queries, i, condition, exact=exact, candidates=candidates)
