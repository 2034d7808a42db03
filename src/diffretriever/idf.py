"""Collection idf: term weights of queries fitted to how rare terms are in the collection that is searched.

    query weights * idf_factors(...)   -->   weights that know the collection

A trained model weights a term by how rare it was in the texts of its training. Among papers on aerodynamics "flow"
says little, whatever it says elsewhere; BM25 knows that, as it counts the passages of the collection (Robertson et al.
1994). Half of both is taken here: a query's weight of a term is multiplied by the square root of (rarity in the
collection / rarity to the model). Not in the paper, and nothing that encoding has to know: passages stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import numpy as np

from diffretriever.representations import FloatArray, IntArray, Representations

#: Whose idf the term weights of queries have: the collection's (half of it, see above), or the model's alone.
Idf = Literal["collection", "model"]
#: Passages in which terms are counted, at most.
SAMPLE = 2048
#: The collection's share in the end, and of how many passages it has half of that.
_SHARE, _HALF = 0.5, 100
#: How many times rarer or commoner than to the model a term may count, before the share is taken.
_MOST = 4.0


def document_frequencies(parts: Iterable[Representations], vocabulary_size: int) -> tuple[IntArray, int]:
    """Return in how many texts each term has a weight, [V], and the number of texts."""
    found, texts = np.zeros(vocabulary_size, np.int64), 0
    for part in parts:
        found += np.bincount(part.sparse.indices[part.sparse.data > 0], minlength=vocabulary_size)
        texts += len(part)
    return found, texts


def idf_factors(frequencies: IntArray, texts: int, model_idf: FloatArray) -> FloatArray:
    """Return [V] what the term weights of queries are multiplied by.

    Both rarities are taken in relation to their mean over the occurrences of terms. A collection of few passages says
    little and changes little: its share is 0.5 N / (N + 100).

    Args:
        frequencies: [V] in how many passages each term stands, of those that were counted.
        texts: N, how many were counted.
        model_idf: [V] how rare the model takes each term to be, in any unit.
    """
    if not frequencies.any():
        return np.ones(len(frequencies), np.float32)
    own = np.log1p((texts - frequencies + 0.5) / (frequencies + 0.5))
    model = model_idf.astype(np.float64)
    own, model = (rarity / max(float(np.average(rarity, weights=frequencies)), 1e-9) for rarity in (own, model))
    ratio = np.clip(own / np.maximum(model, 1e-9), 1 / _MOST, _MOST)
    return np.asarray(ratio ** (_SHARE * texts / (texts + _HALF)), np.float32)


def weigh(queries: Representations, factors: FloatArray) -> Representations:
    """Return queries with their term weights multiplied by factors [V]."""
    sparse = queries.sparse.copy()
    sparse.data = sparse.data * factors[sparse.indices]
    return replace(queries, sparse=sparse)
