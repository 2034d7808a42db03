"""ClusterStore: a collection of a Qdrant server or cluster; `points` says what a point is.

The rankings are those of the embedded engine, and so is their fusion. What differs is that other programs may write to
the collection at the same time, so nothing of it is remembered here for long, and that every write returns when the
server has acknowledged it: there is nothing left to flush.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event

from qdrant_client import QdrantClient, models

from diffretriever.corpus import Passage
from diffretriever.errors import InputError, ServerError
from diffretriever.fusion import Ranking
from diffretriever.index.cluster.filters import cluster_filter
from diffretriever.index.cluster.points import payload_of, to_point, to_stored, wire_bytes
from diffretriever.index.cluster.server import ClusterServer
from diffretriever.index.cluster.uploads import in_parallel
from diffretriever.index.filters import Filter
from diffretriever.index.manifest import Manifest
from diffretriever.index.points.points import (
    DIGEST_FIELDS,
    MULTIVECTOR_LIMIT,
    metadata_payload,
    point_id,
    recorded_digest,
    to_record,
)
from diffretriever.index.store import DenseMode, Fault, Metadata, Record, StoredPassage, StoreMode
from diffretriever.representations import Representations

#: Multiply-adds up to which every passage is compared when the caller leaves the choice open, as in the embedded
#: engine: about 0.1 s of one core for MaxSim, and less for the pooled vectors, whose HNSW graph is fast.
EXACT_MULTI_WORK, EXACT_SINGLE_WORK = 10**9, 10**8
#: Candidates by pooled vector that MaxSim reranks when the search is approximate.
CANDIDATES, CANDIDATES_PER_HIT = 1000, 4
#: Requests under way at the same time while passages are written.
UPLOADS = 4
#: Most passages and bytes of one request; the server takes 32 MB unless told otherwise.
_WRITE_PASSAGES, _WRITE_BYTES = 256, 4_000_000
_SCROLL, _RETRIEVE, _READ_NUMBERS, _QUERIES = 1000, 1000, 500_000, 32
#: Seconds for which the number of passages may be out of date where it only chooses between exact and approximate.
_SIZE_AGE = 60.0
_KNOWN_NAMES = 1_000_000

_Page = tuple[list[models.Record], models.ExtendedPointId | None]
_Ask = Callable[[int], models.QueryRequest]


class ClusterStore:
    """Keeps and searches passages in a collection of a Qdrant server."""

    def __init__(self, server: ClusterServer, collection: str, manifest: Manifest, *, uploads: int = UPLOADS) -> None:
        """Open the store of a collection that exists.

        Args:
            server: the server; closed with the store.
            collection: name of the collection.
            manifest: what the collection holds.
            uploads: requests under way at the same time while passages are written.
        """
        self._server = server
        self._collection = collection
        self._manifest = manifest
        self._uploads = uploads
        self._names: dict[str, str] = {}
        self._size: tuple[float, int] | None = None

    def __len__(self) -> int:
        answer = self._server.ask("count passages", lambda client: client.count(self._collection, exact=True))
        self._size = (time.monotonic(), int(answer.count))
        return int(answer.count)

    def ids(self) -> Iterator[str]:
        """Yield every id, in the order of the points."""
        offset: models.ExtendedPointId | None = None
        while True:
            request = partial(self._scroll, offset=offset)
            records, offset = self._server.ask("read ids", request)
            yield from (payload_of(record)["id"] for record in records)
            if offset is None:
                return

    def upsert(self, passages: Sequence[Passage], representations: Representations) -> None:
        """Store passages; an id that exists is replaced whole.

        Raises:
            InputError: a passage has more vectors than the server takes; nothing is stored then.
            ServerError: the server failed; `stored` tells which passages are stored for sure.
        """
        rounded = representations.dense.astype(self._manifest.storage.precision)
        self._check_sizes(passages, representations)
        stored: list[str] = []
        stopped = Event()

        def write(points: list[models.PointStruct]) -> None:
            self._server.ask("write passages", partial(self._upsert, points=points), stopped=stopped)
            stored.extend(str((point.payload or {})["id"]) for point in points)

        batches = _batches(
            to_point(passage, representations, i, rounded[representations.offsets[i] : representations.offsets[i + 1]])
            for i, passage in enumerate(passages)
        )
        self._size = None
        try:
            in_parallel((partial(write, batch) for batch in batches), self._uploads, stop=stopped.set)
        except ServerError as error:
            raise ServerError(
                f"{error}. {len(stored):,} of {len(passages):,} passages of this write are stored; writing all "
                "of them again is harmless",
                stored=stored,
            ) from error.__cause__

    def set_metadata(self, metadata: Mapping[str, Metadata]) -> None:
        """Replace the metadata of existing passages."""
        changes = iter(metadata.items())
        while chunk := list(islice(changes, _WRITE_PASSAGES)):
            operations: list[models.UpdateOperation] = [
                models.SetPayloadOperation(
                    set_payload=models.SetPayload(payload=metadata_payload(values), points=[str(point_id(passage_id))])
                )
                for passage_id, values in chunk
            ]
            self._server.ask("write metadata", partial(self._update, operations=operations))

    def delete(self, passage_ids: Sequence[str]) -> None:
        """Remove existing passages."""
        self._size = None
        for start in range(0, len(passage_ids), _RETRIEVE):
            points = [str(point_id(i)) for i in passage_ids[start : start + _RETRIEVE]]
            self._server.ask("delete passages", partial(self._delete, points=points))

    def records(self, passage_ids: Sequence[str]) -> list[Record | None]:
        """Return what hits show of these passages; None for an id that is not held."""
        points = [str(point_id(i)) for i in passage_ids]
        shown = ["id", "title", "text", "words", "metadata"]
        found = {r.id: payload_of(r) for r in self._retrieve(points, _RETRIEVE, payload=shown)}
        return [to_record(found[p]) if p in found else None for p in points]

    def get(self, passage_id: str) -> StoredPassage | None:
        """Return one passage with its representations, or None."""
        return self.get_many([passage_id])[0]

    def get_many(self, passage_ids: Sequence[str]) -> list[StoredPassage | None]:
        """Return passages with their representations; None for an id that is not held."""
        points = [str(point_id(i)) for i in passage_ids]
        width = self._manifest.width * (self._manifest.provenance.passage_slots + 2)
        step = max(1, min(_RETRIEVE, _READ_NUMBERS // max(1, width)))
        records = self._retrieve(points, step, payload=True, vectors=True)
        found = {record.id: to_stored(record, self._manifest) for record in records}
        return [found.get(p) for p in points]

    def digests(self, passage_ids: Sequence[str]) -> list[bytes | None]:
        """Return the digest recorded when each passage was written; None for an id that is not held."""
        points = [str(point_id(i)) for i in passage_ids]
        found = {r.id: payload_of(r) for r in self._retrieve(points, _RETRIEVE, payload=DIGEST_FIELDS)}
        return [recorded_digest(found[p]) if p in found else None for p in points]

    def faults(self) -> Iterator[Fault]:
        """Yield nothing: the server's own files are out of reach, and passages are checked one by one."""
        yield from ()

    def snapshot(self, folder: Path) -> None:
        """Refuse: a server keeps its own snapshots."""
        raise InputError("an index on a server is not copied to a folder this way; use the server's snapshots")

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
        """Return the dense and the sparse rankings of each query; those of 16 queries are one request to the server."""
        found = self._search(queries, (dense, "sparse"), k, where=where, exact=exact, depth=depth)
        return found[0], found[1]

    def approximates(self, mode: StoreMode, query_slots: int) -> bool:
        """Return whether a search is approximate by default, beyond some work per query."""
        numbers = self._recent_size() * self._manifest.width
        if mode == "single":
            return numbers > EXACT_SINGLE_WORK
        return numbers * (self._manifest.provenance.passage_slots + 1) * query_slots > EXACT_MULTI_WORK

    def maintain(self) -> None:
        """Do nothing: the server reorganises itself."""

    def flush(self) -> None:
        """Do nothing: every write has returned when it was acknowledged."""

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def _upsert(self, client: QdrantClient, *, points: list[models.PointStruct]) -> None:
        client.upsert(self._collection, points, wait=True)

    def _update(self, client: QdrantClient, *, operations: list[models.UpdateOperation]) -> None:
        client.batch_update_points(self._collection, operations, wait=True)

    def _delete(self, client: QdrantClient, *, points: list[str]) -> None:
        client.delete(self._collection, models.PointIdsList(points=[*points]), wait=True)

    def _scroll(self, client: QdrantClient, *, offset: models.ExtendedPointId | None) -> _Page:
        return client.scroll(self._collection, limit=_SCROLL, offset=offset, with_payload=["id"])

    def _retrieve(
        self, points: Sequence[str], step: int, *, payload: bool | list[str], vectors: bool = False
    ) -> Iterator[models.Record]:
        for start in range(0, len(points), step):
            request = partial(
                QdrantClient.retrieve,
                collection_name=self._collection,
                ids=[*points[start : start + step]],
                with_payload=payload,
                with_vectors=vectors,
            )
            yield from self._server.ask("read passages", request)

    def _query(self, client: QdrantClient, *, requests: list[models.QueryRequest]) -> list[models.QueryResponse]:
        return client.query_batch_points(self._collection, requests)

    def _past_ties(self, k: int, asks: Sequence[_Ask | None]) -> list[list[models.ScoredPoint]]:
        """Return for each query at least the k best points, and all that tie with the k-th, so that ids can decide."""
        found: list[list[models.ScoredPoint]] = [[] for _ in asks]
        limits = {i: k + 1 for i, ask in enumerate(asks) if ask is not None}
        while limits:
            waiting = iter([(i, ask(limits[i])) for i, ask in enumerate(asks) if ask is not None and i in limits])
            while chunk := list(islice(waiting, _QUERIES)):
                answers = self._server.ask("search", partial(self._query, requests=[request for _, request in chunk]))
                for (i, _), answer in zip(chunk, answers, strict=True):
                    found[i] = answer.points
            tied = [i for i, n in limits.items() if len(found[i]) == n and found[i][-1].score >= found[i][k - 1].score]
            limits = {i: 4 * limits[i] for i in tied}
        return found

    def _names_of(self, points: Sequence[models.ScoredPoint]) -> Mapping[str, str]:
        """Return passage ids by point id. They are remembered, since a point never changes its passage id.

        Points that another program has deleted since they were ranked are not among them.
        """
        if len(self._names) > _KNOWN_NAMES:
            self._names.clear()
        unknown = list({str(point.id) for point in points} - self._names.keys())
        for record in self._retrieve(unknown, _RETRIEVE, payload=["id"]):
            self._names[str(record.id)] = payload_of(record)["id"]
        return self._names

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
        """Return the rankings of each query for each mode; those of one query are asked for in one request."""
        condition = None if where is None else cluster_filter(where)
        wanted = depth or max(CANDIDATES, CANDIDATES_PER_HIT * k)
        asks: list[_Ask | None] = []
        choices: list[bool] = []
        for i in range(len(queries)):
            by_terms = _sparse_ask(queries, i, condition) if "sparse" in modes else None
            for mode in modes:
                choices.append(mode == "sparse" or self._is_exact(queries, i, mode, exact))
                if mode == "sparse":
                    asks.append(by_terms)
                    continue
                besides = [] if by_terms is None else [_prefetch(by_terms(k))]
                storage = self._manifest.storage.precision
                asks.append(_dense_ask(queries, i, mode, condition, choices[-1], storage, wanted, besides))
        found = self._past_ties(k, asks)
        names = self._names_of([point for points in found for point in points])
        rankings: list[list[Ranking]] = [[] for _ in modes]
        for number, (points, choice) in enumerate(zip(found, choices, strict=True)):
            mode = modes[number % len(modes)]
            kept = [p for p in points if str(p.id) in names and (mode != "sparse" or p.score > 0)]
            ids, scores = [names[str(point.id)] for point in kept], [point.score for point in kept]
            floor = 0.0 if mode == "sparse" else None
            rankings[number % len(modes)].append(Ranking.sort(ids, scores, k=k, exact=choice, floor=floor))
        return rankings

    def _is_exact(self, queries: Representations, i: int, mode: StoreMode, exact: bool | None) -> bool:
        return exact if exact is not None else not self.approximates(mode, len(queries.vectors(i)))

    def _recent_size(self) -> int:
        if self._size is None or time.monotonic() - self._size[0] > _SIZE_AGE:
            return len(self)
        return self._size[1]

    def _check_sizes(self, passages: Sequence[Passage], representations: Representations) -> None:
        for i, passage in enumerate(passages):
            count = int(representations.offsets[i + 1] - representations.offsets[i])
            if (count + 1) * self._manifest.width >= MULTIVECTOR_LIMIT:
                raise InputError(
                    f"passage {passage.passage_id!r} has {count} vectors of {self._manifest.width} dimensions; a "
                    f"server holds fewer than {MULTIVECTOR_LIMIT:,} numbers per passage; use fewer slots"
                )


