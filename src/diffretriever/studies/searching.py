"""Searching: the latency of an exact search against the size of the index, over random vectors.

On a CPU it is the package's own exact search of arrays in memory. On a GPU the vectors lie on the device, which that
search does not assume: there it is the same product, maximum and sum over resident vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from diffretriever.representations import Provenance, Representations
from diffretriever.scoring import DenseMode, best_passages
from diffretriever.studies.latency_results import SearchPoint
from diffretriever.studies.timing import Schedule, Timing, interleaved

#: Passages found per query.
_FOUND = 10
#: Different queries, taken in turn.
_QUERIES = 16
#: Most similarities held at once.
_SIMILARITIES = 1 << 28


@dataclass(frozen=True)
class SearchPlan:
    """What is searched.

    Attributes:
        dim: D.
        slots: pairs (K_q, K_p); (1, 1) is the single-vector search.
        sizes: numbers of passages.
        batch: queries of a larger call.
        seed: seed of the vectors.
    """

    dim: int
    slots: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    batch: int
    seed: int

    def bytes_of(self, passage_slots: int, passages: int, dtype: torch.dtype) -> int:
        """Return the memory of the vectors of an index."""
        return passages * passage_slots * self.dim * dtype.itemsize


def measure_search(
    plan: SearchPlan,
    schedule: Schedule,
    device: torch.device,
    skipped: list[str],
) -> Iterator[SearchPoint]:
    """Yield one point per pair and size, smallest first; what does not fit into memory is left out and said.

    The pairs of one size take turns, so that they are compared under the same conditions.

    Args:
        plan: what is searched.
        schedule: how often.
        device: where the vectors lie.
        skipped: gets a line per point that does not fit.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for passages in sorted(plan.sizes):
        for pair in plan.slots:
            need, free = plan.bytes_of(pair[1], passages, dtype), free_bytes(device)
            if 1.3 * need > free:
                sizes = f"{need / 1e9:.1f} GB of vectors, {free / 1e9:.1f} GB of memory free"
                skipped.append(f"search of {passages:,} passages with {pair}: {sizes}")
            else:
                yield _point(plan, pair, passages, schedule, device, dtype)


def _point(
    plan: SearchPlan,
    pair: tuple[int, int],
    passages: int,
    schedule: Schedule,
    device: torch.device,
    dtype: torch.dtype,
) -> SearchPoint:
    generator = torch.Generator(device).manual_seed(plan.seed)
    index = _unit(passages * pair[1], plan.dim, generator, dtype).view(passages, pair[1], plan.dim)
    queries = _unit(_QUERIES * pair[0], plan.dim, generator, dtype).view(_QUERIES, pair[0], plan.dim)
    many = queries.repeat(-(-plan.batch // _QUERIES), 1, 1)[: plan.batch]
    search = _resident(index) if device.type == "cuda" else _in_memory(index, "single" if pair == (1, 1) else "multi")
    with torch.inference_mode():
        times = interleaved(
            {"one": lambda r: search(queries[r % _QUERIES][None]), "many": lambda _: search(many)}, schedule, device
        )
    return SearchPoint(
        variant="single" if pair == (1, 1) else "multi",
        query_slots=pair[0],
        passage_slots=pair[1],
        dim=plan.dim,
        passages=passages,
        vector_bytes=plan.bytes_of(pair[1], passages, dtype),
        one=Timing.of(times["one"]),
        batch=plan.batch,
        queries_per_second=1000 * plan.batch / Timing.of(times["many"]).median_ms,
    )


def _in_memory(index: torch.Tensor, mode: DenseMode) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the package's exact search of vectors [N, K_p, D] in the memory of the CPU."""
    passages = _representations(index)
    return lambda queries: best_passages(_representations(queries), passages, _FOUND, mode).positions


def _resident(index: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return an exact search of vectors [N, K_p, D] that lie on a GPU; the result comes to the CPU."""
    return lambda queries: best(queries, index, _FOUND).cpu()


def random_texts(count: int, slots: int, dim: int, generator: torch.Generator) -> Representations:
    """Return texts of random unit vectors [count * slots, dim] in fp32, without terms."""
    return _representations(_unit(count * slots, dim, generator, torch.float32).view(count, slots, dim))


def _representations(vectors: torch.Tensor) -> Representations:
    """Return texts with these vectors [N, K, D], without copying them, and without terms."""
    count, slots, dim = vectors.shape
    nothing = Provenance("random", "", "", "", "default", "slot", slots, slots, 1, 1, 1, "float32", "")
    return Representations(
        dense=vectors.reshape(-1, dim).numpy(),
        offsets=np.arange(count + 1, dtype=np.int64) * slots,
        pooled=vectors[:, 0].numpy() if slots == 1 else vectors.mean(1).numpy(),
        sparse=sp.csr_matrix((count, 0), dtype=np.float32),
        words=None,
        provenance=nothing,
    )


def best(queries: torch.Tensor, index: torch.Tensor, k: int) -> torch.Tensor:
    """Return the positions [Q, k] of the best passages by MaxSim, the product of the vectors where all are single.

    Args:
        queries: [Q, K_q, D] unit vectors.
        index: [N, K_p, D] unit vectors on the same device.
        k: passages per query.
    """
    rows = queries.reshape(-1, queries.shape[-1])
    parts = []
    for block in torch.split(index, max(1, _SIMILARITIES // (len(rows) * index.shape[1]))):
        similarities = (block.reshape(-1, block.shape[-1]) @ rows.T).view(len(block), -1, len(rows))
        nearest = similarities.amax(1).clamp_min(0.0)
        parts.append(nearest.view(len(block), len(queries), -1).sum(-1, dtype=torch.float32))
    return torch.cat(parts).T.topk(min(k, len(index)), dim=1).indices


def _unit(count: int, dim: int, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Return random unit vectors, made piece by piece: no fp32 copy of all of them is ever held."""
    vectors = torch.empty(count, dim, dtype=dtype, device=generator.device)
    for piece in torch.split(vectors, 1 << 16):
        piece.normal_(generator=generator)
        piece.copy_(torch.nn.functional.normalize(piece.float(), dim=-1))
    return vectors


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 40


def default_sizes(device: torch.device) -> Sequence[int]:
    """Return the sizes that a laptop, or a GPU, searches in reasonable time."""
    return (10_000, 100_000, 1_000_000) if device.type == "cuda" else (1_000, 10_000, 50_000)
