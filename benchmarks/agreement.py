"""Rank agreement of dtypes: what bf16, or fp8 weights, change in rankings against fp32.

    python benchmarks/agreement.py [MODEL] [--collection scifact] [--passages 1500] [--dtypes float32,bfloat16]

Every dtype encodes the same queries and passages (all judged passages, then others, as in the corpus) and ranks
them by each mode. Printed are the share of the ten best in common, the share of queries with the same best passage,
Kendall's tau of the common ones, and the difference in nDCG@10, all against the first dtype. Encodings are kept in
`--encodings`, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from machine import machine
from records import write_record

from diffretriever.corpus import Passage
from diffretriever.evaluation import Collection, Run, evaluate
from diffretriever.evaluation.agreement import rank_agreement
from diffretriever.evaluation.collections import open_collection
from diffretriever.evaluation.encodings import Encodings
from diffretriever.evaluation.exhaustive import EncodedSearcher
from diffretriever.evaluation.facts import CorpusFacts
from diffretriever.evaluation.runs import ScoredPassage
from diffretriever.fusion import Ranking, fuse
from diffretriever.systems.opening import open_system

DEPTH, MEASURE = 100, "nDCG@10"


def some_passages(collection: Collection, count: int) -> list[Passage]:
    """Return the judged passages of a collection, and others up to a number."""
    judged = {qrel.passage_id for qrel in collection.qrels}
    passages = list(collection.passages)
    first = [p for p in passages if p.passage_id in judged]
    return (first + [p for p in passages if p.passage_id not in judged])[: max(count, len(first))]


def runs(model: str, dtype: str, collection: Collection, passages: list[Passage], root: Path) -> dict[str, Run]:
    """Return the run of every mode, in one dtype."""
    encoder, facts = open_system(model, dtype=dtype), CorpusFacts.of(passages)
    encodings = Encodings.open(root, encoder, facts)
    encodings.fill(encoder, passages, progress=True)
    searcher = EncodedSearcher(encoder, encodings, facts, progress=True)
    found: dict[str, list[Ranking]] = {
        mode: searcher.search(collection.queries, DEPTH, mode) for mode in searcher.modes
    }
    if {"multi", "sparse"} <= found.keys():
        found["hybrid"] = [fuse(d, s) for d, s in zip(found["multi"], found["sparse"], strict=True)]
    ids = [query.query_id for query in collection.queries]
    return {
        mode: Run.of(ids, [list(map(ScoredPassage, r.passage_ids, r.scores.tolist())) for r in rankings], mode)
        for mode, rankings in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row per dtype and mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="mini")
    parser.add_argument("--collection", default="scifact", help="what `evaluate --collection` takes")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--passages", type=int, default=1500)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--encodings", type=Path, default=Path("agreement"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    whole = open_collection(options.collection)
    kept = {query.query_id for query in whole.queries[: options.queries]}
    collection = replace(
        whole,
        queries=whole.queries[: options.queries],
        qrels=[qrel for qrel in whole.qrels if qrel.query_id in kept],
    )
    passages = some_passages(collection, options.passages)
    reference, *others = options.dtypes.split(",")
    wanted = runs(options.model, reference, collection, passages, options.encodings)
    print(f"{len(collection.queries)} queries, {len(passages):,} passages of {collection.name}\n")
    print(f"| against {reference} | top 10 in common | same best | tau | {MEASURE} | in {reference} |")
    print("|---|---|---|---|---|---|", flush=True)
    rows: list[dict[str, object]] = []
    for dtype in others:
        found = runs(options.model, dtype, collection, passages, options.encodings)
        for mode, run in found.items():
            alike = rank_agreement(wanted[mode], run)
            values = [evaluate(r, collection.qrels, [MEASURE])[MEASURE] for r in (run, wanted[mode])]
            rows.append({"name": f"{dtype} against {reference}, {mode}", **asdict(alike), MEASURE: values})
            print(
                f"| {dtype}, {mode} | {alike.overlap:.4f} | {alike.first:.4f} | {alike.tau:.4f} | {values[0]:.4f} | "
                f"{values[1]:.4f} |",
                flush=True,
            )
    write_record(options.out, rows, model=options.model, passages=len(passages), threads=options.threads)
    print(f"\n{machine('torch', 'transformers', 'ir_measures')}")


if __name__ == "__main__":
    main()
