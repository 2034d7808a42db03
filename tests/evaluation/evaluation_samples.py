from __future__ import annotations

from diffretriever.evaluation.results import (
    SCHEMA,
    CollectionStamp,
    Coverage,
    FirstStage,
    ModeResult,
    Results,
    SystemStamp,
    Task,
    Times,
)
from diffretriever.machine import Machine, versions
from diffretriever.representations import Provenance


def some_results():
    provenance = Provenance(
        model="m",
        fingerprint="f",
        prompt="few",
        prompt_hash="h",
        protocol="default",
        readout="slot",
        query_slots=4,
        passage_slots=16,
        steps=1,
        max_query_length=32,
        max_passage_length=128,
        dtype="float32",
        version="0",
    )
    return Results(
        schema=SCHEMA,
        created="2026-01-01T00:00:00+00:00",
        command="diffretriever evaluate m",
        seed=1,
        system=SystemStamp("m", "some/m", "encoder", provenance, {"k1": 0.9, "stemmer": None, "lower": True}, 64),
        collection=CollectionStamp("c", "test", "c", "c/qrels/test.tsv", 20, 2, 3, "a", "b", "c"),
        task=Task(100, "kept", ("nDCG@10",), FirstStage("bm25.trec", "BM25", "d", 100, 20)),
        coverage=Coverage(1, 0, 0, 0, 0),
        modes=(ModeResult("multi", "multi.trec", 0, 0.25, {"nDCG@10": 0.5}, {"nDCG@10": {"1": 0.0, "2": 1.0}}),),
        times=Times(1.5, 20, 0, 0.1, 12345),
        machine=Machine.here(),
        versions=versions(),
    )
