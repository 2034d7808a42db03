"""Exact search against the processor's matrix product, and the embedded engine, on clustered synthetic vectors.

    python benchmarks/search.py [--rows maxsim,engine] [--passages 20000] [--rounds 5] [--threads 1] [--out FILE]

maxsim: exact MaxSim of 1, 32 and 64 queries (K_q = 4) with memory-mapped passages (K_p = 16, fp16 and int8) against
square matrix products of as many FLOP, 2 * N * K_p * D * K_q per query, in the same dtype. The ratio is the share of
that rate. The scores must be those of a product in double precision.
engine: the median latency of single queries in the embedded engine, by mode, and what it asks the engine for; the hits
must be those of the exact backend.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from index_speed import BATCH, made
from machine import machine
from pairs import Comparison, DisagreementError, Timing, compare, print_table, timed
from records import row_of, write_record

from diffretriever.corpus import Passage
from diffretriever.index import Hit, Index, Storage
from diffretriever.index.edge.engine import EdgeEngine
from diffretriever.index.exact.vectors import Vectors
from diffretriever.index.searching import Mode
from diffretriever.late_interaction import Array, Slots, maxsim_blocks
from diffretriever.representations import Representations

DIM, PASSAGE_SLOTS, QUERY_SLOTS = 384, 16, 4
#: Side of the square matrices of the yardstick: large enough for the full rate, small enough for the cache.
SIDE = 1024
#: How far scores may be from those of a product in double precision of the same stored vectors.
AGREES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
#: Passages whose scores are checked.
CHECKED = 256


def matrix_products(flops: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """Return a call that multiplies square matrices, and a narrower one at the end, until it has done so many FLOP."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIDE, SIDE, generator=generator).to(dtype) for _ in range(2))
    rows, out = round(flops / (2 * SIDE * SIDE)), torch.empty(SIDE, SIDE, dtype=dtype)

    def call() -> torch.Tensor:
        for start in range(0, rows, SIDE):
            count = min(SIDE, rows - start)
            torch.mm(left[:count], right, out=out[:count])
        return out

    return call


def mapped(vectors: Array, storage: str, folder: Path) -> Array:
    """Return vectors as an index of that storage holds them: memory-mapped, and read block by block."""
    stored = Vectors.of(vectors.astype(np.float32), Storage(storage))
    np.save(folder / f"{storage}.npy", stored.numbers)
    numbers = np.load(folder / f"{storage}.npy", mmap_mode="r")
    return Vectors(numbers, stored.scales, stored.dim).blocks


def all_scores(queries: Slots, passages: Slots, dtype: torch.dtype) -> torch.Tensor:
    """Return the [Q, N] MaxSim scores."""
    return torch.cat([block for _, block in maxsim_blocks(queries, passages, floor=True, dtype=dtype)], dim=1)


def disagreement(queries: Slots, passages: Slots, dtype: torch.dtype, found: torch.Tensor, _: object) -> str | None:
    """Return what is wrong with the scores of the first passages, None when nothing is."""
    stored = passages.vectors[: CHECKED * PASSAGE_SLOTS].astype(np.float64)
    products = stored @ queries.vectors.astype(np.float64).T
    best = products.reshape(CHECKED, PASSAGE_SLOTS, -1, QUERY_SLOTS).max(1).clip(min=0).sum(-1).T
    worst = float(np.abs(found[:, :CHECKED].numpy() - best).max())
    return None if worst <= AGREES[dtype] else f"scores are off by {worst:.2g}, at most {AGREES[dtype]} is allowed"


