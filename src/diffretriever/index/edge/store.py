"""EdgeStore: the embedded Qdrant engine, one point per passage; `points` says what a point is.

The vectors `multi` are compared exhaustively, `pooled` by an HNSW graph, `sparse` by an inverted index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast
from uuid import UUID

import numpy as np
import qdrant_edge as qe
import scipy.sparse as sp

from diffretriever.corpus import Passage
from diffretriever.errors import InputError
from diffretriever.fusion import Ranking
from diffretriever.index.edge.engine import EdgeEngine
from diffretriever.index.edge.filters import edge_filter
from diffretriever.index.edge.points import engine_config, payload_of, to_point, to_stored
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
from diffretriever.index.store import Fault, Metadata, Record, StoredPassage, StoreMode
from diffretriever.representations import Representations

#: Multiply-adds up to which every passage is compared when the caller leaves the choice open: about 0.1 s of one
#: core for MaxSim, and less for the pooled vectors, whose HNSW graph is fast.
EXACT_MULTI_WORK, EXACT_SINGLE_WORK = 10**9, 10**8
#: Candidates by pooled vector that MaxSim reranks when the search is approximate.
CANDIDATES, CANDIDATES_PER_HIT = 1000, 4
#: Candidates that codes choose for each hit.
OVERSAMPLING: dict[str, float] = {"int8": 4.0, "binary": 16.0}
#: Most numbers of one write: bounds the write-ahead log's entries.
_WRITE_NUMBERS = 2_000_000
#: How often about a write goes to disk: its log, its points, and what the files reserve.
_WRITE_COPIES = 4
_OPTIMIZE_LEAST, _OPTIMIZE_SHARE = 1000, 0.1
_SCROLL = 1000
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
        self._names: dict[UUID, str] = {}
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
        among: Sequence[str] | None = None,
        depth: int | None = None,
    ) -> list[Ranking]:
        """Return the k best passages of each query; dense searches of many passages approximate by default."""
        condition = None if where is None else edge_filter(where)
        if among is not None:
            chosen = qe.Filter(must=[qe.HasIdCondition({point_id(i) for i in among})])
            condition = chosen if condition is None else qe.Filter(must=[condition, chosen])
        if mode == "sparse":
            return [self._search_sparse(queries.sparse[i], k, condition) for i in range(len(queries))]
        return [self._search_dense(queries, i, mode, k, condition, exact, depth) for i in range(len(queries))]

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

    def _search_sparse(self, weights: sp.csr_matrix, k: int, condition: qe.Filter | None) -> Ranking:
        if weights.nnz == 0:
            return Ranking([], np.zeros(0), floor=0.0)
        vector = qe.SparseVector(weights.indices.tolist(), weights.data.tolist())
        points = self._past_ties(
            k,
            lambda limit: qe.QueryRequest(
                query=qe.Query.Nearest(vector, using="sparse"), limit=limit, filter=condition
            ),
        )
        return self._ranking([p for p in points if p.score > 0], k, exact=True, floor=0.0)

    def _search_dense(
        self,
        queries: Representations,
        i: int,
        mode: StoreMode,
        k: int,
        condition: qe.Filter | None,
        exact: bool | None,
        depth: int | None,
    ) -> Ranking:
        slots = queries.vectors(i)
        if len(slots) == 0:
            return Ranking([], np.zeros(0))
        if exact is None:
            exact = not self.approximates(mode, len(slots))
        pooled = qe.Query.Nearest(queries.pooled[i].tolist(), using="pooled")
        multi = qe.Query.Nearest(slots.tolist(), using="multi")
        wanted = depth or max(CANDIDATES, CANDIDATES_PER_HIT * k)

        def request(limit: int) -> qe.QueryRequest:
            if mode == "single":
                params = qe.SearchParams(exact=exact)
                return qe.QueryRequest(query=pooled, limit=limit, filter=condition, params=params)
            if exact:
                params = qe.SearchParams(quantization=qe.QuantizationSearchParams(ignore=True))
                return qe.QueryRequest(query=multi, limit=limit, filter=condition, params=params)
            if (more := OVERSAMPLING.get(self._manifest.storage.codes or "")) is not None:
                more = more if depth is None else max(1.0, depth / limit)
                params = qe.SearchParams(quantization=qe.QuantizationSearchParams(rescore=True, oversampling=more))
                return qe.QueryRequest(query=multi, limit=limit, filter=condition, params=params)
            candidates = qe.Prefetch(limit=max(wanted, limit), query=pooled, filter=condition)
            return qe.QueryRequest(query=multi, limit=limit, prefetches=[candidates])

        return self._ranking(self._past_ties(k, request), k, exact=exact, floor=None)

    def _past_ties(self, k: int, request: Callable[[int], qe.QueryRequest]) -> list[qe.ScoredPoint]:
        """Return at least the k best points, and everything that ties with the k-th, so that ids can decide."""
        limit = k + 1
        while True:
            points = self._ask_best(request(limit))
            if len(points) < limit or points[-1].score < points[k - 1].score:
                return points
            limit *= 4

    def _ask_best(self, request: qe.QueryRequest) -> list[qe.ScoredPoint]:
        points: list[qe.ScoredPoint] = self._engine.ask("search", lambda shard: shard.query(request))
        return points

    def _ranking(self, points: Sequence[qe.ScoredPoint], k: int, *, exact: bool, floor: float | None) -> Ranking:
        names = self._names_of([cast(UUID, p.id) for p in points])
        return Ranking.sort(names, [p.score for p in points], k=k, exact=exact, floor=floor)

    def _names_of(self, points: Sequence[UUID]) -> list[str]:
        """Return the passage ids of points. They are remembered: reading payloads takes longer than the search."""
        if len(self._names) > _KNOWN_NAMES:
            self._names.clear()
        if unknown := [p for p in points if p not in self._names]:
            for record in self._retrieve(unknown, ["id"]):
                self._names[cast(UUID, record.id)] = id_of(payload_of(record), record.id)
        return [self._names[p] for p in points]
