"""Part: a segment of an exact store with what changes about it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from diffretriever.index.exact.segment import Segment


class Part:
    """A segment with what changes about it: which rows live, and what is derived when first asked for."""

    def __init__(self, segment: Segment, name: str, sums: Mapping[str, str]) -> None:
        self.segment = segment
        self.name = name
        self.sums = sums
        self.live = np.ones(len(segment), dtype=np.bool_)
        self.changed: set[int] = set()

    @cached_property
    def has_vectors(self) -> npt.NDArray[np.bool_]:
        """[N] which passages have vectors at all."""
        return np.diff(self.segment.offsets) > 0

    @cached_property
    def postings(self) -> sp.csr_matrix:
        """[V, N] term weights: the inverted index."""
        return sp.csr_matrix(self.segment.sparse.T)
