"""What a model's rankings gain when each slot's vectors lose what they have in common.

    python benchmarks/centered.py mini COLLECTION --texts arxiv_title_abstract.parquet debian_docs.parquet --rows 200

The vectors that slot k of a side gives to all texts share a direction (Mu and Viswanath 2018, "All-but-the-Top"). Here
their mean over some rows of training files is taken from every slot of the collection's texts, half of it or all,
and what is left is made of length 1 again. Prints nDCG@10 of each mode without and with that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from diffretriever import DiffRetriever
from diffretriever.evaluation.collections import open_collection
from diffretriever.representations import Representations
from diffretriever.training.dev import DevCollection, measured, rankings
from diffretriever.training.rows import open_rows

MEASURE = "nDCG@10"
MODES = ("single_dense", "multi_dense", "fusion")
SHARES = (0.0, 0.5, 1.0)
#: Words of a training passage that are read: means need no long texts.
_WORDS = 140

FloatArray = npt.NDArray[np.float32]


def main() -> None:
    """Measure every mode and share on one collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="mini, a folder or a hub id")
    parser.add_argument("collection", help="folder in BEIR's layout, or scifact")
    parser.add_argument("--texts", nargs="+", required=True, help="files of training rows with queries")
    parser.add_argument("--rows", type=int, default=200, help="rows of each file, spread evenly")
    parser.add_argument("--split", help="judgements of which split")
    parser.add_argument("--queries", type=int, help="the first so many queries")
    parser.add_argument("--passages", type=int, help="the judged passages and the first others")
    arguments = parser.parse_args()
    collection = open_collection(arguments.collection, split=arguments.split, repeats="highest")
    dev = DevCollection.of(collection, arguments.queries, arguments.passages)
    model = DiffRetriever.from_pretrained(arguments.model)
    queries, passages = training_texts([Path(path) for path in arguments.texts], arguments.rows)
    means = [slot_means(model.encode_queries(queries)), slot_means(model.encode_passages(passages))]
    encoded = model.encode_queries([q.text for q in dev.queries]), model.encode_passages(list(dev.passages))
    print(f"{len(dev.queries)} queries, {len(dev.passages)} passages, means of {len(queries)} rows, {MEASURE}")
    for share in SHARES:
        sides = [center(side, share * mean) for side, mean in zip(encoded, means, strict=True)]
        values = (f"{mode} {value(dev, *sides, mode):.4f}" for mode in MODES)
        print(f"  {share:.1f} of the mean taken away: {', '.join(values)}")


def training_texts(paths: Sequence[Path], rows: int) -> tuple[list[str], list[str]]:
    """Return the queries and the first words of the passages of some rows of each file."""
    files = [open_rows(path) for path in paths]
    chosen = [f[int(i)] for f in files for i in np.linspace(0, len(f) - 1, min(rows, len(f)), dtype=int)]
    asked = [row for row in chosen if row.query is not None]
    return [row.query for row in asked if row.query], [" ".join(r.positives[0].split()[:_WORDS]) for r in asked]


def slot_means(texts: Representations) -> FloatArray:
    """Return the mean vector [K, D] of each slot over texts that all have K slots."""
    slots = int(texts.offsets[1])
    return texts.dense.reshape(len(texts), slots, -1).mean(axis=0)


def center(texts: Representations, means: FloatArray) -> Representations:
    """Return texts whose slots have lost the means [K, D]; vectors and their pooled mean have length 1."""
    moved = _unit(texts.dense.reshape(len(texts), *means.shape) - means)
    return replace(texts, dense=moved.reshape(texts.dense.shape), pooled=_unit(moved.mean(axis=1)))


def value(dev: DevCollection, queries: Representations, passages: Representations, mode: str) -> float:
    """Return the measure of a mode."""
    ids = [p.passage_id for p in dev.passages]
    return measured(rankings(queries, passages, ids, mode, torch.device("cpu")), dev, MEASURE)


def _unit(vectors: FloatArray) -> FloatArray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(min=1e-6)


if __name__ == "__main__":
    main()
