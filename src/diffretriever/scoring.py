"""Exact scores between queries and passages, and their deterministic ordering.

Three scores (docs/method.md, 5, 6 and 8):

* single dense: `<q, p>` of the pooled vectors, each the mean of a text's unit vectors, not normalised again;
* multi dense (MaxSim): `sum_i max(0, max_j <q_i, p_j>)` over query slots i and passage slots j;
* sparse: `sum_t w_q(t) w_p(t)` over vocabulary ids t.

Every sum runs in fp32. `precision="bfloat16"` instead rounds the inputs and the products to bf16, as the published
evaluation does; it ties many passages together and is there to reproduce published runs only.

Passages are scored block by block, so memory is bounded by `block_values` and not by the collection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from diffretriever.errors import InputError
from diffretriever.representations import Representations

Precision = Literal["float32", "bfloat16"]
Array = npt.NDArray[np.generic]

#: Most fp32 values of one block of slot similarities: 64 MiB.
BLOCK_VALUES = 16 * 2**20


class TopK(NamedTuple):
    """The best passages of each query.

    Attributes:
        scores: [Q, k] fp32, best first.
        positions: [Q, k] int64 passage positions.
    """

    scores: torch.Tensor
    positions: torch.Tensor


def single_dense(
    queries: Representations,
    passages: Representations,
    *,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Return the [Q, N] fp32 dot products of the pooled vectors.

    Args:
        queries: Q encoded queries.
        passages: N encoded passages of the same dimension.
        precision: "float32", or "bfloat16" to round as the published evaluation does.
        device: where the products are computed; the result lies there.

    Raises:
        InputError: when the dimensions differ or `precision` is unknown.
    """
    _check_dims(queries, passages)
    return pooled_scores(queries.pooled, passages.pooled, precision=precision, device=device)


def maxsim(
    queries: Representations,
    passages: Representations,
    *,
    floor: bool = True,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
    block_values: int = BLOCK_VALUES,
) -> torch.Tensor:
    """Return the [Q, N] fp32 MaxSim scores; the number of slots may differ from text to text.

    A query or passage without vectors scores 0 with everything.

    Args:
        queries: Q encoded queries.
        passages: N encoded passages of the same dimension.
        floor: count a query slot whose best similarity is negative as 0, as the paper's evaluation does (its
            training does not).
        precision: "float32", or "bfloat16" to round as the published evaluation does.
        device: where the products are computed; the result lies there.
        block_values: most similarities held at once.

    Raises:
        InputError: when the dimensions differ or `precision` is unknown.
    """
    _check_dims(queries, passages)
    blocks = maxsim_blocks(
        (queries.dense, queries.offsets),
        (passages.dense, passages.offsets),
        floor=floor,
        precision=precision,
        device=device,
        block_values=block_values,
    )
    parts = [scores for _, scores in blocks]
    return torch.cat(parts, dim=1) if parts else torch.zeros(len(queries), 0, device=device)


def sparse_dot(
    queries: Representations, passages: Representations, *, precision: Precision = "float32"
) -> sp.csr_matrix:
    """Return the [Q, N] fp32 dot products of the term weights as CSR; what shares no term is not stored.

    Args:
        queries: Q encoded queries.
        passages: N encoded passages over the same vocabulary.
        precision: "float32", or "bfloat16" to round as the published evaluation does.

    Raises:
        InputError: when the vocabularies differ in size or `precision` is unknown.
    """
    return sparse_scores(queries.sparse, passages.sparse.T, precision=precision)


def top_k(scores: torch.Tensor, k: int) -> TopK:
    """Return the k best columns of each row: score descending, then position ascending.

    Args:
        scores: [Q, N] scores.
        k: how many; fewer come back when N is smaller.

    Raises:
        InputError: when k < 1 or `scores` is not a matrix.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if scores.dim() != 2:
        raise InputError(f"scores must be [queries, passages], got shape {tuple(scores.shape)}")
    k = min(k, scores.shape[1])
    if k == 0:
        return TopK(scores[:, :0].float(), torch.zeros(len(scores), 0, dtype=torch.long, device=scores.device))
    rows = []
    for row in scores:
        # Everything that ties with the k-th best must compete: torch.topk picks among equals arbitrarily.
        worst = torch.topk(row, k, sorted=True).values[-1]
        rivals = torch.nonzero(row >= worst).squeeze(1)
        rows.append(rivals[torch.sort(row[rivals], descending=True, stable=True).indices[:k]])
    positions = torch.stack(rows) if rows else torch.zeros(0, k, dtype=torch.long, device=scores.device)
    return TopK(torch.gather(scores, 1, positions).float(), positions)


def pooled_scores(
    queries: Array, passages: Array, *, precision: Precision = "float32", device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Return the [Q, N] fp32 dot products of pooled vectors [Q, D] and [N, D]."""
    dtype = _dtype(precision)
    return (_tensor(queries, dtype, device) @ _tensor(passages, dtype, device).T).float()