def _batches(points: Iterable[models.PointStruct]) -> Iterator[list[models.PointStruct]]:
    batch: list[models.PointStruct] = []
    size = 0
    for point in points:
        weight = wire_bytes(point)
        if batch and (size + weight > _WRITE_BYTES or len(batch) == _WRITE_PASSAGES):
            yield batch
            batch, size = [], 0
        batch.append(point)
        size += weight
    if batch:
        yield batch


def _sparse_ask(queries: Representations, i: int, condition: models.Filter | None) -> _Ask | None:
    weights = queries.sparse[i]
    if weights.nnz == 0:
        return None
    vector = models.SparseVector(indices=weights.indices.tolist(), values=weights.data.tolist())
    return lambda limit: models.QueryRequest(query=vector, using="sparse", limit=limit, filter=condition)


def _dense_ask(
    queries: Representations,
    i: int,
    mode: StoreMode,
    condition: models.Filter | None,
    exact: bool,
    storage: str,
    wanted: int,
    besides: list[models.Prefetch],
) -> _Ask | None:
    slots = queries.vectors(i)
    if len(slots) == 0:
        return None
    pooled: list[float] = queries.pooled[i].astype(storage).tolist()
    multi: list[list[float]] = slots.astype(storage).tolist()

    def ask(limit: int) -> models.QueryRequest:
        if mode == "single":
            params = models.SearchParams(exact=True) if exact else None
            nearest = models.QueryRequest(query=pooled, using="pooled", limit=limit, filter=condition, params=params)
            if exact or not besides:
                return nearest
            candidates = [_prefetch(nearest), *besides]
            return models.QueryRequest(query=pooled, using="pooled", limit=limit, prefetch=candidates)
        if exact:
            return models.QueryRequest(query=multi, using="multi", limit=limit, filter=condition)
        first = models.Prefetch(query=pooled, using="pooled", limit=max(wanted, limit), filter=condition)
        return models.QueryRequest(query=multi, using="multi", limit=limit, prefetch=[first, *besides])

    return ask


def _prefetch(request: models.QueryRequest) -> models.Prefetch:
    """Return a request as the first stage of another."""
    return models.Prefetch(query=request.query, using=request.using, limit=request.limit, filter=request.filter)
