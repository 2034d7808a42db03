"""Evaluation: collections with judgements, runs, and measures through ir_measures."""

from __future__ import annotations

from diffretriever.evaluation.collections import Collection, open_collection, scifact
from diffretriever.evaluation.measures import Evaluation, MeasureValue, evaluate
from diffretriever.evaluation.qrels import Qrel, read_qrels
from diffretriever.evaluation.runs import Run, ScoredPassage, read_run, write_run

__all__ = [
    "Collection",
    "Evaluation",
    "MeasureValue",
    "Qrel",
    "Run",
    "ScoredPassage",
    "evaluate",
    "open_collection",
    "read_qrels",
    "read_run",
    "scifact",
    "write_run",
]
