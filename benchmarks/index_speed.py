"""Latency and ingest rate of an index against the exact backend, on clustered synthetic vectors, in one run.

    python benchmarks/index_speed.py --passages 20000 --slots 4 16 --dim 384

Prints a Markdown table and what it ran on.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from machine import machine
from timing import CLOCKS, p50

from diffretriever.corpus import Passage
from diffretriever.index import Hit, Index, Storage
from diffretriever.index.manifest import Backend
from diffretriever.index.stats import disk_bytes
from diffretriever.representations import Provenance, Representations

VOCABULARY, TERMS, BATCH = 30000, 40, 500
CHOICES: tuple[tuple[Backend, Storage], ...] = (
    ("exact", Storage()),
    ("edge", Storage()),
    ("edge", Storage(codes="int8")),
    ("edge", Storage(codes="binary")),
)


def made(rng: np.random.Generator, count: int, slots: int, dim: int, topics: np.ndarray) -> Representations:
    """Return texts whose slots lie around the vectors of their topic, with terms of Zipf's frequencies."""
    of = rng.integers(0, len(topics), count)
    dense = topics[of][:, None, :] + rng.standard_normal((count, slots, dim)) * 0.8
    dense = (dense / np.linalg.norm(dense, axis=2, keepdims=True)).astype(np.float32)
    terms = np.minimum(rng.zipf(1.2, (count, TERMS)), VOCABULARY) - 1
    values = rng.random((count, TERMS)).astype(np.float32)
    rows = np.repeat(np.arange(count), TERMS)
    sparse = sp.csr_matrix((values.ravel(), (rows, terms.ravel())), shape=(count, VOCABULARY))
    return Representations(
        dense.reshape(-1, dim), np.arange(count + 1) * slots, dense.mean(axis=1), sparse, None, provenance(slots)
    )


def provenance(slots: int) -> Provenance:
    """Return a record of how these texts were made."""
    return Provenance("synthetic", "0", "none", "0", "default", "slot", 4, slots, 1, 32, 128, "float32", "0")


def rankings(index: Index, queries: Representations, k: int, exact: bool | None) -> list[list[Hit]]:
    """Return the hits of every query by MaxSim."""
    return index.search_batch(queries, k, "multi", exact=exact)


def recall(found: list[list[Hit]], truth: list[list[Hit]], k: int) -> float:
    """Return the mean share of the true k best that were found."""
    shares = [
        len({h.passage_id for h in f[:k]} & {h.passage_id for h in t[:k]}) / k
        for f, t in zip(found, truth, strict=True)
    ]
    return float(np.mean(shares))


def measure(options: argparse.Namespace, slots: int, root: Path) -> None:
    """Print one row per index for passages of some slots."""
    rng = np.random.default_rng(options.seed)
    topics = rng.standard_normal((max(1, options.passages // 50), options.dim))
    representations = made(rng, options.passages, slots, options.dim, topics)
    # Queries are compared in the space of passages: same record of how they were made.
    queries = made(rng, options.queries, 4, options.dim, topics)
    queries = Representations(
        queries.dense, queries.offsets, queries.pooled, queries.sparse, None, representations.provenance
    )
    passages = [Passage(f"p{i}", "some text of a passage " * 10) for i in range(options.passages)]
    truth: list[list[Hit]] | None = None
    for backend, storage in CHOICES:
        if options.only and f"{backend} {storage}" not in options.only:
            continue
        folder = root / f"{backend}-{storage}-{slots}"
        with Index.create(folder, representations, backend=backend, storage=storage) as index:
            now = CLOCKS[options.clock]
            started = now()
            for start in range(0, len(passages), BATCH):
                part = slice(start, start + BATCH)
                index.add_representations(passages[part], representations.select(part))
            rate = len(passages) / (now() - started)
            each = [queries.select([i]) for i in range(len(queries))]
            one = [lambda q=q: index.search(q, 100, "multi", exact=True) for q in each]
            fast = [lambda q=q: index.search(q, 100, "multi", exact=False) for q in each]
            hybrid = [lambda q=q: index.search(q, 10) for q in each]
            sparse = [lambda q=q: index.search(q, 10, "sparse") for q in each]
            times = [p50(calls, options.clock) for calls in (one, fast, hybrid, sparse)]
            found = rankings(index, queries, 100, False)
            truth = truth or rankings(index, queries, 100, True)
            add = p50(
                [
                    lambda i=i: index.add_representations(passages[i : i + 1], representations.select([i]))
                    for i in range(20)
                ],
                options.clock,
            )
            delete = p50([lambda i=i: index.delete(f"p{i}") for i in range(20)], options.clock)
        size = disk_bytes(folder) / len(passages)
        shown = " | ".join(f"{t:.1f}" for t in times)
        print(
            f"| {options.passages:,} x {slots} x {options.dim} | {backend} {storage} | {rate:,.0f} | {shown} "
            f"| {recall(found, truth, 10):.3f} / {recall(found, truth, 100):.3f} | {add:.1f} | {delete:.1f} "
            f"| {size:,.0f} |",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=20000)
    parser.add_argument("--slots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--only", nargs="+", metavar="INDEX", help="rows, such as 'edge float16, codes int8'")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what all times are of")
    options = parser.parse_args(argv)
    import torch

    torch.set_num_threads(options.threads)
    print(
        "| passages | index | added/s | MaxSim exact ms | MaxSim fast ms | hybrid ms | sparse ms "
        "| fast recall@10 / @100 | add one ms | delete one ms | bytes/passage |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as root:
        for slots in options.slots:
            measure(options, slots, Path(root))
    print(f"\n{machine('torch', 'qdrant-edge-py', 'numpy')}, seed {options.seed}")


if __name__ == "__main__":
    main()
