"""Exact scores between queries and passages, and their deterministic ordering.

Three scores (docs/method.md, 5, 6 and 8):

* single dense: `<q, p>` of the pooled vectors, each the mean of a text's unit vectors (under the paper protocol not
  normalised again);
* multi dense (MaxSim): `sum_i max(0, max_j <q_i, p_j>)` over query slots i and passage slots j;
* sparse: `sum_t w_q(t) w_p(t)` over vocabulary ids t.

Every sum runs in fp32. `precision="bfloat16"` instead rounds the inputs and the products to bf16, as the published
evaluation does; it ties many passages together and is there to reproduce published runs only.

Passages are scored block by block (`late_interaction`); `best_passages` keeps the best of each query meanwhile, so its
memory does not grow with the collection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from diffretriever.errors import InputError
from diffretriever.late_interaction import SCORE_VALUES, Slots, maxsim_blocks
from diffretriever.representations import Representations

Precision = Literal["float32", "bfloat16"]
DenseMode = Literal["single", "multi"]
Array = npt.NDArray[np.generic]
#: A span of passages and the [Q, n] scores of all queries with them.
ScoreBlock = tuple[slice, torch.Tensor]


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
    block_values: int | None = None,
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
        block_values: most numbers of one block; see `late_interaction.maxsim_blocks`.

    Raises:
        InputError: when the dimensions differ or `precision` is unknown.
    """
    _check_dims(queries, passages)
    blocks = maxsim_blocks(
        Slots(queries.dense, queries.offsets),
        Slots(passages.dense, passages.offsets),
        floor=floor,
        dtype=_dtype(precision),
        device=device,
        block_values=block_values,
    )
    return _joined(blocks, len(queries), len(passages), device)


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


def best_passages(
    queries: Representations,
    passages: Representations,
    k: int,
    mode: DenseMode | Literal["sparse"] = "multi",
    *,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
) -> TopK:
    """Return the k best passages of each query by one score: score descending, then position ascending.

    Every passage takes part: one without vectors, or that shares no term, with score 0. Memory beside the two
    collections is bounded by `late_interaction.SCORE_VALUES` scores and the result.

    Args:
        queries: Q encoded queries.
        passages: N encoded passages of the same dimension.
        k: how many; fewer come back when N is smaller.
        mode: "single", "multi" (floored at 0 per query slot) or "sparse".
        precision: "float32", or "bfloat16" to round as the published evaluation does.
        device: where dense products are computed; the result lies there.

    Raises:
        InputError: when the dimensions differ, k < 1 or `precision` is unknown.
    """
    _check_dims(queries, passages)
    best = top_k(torch.zeros(len(queries), 0, device=device), k)
    for span, scores in _blocks(queries, passages, mode, precision, device):
        positions = torch.arange(span.start, span.stop, device=device).expand(len(queries), -1)
        candidates = torch.cat([best.positions, positions], dim=1)
        # The best so far come first and lie before this span, so the order of columns decides among equals.
        found = top_k(torch.cat([best.scores, scores], dim=1), k)
        best = TopK(found.scores, torch.gather(candidates, 1, found.positions))
    return best


def pooled_scores(
    queries: Array, passages: Array, *, precision: Precision = "float32", device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Return the [Q, N] fp32 dot products of pooled vectors [Q, D] and [N, D]."""
    return _joined(
        pooled_blocks(queries, passages, precision=precision, device=device), len(queries), len(passages), device
    )


def pooled_blocks(
    queries: Array, passages: Array, *, precision: Precision = "float32", device: str | torch.device = "cpu"
) -> Iterator[ScoreBlock]:
    """Yield (span of passages, [Q, n] fp32 dot products of pooled vectors [Q, D] and [N, D]), span after span.

    This is MaxSim between texts of one slot, without the floor.
    """
    left, right = (Slots(vectors, np.arange(len(vectors) + 1)) for vectors in (queries, passages))
    yield from maxsim_blocks(left, right, floor=False, dtype=_dtype(precision), device=device)


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


def _blocks(
    queries: Representations,
    passages: Representations,
    mode: DenseMode | Literal["sparse"],
    precision: Precision,
    device: str | torch.device,
) -> Iterator[ScoreBlock]:
    """Yield (span of passages, [Q, n] fp32 scores), span after span."""
    if mode == "single":
        yield from pooled_blocks(queries.pooled, passages.pooled, precision=precision, device=device)
    elif mode == "multi":
        sides = (Slots(texts.dense, texts.offsets) for texts in (queries, passages))
        yield from maxsim_blocks(*sides, floor=True, dtype=_dtype(precision), device=device)
    else:
        step = max(1, SCORE_VALUES // max(1, len(queries)))
        for start in range(0, len(passages), step):
            span = slice(start, min(start + step, len(passages)))
            scores = sparse_scores(queries.sparse, passages.sparse[span].T, precision=precision)
            yield span, torch.from_numpy(scores.toarray()).to(device)


def _joined(
    blocks: Iterable[ScoreBlock], query_count: int, passage_count: int, device: str | torch.device
) -> torch.Tensor:
    scores = torch.zeros(query_count, passage_count, device=device)
    for span, block in blocks:
        scores[:, span] = block
    return scores


def _round_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return torch.from_numpy(values).bfloat16().float().numpy()


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