def exact_maxsim(options: argparse.Namespace, folder: Path) -> list[Comparison]:
    """Return the comparisons of exact MaxSim with matrix products."""
    rng = np.random.default_rng(options.seed)
    vectors = rng.standard_normal((options.passages * PASSAGE_SLOTS, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    offsets = np.arange(options.passages + 1, dtype=np.int64) * PASSAGE_SLOTS
    asked = rng.standard_normal((64 * QUERY_SLOTS, DIM), dtype=np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    found = []
    for storage, dtype in (("float16", torch.float32), ("int8", torch.float32), ("float16", torch.bfloat16)):
        passages = Slots(mapped(vectors, storage, folder), offsets)
        for batch in (1, 32, 64):
            queries = Slots(asked[: batch * QUERY_SLOTS], np.arange(batch + 1, dtype=np.int64) * QUERY_SLOTS)
            flops = 2 * len(vectors) * DIM * batch * QUERY_SLOTS
            comparison = compare(
                f"MaxSim, {batch} queries, {storage} on disk, products in {str(dtype).removeprefix('torch.')}",
                partial(all_scores, queries, passages, dtype),
                matrix_products(flops, dtype),
                partial(disagreement, queries, passages, dtype),
                rounds=options.rounds,
            )
            found.append(comparison)
            print(comparison.row(), flush=True)
    return found


def filled(folder: Path, backend: str, representations: Representations) -> Index:
    """Return a new index of these passages."""
    passages = [Passage(f"p{i}", "some text of a passage " * 10) for i in range(len(representations))]
    index = Index.create(folder, representations, backend=backend)
    for start in range(0, len(passages), BATCH):
        part = slice(start, start + BATCH)
        index.add_representations(passages[part], representations.select(part))
    return index


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count what the embedded engine is asked for."""
    counts: Counter[str] = Counter()
    ask = EdgeEngine.ask

    def counting(engine: EdgeEngine, what: str, question: Callable[..., object]) -> object:
        counts[what] += 1
        return ask(engine, what, question)

    EdgeEngine.ask = counting  # type: ignore[method-assign,assignment]
    try:
        yield counts
    finally:
        EdgeEngine.ask = ask  # type: ignore[method-assign]


def engine(options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Measure single queries in the embedded engine and print one row per mode."""
    rng = np.random.default_rng(options.seed)
    topics = rng.standard_normal((max(1, options.passages // 50), DIM))
    representations = made(rng, options.passages, PASSAGE_SLOTS, DIM, topics)
    asked = made(rng, options.queries, QUERY_SLOTS, DIM, topics)
    # Queries are compared in the space of passages: same record of how they were made.
    asked = Representations(asked.dense, asked.offsets, asked.pooled, asked.sparse, None, representations.provenance)
    queries = [asked.select([i]) for i in range(len(asked))]
    print(
        "\n| embedded engine | p50, ms | p95, ms | requests a query | agrees with the exact backend |\n"
        "|---|---|---|---|---|"
    )
    rows: list[dict[str, object]] = []
    with (
        filled(folder / "exact", "exact", representations) as truth,
        filled(folder / "edge", "edge", representations) as index,
    ):
        for mode, exact in (("multi", True), ("multi", False), ("sparse", None), ("hybrid", True), ("hybrid", False)):
            row = _mode(index, truth, queries, mode, exact)
            rows.append(row)
            name = f"{mode}{'' if exact is None else ', exact' if exact else ', approximate'}"
            print(
                f"| {name} | {row['p50 ms']:.1f} | {row['p95 ms']:.1f} | {row['requests']:.1f} | "
                f"{row['agreement']:.3f} |",
                flush=True,
            )
    return rows


def _mode(
    index: Index, truth: Index, queries: Sequence[Representations], mode: Mode, exact: bool | None
) -> dict[str, object]:
    """Return the latency of a mode, after every query was asked once, and the share of the true ten best found."""
    search = partial(index.search, k=10, mode=mode, exact=exact)
    found = [search(query) for query in queries]
    with counted() as counts:
        times: list[Timing] = [timed(partial(search, query))[1] for query in queries]
    shares = [_share(f, truth.search(q, k=10, mode=mode, exact=True)) for f, q in zip(found, queries, strict=True)]
    agreement = float(np.mean(shares))
    if exact is not False and agreement < 0.99:
        raise DisagreementError(f"{mode}: {agreement:.3f} of the ten best are those of the exact backend")
    wall = 1000 * np.array([t.wall for t in times])
    return {
        "name": f"engine, {mode}, {'exact' if exact is not False else 'approximate'}",
        "p50 ms": float(np.median(wall)),
        "p95 ms": float(np.percentile(wall, 95)),
        "cpu ms": 1000 * float(np.median([t.cpu for t in times])),
        "requests": sum(counts.values()) / len(queries),
        "agreement": agreement,
    }


def _share(found: list[Hit], truth: list[Hit]) -> float:
    return len({h.passage_id for h in found} & {h.passage_id for h in truth}) / max(1, len(truth))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="maxsim,engine")
    parser.add_argument("--passages", type=int, default=20000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = options.rows.split(",")
    records: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as root:
        if "maxsim" in rows:
            found = exact_maxsim(options, Path(root))
            records += [row_of(c) for c in found]
            print_table(*found)
        if "engine" in rows:
            records += engine(options, Path(root))
    write_record(options.out, records, threads=options.threads, seed=options.seed, passages=options.passages)
    print(f"\n{machine('torch', 'qdrant-edge-py', 'numpy')}, {options.threads} threads, seed {options.seed}")


if __name__ == "__main__":
    main()
