"""Points: the form in which a Qdrant engine, embedded or server, keeps a passage.

A point has the named vectors `multi` (MaxSim), `pooled` and `sparse`; its id is the UUID5 of the passage id, which
itself stands in the payload. Distances are dot products, since a cosine would throw away the norm of the pooled vector.

The engines' MaxSim does not floor at 0. Every stored multivector therefore ends with a zero vector, which no query slot
can fall below: the engine then returns the floored sum itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError
from diffretriever.index.integrity.digests import content_digest, metadata_digest, whole_digest
from diffretriever.index.manifest import Manifest
from diffretriever.index.points.payload_filters import filter_fields
from diffretriever.index.points.slot_words import word_rows, words_from_json, words_to_json
from diffretriever.index.store import Metadata, Record, StoredPassage
from diffretriever.representations import Representations

Vectors = npt.NDArray[np.floating]
Payload = Mapping[str, str]

#: The engines refuse a multivector of this many numbers.
MULTIVECTOR_LIMIT = 1_048_576

#: Parts of a payload that hold its digest.
DIGEST_FIELDS = ["digest", "metadata_digest"]

_NAMESPACE = UUID("6f2d2c4e-7b0a-5b59-9f3e-5d0c1d1f7a60")


@dataclass(frozen=True)
class PointVectors:
    """The named vectors of a point; what is empty is left out of the point.

    Attributes:
        multi: [k + 1, D] the slots' vectors and the zero vector.
        pooled: [D] the pooled vector.
        terms: ids of the terms.
        weights: their weights.
    """

    multi: Sequence[Sequence[float]] = ()
    pooled: Sequence[float] = ()
    terms: Sequence[int] = ()
    weights: Sequence[float] = ()


def point_id(passage_id: str) -> UUID:
    """Return the engine's id of a passage; it takes only numbers and UUIDs."""
    return uuid5(_NAMESPACE, passage_id)


def point_vectors(representations: Representations, i: int, vectors: Vectors) -> PointVectors:
    """Return the vectors of passage i, whose [k, D] vectors come rounded to the storage precision."""
    sparse = representations.sparse
    span = slice(int(sparse.indptr[i]), int(sparse.indptr[i + 1]))
    terms, weights = sparse.indices[span].tolist(), sparse.data[span].tolist()
    if not len(vectors):
        return PointVectors(terms=terms, weights=weights)
    multi = [*vectors.tolist(), [0.0] * vectors.shape[1]]
    return PointVectors(multi, representations.pooled[i].astype(vectors.dtype).tolist(), terms, weights)


def point_payload(passage: Passage, representations: Representations, i: int) -> dict[str, Any]:
    """Return the payload of passage i."""
    return {
        "id": passage.passage_id,
        "title": passage.title,
        "text": passage.text,
        "words": words_to_json(representations, i),
        "digest": content_digest(passage, representations, i).hex(),
        **metadata_payload(passage.metadata),
    }


def metadata_payload(metadata: Metadata) -> dict[str, object]:
    """Return the part of the payload that holds the metadata."""
    # JSON keeps the types that the engine's payload would blur; the fields are for its filters alone.
    return {
        "metadata": json.dumps(metadata),
        "metadata_digest": metadata_digest(metadata).hex(),
        "fields": filter_fields(metadata),
    }


def id_of(payload: Payload | None, point: object) -> str:
    """Return the passage id of a point.

    Raises:
        IndexFormatError: the payload is damaged.
    """
    with _payload_of(point):
        return cast(Payload, payload)["id"]


def point_fault(payload: Payload | None, point: UUID) -> str:
    """Return what is wrong with a point by its payload alone; "" if nothing is."""
    try:
        passage_id = id_of(payload, point)
        record = to_record(cast(Payload, payload))
    except IndexFormatError as error:
        return str(error)
    if point_id(passage_id) != point:
        return f"point {point} says that it is the passage {passage_id!r}, which is another point"
    fields = cast(object, cast(Payload, payload).get("fields"))
    if fields != metadata_payload(record.passage.metadata)["fields"]:
        return f"passage {passage_id!r} would be filtered by other metadata than it has"
    return ""


def recorded_digest(payload: Payload) -> bytes:
    """Return the digest that a payload records of its passage; b"" when it records none."""
    try:
        return _recorded(payload)
    except (KeyError, TypeError, ValueError):
        return b""


def _recorded(payload: Payload) -> bytes:
    return whole_digest(bytes.fromhex(payload["digest"]), bytes.fromhex(payload["metadata_digest"]))


def to_record(payload: Payload) -> Record:
    """Return what hits show of a passage."""
    with _payload_of(payload.get("id") if payload else None):
        return Record(_passage(payload), word_rows(payload["words"]))


def to_stored(payload: Payload, vectors: PointVectors, manifest: Manifest) -> StoredPassage:
    """Return a passage with its representations."""
    with _payload_of(payload.get("id") if payload else None):
        return _to_stored(payload, vectors, manifest)


def _to_stored(payload: Payload, vectors: PointVectors, manifest: Manifest) -> StoredPassage:
    # The last vector is the zero vector that `point_vectors` added.
    multi = _matrix(vectors.multi[:-1], manifest.width)
    pooled = _matrix([vectors.pooled or [0.0] * manifest.width], manifest.width)
    # A server gives the terms back in an order of its own.
    terms = np.array(vectors.terms, np.int32)
    order = np.argsort(terms, kind="stable")
    representations = Representations(
        dense=multi,
        offsets=np.array([0, len(multi)]),
        pooled=pooled,
        sparse=sp.csr_matrix(
            (np.array(vectors.weights, np.float32)[order], terms[order], [0, len(terms)]),
            shape=(1, manifest.vocabulary_size),
        ),
        words=words_from_json(payload["words"]),
        provenance=manifest.provenance,
    )
    return StoredPassage(_passage(payload), representations)


@contextmanager
def _payload_of(point: object) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise IndexFormatError(
            f"the payload of {point!r} is damaged ({type(error).__name__} {error}); repair the index with "
            "`diffretriever check DIR --repair`, and add the passage again"
        ) from error


def _passage(payload: Payload) -> Passage:
    return Passage(payload["id"], payload["text"], payload["title"], json.loads(payload["metadata"]))


def _matrix(rows: Sequence[Sequence[float]], width: int) -> npt.NDArray[np.float32]:
    return cast(npt.NDArray[np.float32], np.array(rows, dtype=np.float32).reshape(len(rows), width))
