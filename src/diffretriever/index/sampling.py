"""Sampling: some passages of an index, drawn at random."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise

import numpy as np

from diffretriever.index.store import Store, StoredPassage

#: Passages read at once.
_STEP = 256


def sample_passages(store: Store, count: int, rng: np.random.Generator) -> Iterator[StoredPassage]:
    """Yield `count` passages, or all where there are fewer, in the order of the store."""
    chosen = np.sort(rng.choice(len(store), min(len(store), count), replace=False)).tolist()
    ids = store.ids()
    picked = [next(islice(ids, b - a - 1, None)) for a, b in pairwise([-1, *chosen])]
    for start in range(0, len(picked), _STEP):
        yield from (s for s in store.get_many(picked[start : start + _STEP]) if s is not None)
