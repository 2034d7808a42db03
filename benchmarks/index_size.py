"""What each storage option costs and keeps: bytes per passage, nDCG@10, R@100, latency, on real collections.

    python benchmarks/index_size.py scifact path/to/beir-folder --model mini --cache cache

Prints a Markdown table and what it ran on. Encodings are kept in the cache folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine

from diffretriever import DiffRetriever
from diffretriever.evaluation.collections import Collection, scifact
from diffretriever.evaluation.measures import evaluate
from diffretriever.evaluation.runs import Run
from diffretriever.index import Index, Storage
from diffretriever.index.stats import disk_bytes
from diffretriever.representations import Representations

MEASURES = ["nDCG@10", "R@100"]


def storages(dim: int) -> list[tuple[str, Storage]]:
    """Return the backends and storages that are compared."""
    options = [Storage("float32"), Storage("float16"), Storage("int8"), Storage("binary")]
    options += [Storage(pca=dim // 2), Storage(pca=dim // 4), Storage(drop=0.95), Storage(drop=0.9)]
    return [("exact", Storage("float32")), *(("edge", option) for option in options)]


def encoded(model: str, name: str, collection: Collection, cache: Path) -> tuple[Representations, Representations]:
    """Return the collection's passages and queries, from the cache if they are there."""
    made = []
    encoder = None
    for side in ("passages", "queries"):
        folder = cache / f"{Path(model).name}-{name}-{side}"
        if not (folder / "representations.json").is_file():
            encoder = encoder or DiffRetriever.from_pretrained(model)
            if side == "passages":
                encoder.encode_passages(list(collection.passages)).save(folder)
            else:
                encoder.encode_queries([query.text for query in collection.queries]).save(folder)
        made.append(Representations.load(folder))
    return made[0], made[1]


def measure(name: str, collection: Collection, options: argparse.Namespace, root: Path) -> None:
    """Print one row per storage for a collection."""
    passages, queries = encoded(options.model, name, collection, options.cache)
    listed, ids = list(collection.passages), [query.query_id for query in collection.queries]
    sample = passages.select(slice(0, 512))
    for backend, storage in storages(passages.dim):
        folder = root / f"{name}-{backend}-{storage}"
        with Index.create(folder, passages, backend=backend, storage=storage, sample=sample) as index:
            index.add_representations(listed, passages)
        with Index.open(folder) as index:
            each = [queries.select([i]) for i in range(len(queries))]
            times, results = [], []
            for query in each:
                started = time.perf_counter()
                results.append(index.search(query, 100, "multi", exact=False))
                times.append(time.perf_counter() - started)
            hybrid = index.search_batch(queries, 100, exact=False)
        values = []
        for found in (results, hybrid):
            evaluation = evaluate(Run.of(ids, found, "index"), collection.qrels, MEASURES)
            values += [f"{evaluation[measure_name]:.4f}" for measure_name in MEASURES]
        size = disk_bytes(folder) / len(listed)
        p50 = 1000 * float(np.median(times))
        print(f"| {name} | {backend} {storage} | {size:,.0f} | {' | '.join(values)} | {p50:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", help="scifact, or BEIR folders")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    print(
        "| collection | index | bytes/passage | MaxSim nDCG@10 | R@100 | hybrid nDCG@10 | R@100 | MaxSim p50 ms |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as root:
        for given in options.collections:
            collection = scifact() if given == "scifact" else Collection.load(given)
            measure(Path(given).name, collection, options, Path(root))
    print(f"\n{machine('torch', 'qdrant-edge-py', 'numpy')}")


if __name__ == "__main__":
    main()
