"""The points of a Qdrant server: how a passage becomes one and is read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from qdrant_client import models

from diffretriever.corpus import Passage
from diffretriever.index.manifest import Manifest
from diffretriever.index.points import points
from diffretriever.index.points.points import Payload, PointVectors, Vectors, point_id, point_payload, point_vectors
from diffretriever.index.store import StoredPassage
from diffretriever.representations import Representations

#: Bytes of one number of a vector as JSON, about.
_NUMBER_BYTES = 20


def vectors_config(manifest: Manifest) -> dict[str, models.VectorParams]:
    """Return which dense vectors a point has, of what width and precision."""
    if not manifest.dim:
        return {}
    datatype = models.Datatype(manifest.storage.precision)
    multi = models.VectorParams(
        size=manifest.width,
        distance=models.Distance.DOT,
        datatype=datatype,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        # m=0: no graph; the pooled one finds candidates. On disk: they are the bulk, and the cache keeps what is used.
        hnsw_config=models.HnswConfigDiff(m=0),
        on_disk=True,
    )
    return {
        "multi": multi,
        "pooled": models.VectorParams(size=manifest.width, distance=models.Distance.DOT, datatype=datatype),
    }


def sparse_config(manifest: Manifest) -> dict[str, models.SparseVectorParams]:
    """Return which sparse vectors a point has."""
    return {"sparse": models.SparseVectorParams()} if manifest.vocabulary_size else {}


def to_point(passage: Passage, representations: Representations, i: int, vectors: Vectors) -> models.PointStruct:
    """Return the point of passage i, whose [k, D] vectors come rounded to the storage precision."""
    given = point_vectors(representations, i, vectors)
    named: dict[str, Any] = {}
    if given.multi:
        named |= {"multi": given.multi, "pooled": given.pooled}
    if given.terms:
        named["sparse"] = models.SparseVector(indices=[*given.terms], values=[*given.weights])
    payload = point_payload(passage, representations, i)
    return models.PointStruct(id=str(point_id(passage.passage_id)), vector=named, payload=payload)


def wire_bytes(point: models.PointStruct) -> int:
    """Return about how many bytes a point takes in a request."""
    named = cast(Mapping[str, Any], point.vector)
    numbers = sum(map(len, named.get("multi", ()))) + len(named.get("pooled", ()))
    terms = 2 * len(named["sparse"].indices) if "sparse" in named else 0
    # A character takes up to 4 bytes, and text is mostly 1.
    texts = sum(3 * len(value) for value in (point.payload or {}).values() if isinstance(value, str))
    return _NUMBER_BYTES * (numbers + terms) + texts + 500


def payload_of(record: models.Record) -> Payload:
    """Return the payload of a record that was asked for with it."""
    return cast(Payload, record.payload)


def to_stored(record: models.Record, manifest: Manifest) -> StoredPassage:
    """Return a passage with its representations."""
    named = cast(Mapping[str, Any], record.vector or {})
    terms, weights = (named["sparse"].indices, named["sparse"].values) if "sparse" in named else ((), ())
    vectors = PointVectors(named.get("multi", ()), named.get("pooled", ()), terms, weights)
    return points.to_stored(payload_of(record), vectors, manifest)
