"""Codec: representations as a caller has them, made into those that an index stores and compares, and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from diffretriever.index.storage import Storage
from diffretriever.representations import FloatArray, Representations


class Codec:
    """The changes that a storage makes to representations before any store sees them."""

    def __init__(self, storage: Storage) -> None:
        """Take the storage of an index."""
        self._storage = storage

    def passages(self, representations: Representations) -> Representations:
        """Return passages as they are stored."""
        return replace(
            representations,
            dense=self._round(representations.dense),
            pooled=self._round(representations.pooled),
            sparse=canonical_terms(representations.sparse),
        )

    def queries(self, representations: Representations) -> Representations:
        """Return queries as they are compared: rounded as passages are, so that every store gives the same scores."""
        return replace(
            representations, dense=self._round(representations.dense), pooled=self._round(representations.pooled)
        )

    def _round(self, vectors: FloatArray) -> FloatArray:
        return vectors.astype(self._storage.precision).astype(np.float32)


def canonical_terms(weights: sp.csr_matrix) -> sp.csr_matrix:
    """Return term weights with each term once, in order of the ids, without zeros."""
    terms = sp.csr_matrix(weights, dtype=np.float32, copy=True)
    terms.sum_duplicates()
    terms.eliminate_zeros()
    return terms
