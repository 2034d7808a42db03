"""MaxSim in the embedded engine against fast-plaid, the engine of PyLate, on the same clustered synthetic vectors.

    python benchmarks/plaid.py [--passages 20000] [--rounds 5] [--threads 1] [--out FILE]

Both find the ten best of single queries (K_q = 4) among passages (K_p = 16, 384 dimensions); each round asks all
queries of both. Both are approximate, so printed is also the share of the truly ten best that each finds. fast-plaid
1.4.6 and 1.7.0 need a torch below the one that this package is tested with: pip install it, the package and
qdrant-edge-py into an environment of their own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from index_speed import made
from machine import machine
from pairs import compare, print_table
from records import row_of, write_record
from search import DIM, PASSAGE_SLOTS, QUERY_SLOTS, filled

from diffretriever.representations import Representations
from diffretriever.scoring import best_passages

#: Share of the truly ten best that a side must find for its time to mean anything.
LEAST_RECALL = 0.5


def recall(found: Sequence[Sequence[int]], truth: torch.Tensor) -> float:
    """Return the mean share of the true best that were found."""
    return float(np.mean([len(set(f) & set(t)) / len(t) for f, t in zip(found, truth.tolist(), strict=True)]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=20000)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args(arguments)
    try:
        from fast_plaid.search import FastPlaid
    except ImportError:
        raise SystemExit("fast-plaid is not installed here: pip install fast-plaid") from None
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(options.seed)
    topics = rng.standard_normal((max(1, options.passages // 50), DIM))
    passages = made(rng, options.passages, PASSAGE_SLOTS, DIM, topics)
    asked = made(rng, options.queries, QUERY_SLOTS, DIM, topics)
    asked = Representations(asked.dense, asked.offsets, asked.pooled, asked.sparse, None, passages.provenance)
    queries = [asked.select([i]) for i in range(len(asked))]
    truth = best_passages(asked, passages, 10).positions
    with tempfile.TemporaryDirectory() as root, filled(Path(root) / "edge", "edge", passages) as index:
        plaid = FastPlaid(index=str(Path(root) / "plaid"), device="cpu")
        plaid.create(documents_embeddings=[torch.tensor(passages.vectors(i)) for i in range(len(passages))])
        tensors = [torch.tensor(query.vectors(0))[None] for query in queries]

        def ours() -> list[list[int]]:
            return [[int(h.passage_id[1:]) for h in index.search(q, 10, "multi", exact=False)] for q in queries]

        def theirs() -> list[list[int]]:
            return [[place for place, _ in plaid.search(queries_embeddings=t, top_k=10)[0]] for t in tensors]

        shares = {"ours": recall(ours(), truth), "fast-plaid": recall(theirs(), truth)}

        def check(mine: list[list[int]], other: list[list[int]]) -> str | None:
            worst = min(recall(mine, truth), recall(other, truth))
            return None if worst >= LEAST_RECALL else f"a side finds {worst:.2f} of the ten best"

        name = f"fast-plaid, {len(queries)} single queries, {options.passages:,} passages"
        comparison = compare(name, ours, theirs, check, rounds=options.rounds)
    print_table(comparison)
    print("\nfound of the ten best: " + ", ".join(f"{side} {share:.3f}" for side, share in shares.items()))
    write_record(
        options.out, [{**row_of(comparison), "recall": shares}], threads=options.threads, passages=options.passages
    )
    print(f"\n{machine('torch', 'fast-plaid', 'qdrant-edge-py', 'numpy')}, {options.threads} threads")


if __name__ == "__main__":
    main()
