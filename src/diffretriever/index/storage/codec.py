"""Codec: representations as a caller has them, made into those that an index stores and compares, and back.

Stores see only what comes out of here.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import cast

import numpy as np
import scipy.sparse as sp

from diffretriever.errors import IndexFormatError
from diffretriever.index.manifest import Manifest, replace_file
from diffretriever.index.storage.coarse import Form, pack, unpack
from diffretriever.index.storage.compression import drop_redundant, fit_projection
from diffretriever.index.storage.storage import Storage
from diffretriever.representations import FloatArray, Representations

PROJECTION_FILE = "projection.safetensors"


class Codec:
    """The changes that a storage makes to vectors."""

    def __init__(self, storage: Storage, projection: FloatArray | None = None) -> None:
        """Take the storage of an index, and the [D, d] projection that it asks for."""
        self.storage = storage
        self.projection = projection

    @staticmethod
    def fit(storage: Storage, sample: FloatArray | None) -> Codec:
        """Return a codec, fitted on a sample [n, D] of passages' vectors where it needs one.

        Raises:
            InputError: the sample is too small.
        """
        if storage.pca is None:
            return Codec(storage)
        return Codec(storage, fit_projection(np.zeros((0, 1), np.float32) if sample is None else sample, storage.pca))

    @property
    def digest(self) -> str:
        """Digest of the projection; "" without one."""
        if self.projection is None:
            return ""
        return blake2b(self.projection.astype("<f4").tobytes(), digest_size=16).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the projection, if there is one, into an index folder; it is on disk when this returns."""
        if self.projection is not None:
            from safetensors.numpy import save

            replace_file(folder / PROJECTION_FILE, save({"projection": self.projection}))

    @staticmethod
    def load(folder: Path, manifest: Manifest) -> Codec:
        """Return the codec of an index folder.

        Raises:
            IndexFormatError: its projection is missing or damaged.
        """
        if manifest.storage.pca is None:
            return Codec(manifest.storage)
        from safetensors.numpy import load_file

        path = folder / PROJECTION_FILE
        try:
            codec = Codec(manifest.storage, load_file(path)["projection"])
        except Exception as error:  # safetensors has errors of its own
            raise IndexFormatError(f"{path} cannot be read ({error}); restore it from a copy or rebuild") from error
        if codec.digest != manifest.projection:
            raise IndexFormatError(f"{path} is not as it was written; restore it from a copy or rebuild the index")
        return codec

    def passages(self, representations: Representations) -> Representations:
        """Return passages as they are stored."""
        r = representations
        if self.storage.drop is not None:
            r = drop_redundant(r, self.storage.drop)
        pooled = self._round(self._project(r.pooled))
        return replace(r, dense=self._kept(self._project(r.dense)), pooled=pooled, sparse=canonical_terms(r.sparse))

    def queries(self, representations: Representations) -> Representations:
        """Return queries as they are compared: rounded to the precision, so that every store gives the same scores."""
        r = representations
        return replace(r, dense=self._round(self._project(r.dense)), pooled=self._round(self._project(r.pooled)))

    def restored(self, representations: Representations) -> Representations:
        """Return stored passages, or compared queries, in the space they came from; their products stay the same."""
        if self.projection is None:
            return representations
        back = self.projection.T
        return replace(representations, dense=representations.dense @ back, pooled=representations.pooled @ back)

    def _project(self, vectors: FloatArray) -> FloatArray:
        return vectors if self.projection is None else vectors @ self.projection

    def _kept(self, vectors: FloatArray) -> FloatArray:
        if not self.storage.is_coarse:
            return self._round(vectors)
        return unpack(pack(vectors, cast(Form, self.storage.dtype)), vectors.shape[1])

    def _round(self, vectors: FloatArray) -> FloatArray:
        return vectors.astype(self.storage.precision).astype(np.float32)


def canonical_terms(weights: sp.csr_matrix) -> sp.csr_matrix:
    """Return term weights with each term once, in order of the ids, without zeros."""
    terms = sp.csr_matrix(weights, dtype=np.float32, copy=True)
    terms.sum_duplicates()
    terms.eliminate_zeros()
    return terms
