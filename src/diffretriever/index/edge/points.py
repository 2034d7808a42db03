"""The points of the embedded engine: how a passage becomes one and is read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import qdrant_edge as qe

from diffretriever.corpus import Passage
from diffretriever.index.manifest import Manifest
from diffretriever.index.points import points
from diffretriever.index.points.points import Payload, PointVectors, Vectors, point_id, point_payload, point_vectors
from diffretriever.index.store import StoredPassage
from diffretriever.representations import Representations


def engine_config(manifest: Manifest) -> qe.EdgeConfig:
    """Return the layout of a point: which vectors it has, of what width and precision."""
    kinds = {"float16": qe.VectorStorageDatatype.Float16, "float32": qe.VectorStorageDatatype.Float32}
    datatype = kinds[manifest.storage.precision]
    codes: dict[str, qe.ScalarQuantizationConfig | qe.BinaryQuantizationConfig] = {
        "int8": qe.ScalarQuantizationConfig(qe.ScalarType.Int8, memory=qe.Memory.Pinned),
        "binary": qe.BinaryQuantizationConfig(memory=qe.Memory.Pinned),
    }
    vectors = {}
    if manifest.dim:
        vectors["multi"] = qe.EdgeVectorParams(
            size=manifest.width,
            distance=qe.Distance.Dot,
            datatype=datatype,
            quantization_config=codes.get(manifest.storage.codes or ""),
            # Where codes choose the candidates, the vectors themselves are read for those alone.
            memory=qe.Memory.Cold if manifest.storage.codes else None,
            multivector_config=qe.MultiVectorConfig(qe.MultiVectorComparator.MaxSim),
            # m=0: no graph. It would take minutes to build and the pooled one finds candidates as well.
            hnsw_config=qe.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
        )
        vectors["pooled"] = qe.EdgeVectorParams(size=manifest.width, distance=qe.Distance.Dot, datatype=datatype)
    sparse = {"sparse": qe.EdgeSparseVectorParams()} if manifest.vocabulary_size else None
    return qe.EdgeConfig(vectors=vectors or None, sparse_vectors=sparse)


def to_point(passage: Passage, representations: Representations, i: int, vectors: Vectors) -> qe.Point:
    """Return the point of passage i, whose [k, D] vectors come rounded to the storage precision."""
    given = point_vectors(representations, i, vectors)
    named: dict[str, Any] = {}
    if given.multi:
        named |= {"multi": given.multi, "pooled": given.pooled}
    if given.terms:
        named["sparse"] = qe.SparseVector([*given.terms], [*given.weights])
    return qe.Point(point_id(passage.passage_id), named, point_payload(passage, representations, i))


def payload_of(record: qe.Record) -> Payload:
    """Return the payload of a record that was asked for with it."""
    return cast(Payload, record.payload)


def to_stored(record: qe.Record, manifest: Manifest) -> StoredPassage:
    """Return a passage with its representations."""
    named = cast(Mapping[str, Any], record.vector or {})
    terms, weights = (named["sparse"].indices, named["sparse"].values) if "sparse" in named else ((), ())
    vectors = PointVectors(named.get("multi", ()), named.get("pooled", ()), terms, weights)
    return points.to_stored(payload_of(record), vectors, manifest)
