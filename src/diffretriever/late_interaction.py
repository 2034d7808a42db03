"""The kernel of MaxSim: a batch of queries with many passages, exactly, near the speed of the matrix product inside.

All work is one product per block of passages, `[passage slots, D] x [D, query slots]`: 2 * T * D * S FLOP for T passage
and S query slots. Around it:

* Passage slots are the rows of the product, so that the maximum over a passage's slots runs along memory.
* Stored vectors are converted block by block into one buffer that stays in the cache, once for all queries.
* Passages of one length share a block, so a ragged collection costs what its slots cost and no padding.
* Query slots lie slot by slot, query by query, so their sums add whole rows.

Memory: three buffers of `block_values` numbers at most (or one passage, where that alone is larger) and two of
`SCORE_VALUES`, whatever the number of passages.

Libraries multiply the last rows of a matrix by other code than the rest, and round otherwise. Every block therefore
has a multiple of `_ROWS` rows: equal passages get equal scores, to the bit, wherever they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.generic]
Offsets = npt.NDArray[np.integer]

#: Most numbers of one block, by kind of device: about a core's cache (2 MiB in fp32), and enough to fill a GPU.
BLOCK_VALUES = {"cpu": 2**19, "cuda": 2**26}
#: Most scores held at once: 16 MiB.
SCORE_VALUES = 2**22
_ROWS = 64


class Slots(NamedTuple):
    """Vectors of several texts.

    Attributes:
        vectors: [T, D] the vectors of all slots, text after text; any float dtype, possibly memory-mapped.
        offsets: [N + 1] where the slots of each text begin.
    """

    vectors: Array
    offsets: Offsets


def maxsim_blocks(
    queries: Slots,
    passages: Slots,
    *,
    floor: bool,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    block_values: int | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (span of passages, [Q, n] fp32 MaxSim scores on `device`), span after span.

    Args:
        queries: Q queries.
        passages: N passages of the same dimension.
        floor: count a query slot whose best similarity is negative as 0.
        dtype: what vectors and their products are rounded to; sums run in fp32.
        device: where the products are computed.
        block_values: most numbers of one block; by kind of device when None.
    """
    device = torch.device(device)
    asked = _QuerySlots(queries, dtype, device)
    block = _Block(passages, asked.vectors, block_values or BLOCK_VALUES.get(device.type, BLOCK_VALUES["cuda"]))
    lengths = np.diff(passages.offsets)
    step = max(1, SCORE_VALUES // max(1, asked.count))
    for start in range(0, len(lengths), step):
        span = slice(start, min(start + step, len(lengths)))
        scores = torch.zeros(span.stop - start, asked.count, device=device)
        for length, members in _by_length(lengths[span]):
            per_block = max(1, block.rows // length)
            for first in range(0, len(members), per_block):
                rows = members[first : first + per_block]
                best = block.best_matches(rows + start, length)
                scores[_index(rows)] = asked.add_up(best.clamp_min_(0.0) if floor else best)
        yield span, asked.in_order(scores)


class _QuerySlots:
    """The slots of Q queries, first all first slots, then all second ones ...; the longest queries come first."""

    def __init__(self, queries: Slots, dtype: torch.dtype, device: torch.device) -> None:
        lengths = np.diff(queries.offsets)
        order = np.argsort(-lengths, kind="stable")
        self.count = len(lengths)
        self._counts = [int((lengths > slot).sum()) for slot in range(int(lengths.max(initial=0)))]
        rows = [queries.offsets[order[:count]] + slot for slot, count in enumerate(self._counts)]
        chosen = np.concatenate([np.zeros(0, np.int64), *rows])
        vectors = torch.from_numpy(queries.vectors[chosen].astype(np.float32))
        #: [S, D] the vectors in this order.
        self.vectors = vectors.to(device=device, dtype=dtype)
        self._places = torch.from_numpy(np.argsort(order)).to(device)

    def add_up(self, best: torch.Tensor) -> torch.Tensor:
        """Return [n, Q] sums over the slots of each query of `best` [n, S]."""
        total = best.new_zeros(len(best), self.count)
        start = 0
        for count in self._counts:
            total[:, :count] += best[:, start : start + count]
            start += count
        return total

    def in_order(self, scores: torch.Tensor) -> torch.Tensor:
        """Return [Q, n] scores in the order of the queries from [n, Q] ones in the order of this class."""
        return scores.T.contiguous()[self._places]


class _Block:
    """Buffers for the vectors of some passages and their similarities with all query slots."""

    def __init__(self, passages: Slots, query_slots: torch.Tensor, values: int) -> None:
        self._passages = passages
        self._query_slots = query_slots
        longest, dim = int(np.diff(passages.offsets).max(initial=0)), query_slots.shape[1]
        #: Passage slots of one block.
        self.rows = max(values // max(1, dim, len(query_slots)), longest, 1)
        padded = -(-self.rows // _ROWS) * _ROWS
        self._vectors = query_slots.new_zeros(padded, dim)
        # Copied before it is converted: torch warns of arrays that cannot be written to, as memory maps cannot. What
        # needs no conversion is read to where it is multiplied.
        self._converts = passages.vectors.dtype != np.float32 or self._vectors.dtype != torch.float32
        self._converts |= self._vectors.device.type != "cpu"
        own = np.empty((self.rows, dim), passages.vectors.dtype) if self._converts else None
        self._stored = self._vectors.numpy() if own is None else own
        self._products = query_slots.new_zeros(padded, len(query_slots))

    def best_matches(self, members: npt.NDArray[np.int64], length: int) -> torch.Tensor:
        """Return [n, S] fp32: the greatest similarity of each query slot among `length` slots of n passages."""
        count = len(members) * length
        padded = -(-count // _ROWS) * _ROWS
        self._load(members, length)
        torch.mm(self._vectors[:padded], self._query_slots.T, out=self._products[:padded])
        return self._products[:count].view(len(members), length, -1).amax(dim=1).float()

    def _load(self, members: npt.NDArray[np.int64], length: int) -> None:
        vectors, offsets = self._passages
        stored = self._stored[: len(members) * length]
        starts = offsets[members].astype(np.int64)
        if int(starts[-1]) - int(starts[0]) == len(stored) - length:
            span = slice(int(starts[0]), int(starts[0]) + len(stored))
            if isinstance(vectors, np.ndarray):
                stored[:] = vectors[span]
            else:
                # Coarse vectors are unpacked into the buffer, without another array in between.
                vectors.take(span, axis=0, out=stored, mode="clip")
        else:
            rows = (starts[:, None] + np.arange(length)).ravel()
            # "clip" writes straight into the buffer; all rows exist.
            np.take(vectors, rows, axis=0, out=stored, mode="clip")
        if self._converts:
            self._vectors[: len(stored)].copy_(torch.from_numpy(stored))


def _by_length(lengths: npt.NDArray[np.integer]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield (length, positions of the passages of that length) for every length but 0."""
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    ends = np.flatnonzero(np.diff(lengths[order])) + 1
    for members in np.split(order, ends):
        if len(members) and (length := int(lengths[members[0]])):
            yield length, members


def _index(rows: npt.NDArray[np.int64]) -> slice | torch.Tensor:
    """Return what selects some rising rows: a slice where they have no gap."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first == len(rows) - 1 else torch.from_numpy(rows)
