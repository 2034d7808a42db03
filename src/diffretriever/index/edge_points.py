"""The points of the embedded engine: how a passage becomes one and is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt
import qdrant_edge as qe
import scipy.sparse as sp

from diffretriever.corpus import Passage
from diffretriever.index.edge_filters import filter_fields
from diffretriever.index.manifest import Manifest
from diffretriever.index.slot_words import word_rows, words_from_json, words_to_json
from diffretriever.index.store import Metadata, Record, StoredPassage
from diffretriever.representations import Representations

Vectors = npt.NDArray[np.floating]
Payload = Mapping[str, str]

_NAMESPACE = UUID("6f2d2c4e-7b0a-5b59-9f3e-5d0c1d1f7a60")


def engine_config(manifest: Manifest) -> qe.EdgeConfig:
    """Return the layout of a point: which vectors it has, of what width and precision."""
    kinds = {"float16": qe.VectorStorageDatatype.Float16, "float32": qe.VectorStorageDatatype.Float32}
    datatype = kinds[manifest.storage]
    vectors = {}
    if manifest.dim:
        vectors["multi"] = qe.EdgeVectorParams(
            size=manifest.dim,
            distance=qe.Distance.Dot,
            datatype=datatype,
            multivector_config=qe.MultiVectorConfig(qe.MultiVectorComparator.MaxSim),
            # m=0: no graph. It would take minutes to build and the pooled one finds candidates as well.
            hnsw_config=qe.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
        )
        vectors["pooled"] = qe.EdgeVectorParams(size=manifest.dim, distance=qe.Distance.Dot, datatype=datatype)
    sparse = {"sparse": qe.EdgeSparseVectorParams()} if manifest.vocabulary_size else None
    return qe.EdgeConfig(vectors=vectors or None, sparse_vectors=sparse)


def point_id(passage_id: str) -> UUID:
    """Return the engine's id of a passage; it takes only numbers and UUIDs."""
    return uuid5(_NAMESPACE, passage_id)


def to_point(passage: Passage, representations: Representations, i: int, vectors: Vectors) -> qe.Point:
    """Return the point of passage i, whose [k, D] vectors come rounded to the storage precision."""
    named: dict[str, list[float] | list[list[float]] | qe.SparseVector] = {}
    if len(vectors):
        named["multi"] = [*vectors.tolist(), [0.0] * vectors.shape[1]]
        named["pooled"] = representations.pooled[i].astype(vectors.dtype).tolist()
    sparse = representations.sparse
    span = slice(int(sparse.indptr[i]), int(sparse.indptr[i + 1]))
    if span.start < span.stop:
        named["sparse"] = qe.SparseVector(sparse.indices[span].tolist(), sparse.data[span].tolist())
    payload = {
        "id": passage.passage_id,
        "title": passage.title,
        "text": passage.text,
        "words": words_to_json(representations, i),
        **metadata_payload(passage.metadata),
    }
    return qe.Point(point_id(passage.passage_id), cast(Any, named), payload)


def metadata_payload(metadata: Metadata) -> dict[str, object]:
    """Return the part of the payload that holds the metadata."""
    # JSON keeps the types that the engine's payload would blur; the fields are for its filters alone.
    return {"metadata": json.dumps(metadata), "fields": filter_fields(metadata)}


def payload_of(record: qe.Record) -> Payload:
    """Return the payload of a record that was asked for with it."""
    return cast(Payload, record.payload)


def to_record(payload: Payload) -> Record:
    """Return what hits show of a passage."""
    return Record(_passage(payload), word_rows(payload["words"]))


def to_stored(record: qe.Record, manifest: Manifest) -> StoredPassage:
    """Return a passage with its representations."""
    named = cast(Mapping[str, Any], record.vector or {})
    # The last vector is the zero vector that `to_point` added.
    vectors = _matrix(named["multi"][:-1] if "multi" in named else [], manifest.dim)
    pooled = _matrix([named["pooled"]] if "pooled" in named else [[0.0] * manifest.dim], manifest.dim)
    terms, weights = (named["sparse"].indices, named["sparse"].values) if "sparse" in named else ([], [])
    payload = payload_of(record)
    representations = Representations(
        dense=vectors,
        offsets=np.array([0, len(vectors)]),
        pooled=pooled,
        sparse=sp.csr_matrix(
            (np.array(weights, np.float32), np.array(terms, np.int32), [0, len(terms)]),
            shape=(1, manifest.vocabulary_size),
        ),
        words=words_from_json(payload["words"]),
        provenance=manifest.provenance,
    )
    return StoredPassage(_passage(payload), representations)


def _passage(payload: Payload) -> Passage:
    return Passage(payload["id"], payload["text"], payload["title"], json.loads(payload["metadata"]))


def _matrix(rows: Sequence[Sequence[float]], width: int) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32).reshape(len(rows), width)
