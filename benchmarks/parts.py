"""What vectors of the parts of a text are worth before any training.

    python benchmarks/parts.py COLLECTION --split train --queries 300 --passages 1500

A mean-pooling encoder reads every text. Its token vectors are averaged over the whole text (one vector, what it was
trained for), or over each of K equal parts, mixed with the whole text's; MaxSim compares them. `loss.parts` teaches
slots these vectors. Prints nDCG@10 for some shares of the part in the mix. With --rarity tokens count idf^rarity in
every mean (`teacher.rarity`), document frequencies being those of the collection's passages; with --part-tokens a
passage's part has so many tokens at least (`loss.part_tokens`).
"""

from __future__ import annotations

import argparse

import torch

from diffretriever.evaluation.collections import open_collection
from diffretriever.evaluation.measures import evaluate
from diffretriever.evaluation.runs import Run, ScoredPassage
from diffretriever.systems.opening import open_system
from diffretriever.training.dev import DevCollection
from diffretriever.training.losses import maxsim
from diffretriever.training.teacher import Teacher

MEASURE = "nDCG@10"
_PARTS = 16


def main() -> None:
    """Measure every combination on one collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", help="folder in BEIR's layout")
    parser.add_argument("--split", help="judgements of which split")
    parser.add_argument("--model", default="minilm", help="a mean-pooling encoder")
    parser.add_argument("--queries", type=int, help="the first so many queries")
    parser.add_argument("--passages", type=int, help="the judged passages and the first others")
    parser.add_argument("--rarity", type=float, default=0.0, help="how strongly rare tokens count")
    parser.add_argument("--part-tokens", type=int, default=0, help="tokens of a passage's part at least")
    parser.add_argument("--shares", type=float, nargs="+", default=(0.5, 0.75, 1.0), help="shares of the part")
    arguments = parser.parse_args()
    collection = open_collection(arguments.collection, split=arguments.split)
    dev = DevCollection.of(collection, arguments.queries, arguments.passages)
    encoder = open_system(arguments.model, "diffembed", device="cpu", dtype="float32")
    queries, passages = (
        [q.text for q in dev.queries],
        [f"{p.title}. {p.text}" if p.title else p.text for p in dev.passages],
    )
    rarity = f", rarity {arguments.rarity}" if arguments.rarity else ""
    least = f", parts of {arguments.part_tokens} tokens at least" if arguments.part_tokens else ""
    print(f"{len(queries)} queries, {len(passages)} passages, {arguments.model}{rarity}{least}, float32")
    teacher = Teacher(encoder)
    teacher.weigh_tokens(passages, arguments.rarity)
    weights = teacher.token_weights
    whole, pooled = teacher.encode(queries, "query")[0], teacher.encode(passages, "passage")[0]
    print(f"  mean of all tokens on both sides         {_value(dev, whole @ pooled.T):.4f}")
    for share in arguments.shares:
        teacher = Teacher(encoder, 16, {"query": 4, "passage": _PARTS}, share, arguments.part_tokens)
        teacher.token_weights = weights
        found = [teacher.encode(t, s)[1] for t, s in ((queries, "query"), (passages, "passage"))]
        query_parts, passage_parts = (f for f in found if f is not None)
        one = _value(dev, maxsim(whole[:, None], passage_parts))
        several = _value(dev, maxsim(query_parts, passage_parts))
        print(f"  {_PARTS} parts, {share:.2f} of it the part: one query vector {one:.4f}, four {several:.4f}")


def _value(dev: DevCollection, scores: torch.Tensor) -> float:
    best = scores.topk(min(100, scores.shape[1]), dim=1)
    ids = [p.passage_id for p in dev.passages]
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    scored = [[ScoredPassage(ids[p], s) for s, p in zip(*row, strict=True)] for row in rows]
    return evaluate(Run.of([q.query_id for q in dev.queries], scored), dev.qrels, [MEASURE])[MEASURE]


if __name__ == "__main__":
    main()
