"""Evaluation: collections with judgements, runs, and measures through ir_measures."""

from __future__ import annotations

from diffretriever.evaluation.collections import Collection, Qrel, read_qrels, scifact
from diffretriever.evaluation.measures import Evaluation, MeasureValue, evaluate
from diffretriever.evaluation.runs import Run, ScoredPassage, read_run, write_run

__all__ = [
    "Collection",
    "Evaluation",
    "MeasureValue",
    "Qrel",
    "Run",
    "ScoredPassage",
    "evaluate",
    "read_qrels",
    "read_run",
    "scifact",
    "write_run",
]
