"""Compression of vectors: fewer numbers per vector, and fewer vectors per passage.

* Projection onto principal components: the vectors are not centred first, since it is their dot products that must
  survive, not their variance around a mean.
* Redundant slots: a vector whose cosine to an earlier kept one of its passage is greater than t is left out; a
  similarity to it changes by at most sqrt(2 - 2t).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diffretriever.errors import InputError
from diffretriever.representations import FloatArray, Representations


def fit_projection(sample: FloatArray, dimensions: int) -> FloatArray:
    """Return the [D, d] orthonormal columns that keep most of the dot products of a sample [n, D].

    Raises:
        InputError: the sample has fewer vectors than dimensions are wanted.
    """
    if len(sample) < dimensions:
        raise InputError(
            f"{len(sample)} vectors are too few to find {dimensions} principal components; give a larger sample"
        )
    second_moment = sample.T.astype(np.float64) @ sample.astype(np.float64)
    _, columns = np.linalg.eigh(second_moment)
    chosen = columns[:, ::-1][:, :dimensions]
    # The sign of an eigenvector is arbitrary; the same sample must give the same index.
    largest = np.abs(chosen).argmax(axis=0)
    chosen = chosen * np.sign(chosen[largest, np.arange(dimensions)])
    return np.ascontiguousarray(chosen, dtype=np.float32)


def drop_redundant(representations: Representations, threshold: float) -> Representations:
    """Return representations without vectors whose cosine to an earlier kept one of their text is above a threshold.

    The pooled vectors stay the means of all.
    """
    keep = np.ones(len(representations.dense), dtype=np.bool_)
    offsets = representations.offsets
    for i in np.flatnonzero(np.diff(offsets) > 1).tolist():
        vectors = representations.vectors(i)
        similar = vectors @ vectors.T > threshold
        kept = keep[offsets[i] : offsets[i + 1]]
        for j in range(1, len(vectors)):
            kept[j] = not (similar[j, :j] & kept[:j]).any()
    if keep.all():
        return representations
    words = representations.words
    if words is not None:
        words = replace(words, ids=words.ids[keep], probabilities=words.probabilities[keep])
    ends = np.concatenate([[0], np.cumsum(keep)])[offsets].astype(np.int64)
    return replace(representations, dense=representations.dense[keep], offsets=ends, words=words)
