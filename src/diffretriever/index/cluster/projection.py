"""The projection of an index on a server: a small collection beside its own, one point per principal component."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast
from uuid import uuid4

import numpy as np
from qdrant_client import QdrantClient, models

from diffretriever.errors import IndexFormatError, ServerError
from diffretriever.index.cluster.server import ClusterServer, status_of
from diffretriever.representations import FloatArray

_SUFFIX = ".projection"
_METADATA, _CREATION = "diffretriever_projection", "creation"
#: Numbers of one request.
_NUMBERS = 200_000


def write_projection(server: ClusterServer, collection: str, projection: FloatArray, replicas: int | None) -> None:
    """Keep the [D, d] projection of a collection, in place of an older one.

    Raises:
        IndexFormatError: a collection of that name holds something else.
    """
    name = collection + _SUFFIX
    remove_projection(server, collection)
    creation = uuid4().hex
    rows = np.ascontiguousarray(projection.T, dtype=np.float32)
    request = partial(
        QdrantClient.create_collection,
        collection_name=name,
        vectors_config=models.VectorParams(size=rows.shape[1], distance=models.Distance.DOT),
        shard_number=1,
        replication_factor=replicas,
        metadata={_METADATA: collection, _CREATION: creation},
    )
    try:
        server.ask("create the collection of the projection", request)
    except ServerError as error:
        # An answer that was lost makes the second attempt fail; then the collection is the one just asked for.
        if status_of(error) not in (400, 409) or _metadata(server, name).get(_CREATION) != creation:
            raise
    step = max(1, _NUMBERS // rows.shape[1])
    for start in range(0, len(rows), step):
        points = [models.PointStruct(id=start + i, vector=r.tolist()) for i, r in enumerate(rows[start : start + step])]
        server.ask("write the projection", partial(QdrantClient.upsert, collection_name=name, points=points, wait=True))


def read_projection(server: ClusterServer, collection: str, shape: tuple[int, int]) -> FloatArray:
    """Return the [D, d] projection of a collection.

    Raises:
        IndexFormatError: it is missing or of another shape.
    """
    name, (dim, width) = collection + _SUFFIX, shape
    rows: list[list[float]] = []
    if server.ask("read the projection", lambda client: client.collection_exists(name)):
        step = max(1, _NUMBERS // dim)
        for start in range(0, width, step):
            ids = [*range(start, min(width, start + step))]
            request = partial(QdrantClient.retrieve, collection_name=name, ids=ids, with_vectors=True)
            found = {record.id: record.vector for record in server.ask("read the projection", request)}
            rows += [cast("list[float]", found[i]) for i in ids if i in found]
    if len(rows) != width or any(len(row) != dim for row in rows):
        raise IndexFormatError(
            f"the collection {name!r}, which belongs to {collection!r}, is missing or damaged; rebuild"
        )
    return np.ascontiguousarray(np.array(rows, dtype=np.float32).T)


def remove_projection(server: ClusterServer, collection: str) -> None:
    """Remove the projection of a collection, if there is one.

    Raises:
        IndexFormatError: a collection of that name holds something else.
    """
    name = collection + _SUFFIX
    if not server.ask("look for a projection", lambda client: client.collection_exists(name)):
        return
    if _METADATA not in _metadata(server, name):
        raise IndexFormatError(f"the collection {name!r} is in the way, and this package did not make it")
    server.ask("remove the projection", lambda client: client.delete_collection(name))


def _metadata(server: ClusterServer, name: str) -> Mapping[str, object]:
    info = server.ask("look for a projection", lambda client: client.get_collection(name))
    return info.config.metadata or {}
