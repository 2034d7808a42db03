"""What each storage option costs and keeps: bytes per passage, nDCG@10, R@100, latency, on real collections.

    diffretriever encode COLLECTION/corpus.jsonl --out ENCODINGS/NAME-corpus --dtype bfloat16
    diffretriever encode COLLECTION/queries.jsonl --queries --out ENCODINGS/NAME-queries --dtype bfloat16
    python benchmarks/index_size.py COLLECTION ... --encodings ENCODINGS

COLLECTION is a folder in BEIR's layout called NAME. Prints a Markdown table, what approximate searches of several
depths find for the collection's queries, and what it ran on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from machine import machine
from timing import CLOCKS, p50

from diffretriever.corpus import Passage
from diffretriever.evaluation.collections import Collection
from diffretriever.evaluation.measures import evaluate
from diffretriever.evaluation.runs import Run
from diffretriever.index import Hit, Index, Storage
from diffretriever.index.stats import disk_bytes
from diffretriever.representations import Representations

MEASURES = ["nDCG@10", "R@100"]
BATCH, SAMPLE = 512, 512
HEAD = """
| collection | index | bytes/passage | exact nDCG@10 | R@100 | approximate nDCG@10 | R@100 | hybrid nDCG@10 | R@100 \
| exact p50 {clock} ms | approximate p50 {clock} ms |
|---|---|---|---|---|---|---|---|---|---|---|"""


def choices(dim: int) -> list[tuple[str, Storage]]:
    """Return the backends and storages that are compared."""
    edge = [Storage("float32"), Storage(), Storage(codes="int8"), Storage(codes="binary")]
    edge += [Storage(pca=dim // 2), Storage(pca=dim // 4), Storage(codes="int8", pca=dim // 2)]
    edge += [Storage(drop=0.95), Storage(drop=0.9)]
    exact = [Storage("float32"), Storage(), Storage("int8"), Storage("binary"), Storage("int8", pca=dim // 2)]
    return [*(("edge", storage) for storage in edge), *(("exact", storage) for storage in exact)]


def encoded(folder: Path) -> tuple[list[str], Representations]:
    """Return the ids and representations that `diffretriever encode` wrote."""
    parts = sorted(folder.glob("part-*"))
    ids = [i for part in parts for i in json.loads((part / "ids.json").read_text(encoding="utf-8"))]
    return ids, Representations.concatenate([Representations.load(part) for part in parts])


def measure(folder: Path, options: argparse.Namespace, root: Path) -> None:
    """Print one row per way to keep a collection, and the recalls of approximate searches of the default."""
    collection, name = Collection.load(folder), folder.name
    passage_ids, passages = encoded(options.encodings / f"{name}-corpus")
    query_ids, queries = encoded(options.encodings / f"{name}-queries")
    judged = {query.query_id for query in collection.queries}
    rows = [i for i, query_id in enumerate(query_ids) if query_id in judged][: options.queries]
    ids, queries = [query_ids[i] for i in rows], queries.select(rows)
    qrels = [qrel for qrel in collection.qrels if qrel.query_id in set(ids)]
    by_id = {passage.passage_id: passage for passage in collection.passages}
    listed = [by_id[i] for i in passage_ids]
    print(HEAD.format(clock=options.clock), flush=True)
    table = ""
    for backend, storage in choices(passages.dim):
        if backend not in options.backends or (options.only and f"{backend} {storage}" not in options.only):
            continue
        place = root / "index"
        build(place, backend, storage, listed, passages)
        with Index.open(place) as index:
            size = disk_bytes(place) / len(listed)
            each = [queries.select([i]) for i in range(min(50, len(queries)))]
            found: list[list[list[Hit]]] = [index.search_batch(queries, 100, "multi", exact=True)]
            if backend == "edge":
                index.calibrate()
                found += [index.search_batch(queries, 100, "multi", exact=False)]
            found += [index.search_batch(queries, 100, exact=backend != "edge")]
            ways = [True, False] if backend == "edge" else [True]
            times = [
                p50([lambda q=q, e=exact: index.search(q, 100, "multi", exact=e) for q in each], options.clock)
                for exact in ways
            ]
            values = [scores(ids, hits, qrels) for hits in found]
            if backend != "edge":
                values.insert(1, "- | -")
            shown = " | ".join([*(f"{t:.1f}" for t in times), *["-"] * (2 - len(times))])
            print(f"| {name} | {backend} {storage} | {size:,.0f} | {' | '.join(values)} | {shown} |", flush=True)
            if (backend, storage) == ("edge", Storage()):
                table = recalls(index, queries)
    print(f"\n{table}\n\n{len(listed):,} passages, {len(ids)} queries", flush=True)


def build(place: Path, backend: str, storage: Storage, passages: list[Passage], encoded: Representations) -> None:
    """Write an index in place of the one before."""
    spread = np.linspace(0, len(passages) - 1, min(SAMPLE, len(passages))).astype(int)
    sample = encoded.select(spread)
    with Index.create(place, encoded, backend=backend, storage=storage, sample=sample, overwrite=True) as index:
        for start in range(0, len(passages), BATCH):
            part = slice(start, start + BATCH)
            index.add_representations(passages[part], encoded.select(part))


def scores(ids: list[str], found: list[list[Hit]], qrels: list) -> str:
    """Return the measures of a run."""
    evaluation = evaluate(Run.of(ids, found, "index"), qrels, MEASURES)
    return " | ".join(f"{evaluation[measure]:.4f}" for measure in MEASURES)


def recalls(index: Index, queries: Representations) -> str:
    """Return what approximate searches of several depths find for the queries, and what was chosen."""
    calibration = index.calibrate()
    lines = ["| depth | recall@10 | recall@100 | p50 ms |", "|---|---|---|---|"]
    rows = {(row.depth, row.k): row for row in index.recalls(queries)}
    for depth in sorted({depth for depth, _ in rows}):
        one, two = rows[depth, 10], rows[depth, 100]
        lines.append(f"| {depth or 'all'} | {one.mean:.4f} | {two.mean:.4f} | {two.milliseconds:.1f} |")
    chosen = ", ".join(
        f"{calibration.depth(k, r) or 'all'} for {r} of {k}" for r in (0.9, 0.95, 0.99) for k in (10, 100)
    )
    return "\n".join([*lines, "", f"Calibrated depths, without these queries: {chosen}."])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path, help="folders in BEIR's layout")
    parser.add_argument("--encodings", type=Path, required=True, help="what `diffretriever encode` wrote")
    parser.add_argument("--queries", type=int, default=300, help="at most so many judged queries")
    parser.add_argument("--backends", nargs="+", default=["edge", "exact"])
    parser.add_argument("--only", nargs="+", metavar="INDEX", help="rows, such as 'edge float16, codes int8'")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what p50 is the median of")
    options = parser.parse_args(argv)
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as root:
        for folder in options.collections:
            measure(folder, options, Path(root) / folder.name)
    print(f"\n{machine('torch', 'qdrant-edge-py', 'numpy')}")


if __name__ == "__main__":
    main()