def maxsim_blocks(
    queries: tuple[Array, npt.NDArray[np.integer]],
    passages: tuple[Array, npt.NDArray[np.integer]],
    *,
    floor: bool = True,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
    block_values: int = BLOCK_VALUES,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (span of passages, [Q, n] fp32 MaxSim scores), block after block.

    Args:
        queries: vectors [S, D] of all query slots and offsets [Q + 1].
        passages: vectors [T, D] of all passage slots, of any float dtype and possibly memory-mapped, and offsets
            [N + 1].
        floor: as in `maxsim`.
        precision: as in `maxsim`.
        device: where the products are computed.
        block_values: most similarities held at once.
    """
    dtype = _dtype(precision)
    query_offsets, (vectors, offsets) = queries[1], passages
    slots = _tensor(queries[0], dtype, device)
    for first, last in _spans(offsets, max(1, block_values // max(1, len(slots)))):
        start, stop = int(offsets[first]), int(offsets[last])
        similarities = (slots @ _tensor(vectors[start:stop], dtype, device).T).float()
        best = _reduce_last(similarities, offsets[first : last + 1] - start, "max")
        if floor:
            best = best.clamp_min(0.0)
        yield slice(first, last), _reduce_last(best.T, query_offsets, "sum").T


def sparse_scores(queries: sp.spmatrix, passages: sp.spmatrix, *, precision: Precision = "float32") -> sp.csr_matrix:
    """Return the [Q, N] fp32 products of query weights [Q, V] and transposed passage weights [V, N]."""
    if queries.shape[1] != passages.shape[0]:
        raise InputError(
            f"queries weigh a vocabulary of {queries.shape[1]}, passages one of {passages.shape[0]}; "
            "encode both with the same model"
        )
    left, right = sp.csr_matrix(queries, dtype=np.float32), sp.csr_matrix(passages, dtype=np.float32)
    if _dtype(precision) is torch.bfloat16:
        left.data, right.data = _round_bfloat16(left.data), _round_bfloat16(right.data)
        product = sp.csr_matrix(left @ right)
        product.data = _round_bfloat16(product.data)
        return product
    return sp.csr_matrix(left @ right)


def _spans(offsets: npt.NDArray[np.integer], vectors: int) -> Iterator[tuple[int, int]]:
    """Yield spans of texts holding at most `vectors` vectors each, or one text where that alone holds more."""
    first, count = 0, len(offsets) - 1
    while first < count:
        last = int(np.searchsorted(offsets, offsets[first] + vectors, side="right")) - 1
        # Texts without vectors would otherwise all fall into one block, however many there are.
        last = min(max(last, first + 1), first + vectors, count)
        yield first, last
        first = last


def _reduce_last(values: torch.Tensor, offsets: npt.NDArray[np.integer], how: Literal["max", "sum"]) -> torch.Tensor:
    """Return [M, n]: the max or sum of `values` [M, T] over each of n consecutive spans; 0 for an empty span."""
    lengths = np.diff(offsets)
    count, longest = len(lengths), int(lengths.max(initial=0))
    if longest == 0:
        return values.new_zeros(len(values), count)
    if int(lengths.min()) == longest:
        spans = values.reshape(len(values), count, longest)
        return spans.amax(dim=-1) if how == "max" else spans.sum(dim=-1)
    # Ragged: gather into a padded block whose padding is the neutral element, an extra last column.
    columns = np.where(np.arange(longest) < lengths[:, None], offsets[:-1, None] + np.arange(longest), values.shape[1])
    neutral = float("-inf") if how == "max" else 0.0
    padded = torch.cat([values, values.new_full((len(values), 1), neutral)], dim=1)
    spans = padded[:, torch.from_numpy(columns.astype(np.int64)).to(values.device)]
    if how == "sum":
        return spans.sum(dim=-1)
    empty = torch.from_numpy(lengths == 0).to(values.device)
    return spans.amax(dim=-1).masked_fill(empty, 0.0)


def _tensor(array: Array, dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    # astype copies: arrays of Representations and memory maps are read-only, which torch.from_numpy warns about.
    return torch.from_numpy(array.astype(np.float32)).to(device=device, dtype=dtype)


def _round_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return _tensor(values, torch.bfloat16, "cpu").float().numpy()


def _dtype(precision: Precision) -> torch.dtype:
    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    raise InputError(f"precision must be 'float32' or 'bfloat16', got {precision!r}")


def _check_dims(queries: Representations, passages: Representations) -> None:
    if queries.dim != passages.dim:
        raise InputError(
            f"queries have vectors of {queries.dim} dimensions, passages of {passages.dim}; "
            "encode both with the same model"
        )
