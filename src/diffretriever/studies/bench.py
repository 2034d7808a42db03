"""Bench: how fast a model is on this machine: encoding, single queries, exact search, and all of it together.

Every round makes one call of each kind, in turn, so that a busy machine slows all of them alike. Passages and queries
are those of the bundled collection; the larger index that is searched exactly is made of random vectors.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from diffretriever.corpus import Passage
from diffretriever.evaluation.collections import scifact
from diffretriever.evaluation.records import write_record
from diffretriever.index import Index
from diffretriever.index.searching import Mode
from diffretriever.machine import Machine
from diffretriever.representations import Provenance
from diffretriever.retriever import DiffRetriever
from diffretriever.scoring import best_passages
from diffretriever.studies.searching import random_texts
from diffretriever.studies.timing import Call, Schedule, interleaved

BENCH_FILE = "bench.json"
#: Version of the file's layout.
SCHEMA = 1
#: Masked positions of the two queries compared, and queries of a batch that is searched for.
FEW, MANY, BATCH = 1, 16, 32
_QUERIES, _FOUND = 16, 10


@dataclass(frozen=True)
class BenchPlan:
    """What is measured.

    Attributes:
        passages: passages of a call that encodes, and of the index that is searched from text to hits.
        vectors: passages of the exact search.
        seed: seed of the random vectors.
    """

    passages: int = 48
    vectors: int = 20_000
    seed: int = 0


@dataclass(frozen=True)
class BenchRow:
    """One kind of call, over the rounds.

    Attributes:
        name: what it does.
        unit: of the values: "passages/s", "queries/s" or "ms".
        median: the median.
        least: the smallest.
        greatest: the greatest.
        rounds: number of timed calls.
        cpu_seconds: processor time of a call, all threads of this process together; the median.
    """

    name: str
    unit: str
    median: float
    least: float
    greatest: float
    rounds: int
    cpu_seconds: float


@dataclass(frozen=True)
class BenchResults:
    """Everything a run measured; `ratio` is query latency K = 16 / K = 1: median, least and greatest of the rounds."""

    schema: int
    created: str
    command: str
    plan: BenchPlan
    provenance: Provenance
    device: str
    rows: tuple[BenchRow, ...]
    ratio: tuple[float, float, float] | None
    loads: tuple[float | None, float | None]
    machine: Machine
    versions: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(self, path)


def measure(
    retriever: DiffRetriever, plan: BenchPlan, schedule: Schedule
) -> tuple[tuple[BenchRow, ...], tuple[float, float, float] | None]:
    """Return the rows, and the paired ratio of the latencies of queries with 16 and with 1 masked positions.

    The ratio is None for a model that learned fewer than 16 positions.
    """
    passages = list(islice(scifact().passages, plan.passages))
    queries = [query.text for query in scifact().queries[:_QUERIES]]
    with tempfile.TemporaryDirectory(prefix="diffretriever-") as folder, _filled(folder, retriever, passages) as index:
        calls, counts = _calls(retriever, plan, passages, queries, index)
        cpu: dict[str, list[float]] = {name: [] for name in calls}
        metered = {name: partial(_metered, call, cpu[name]) for name, call in calls.items()}
        seconds = interleaved(metered, schedule, retriever.backbone.device)
    rows = tuple(_row(name, seconds[name], cpu[name], counts.get(name)) for name in calls)
    few, many = _query_name(FEW), _query_name(MANY)
    if many not in seconds:
        return rows, None
    ratios = np.array(seconds[many]) / np.array(seconds[few])
    return rows, (float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


def _calls(
    retriever: DiffRetriever, plan: BenchPlan, passages: Sequence[Passage], queries: Sequence[str], index: Index
) -> tuple[dict[str, Call], dict[str, tuple[int, str]]]:
    """Return the calls by name, and for those that are counted per second: how many of what a call does."""
    slots = retriever.provenance
    generator = torch.Generator().manual_seed(plan.seed)
    there = random_texts(plan.vectors, slots.passage_slots, retriever.dim, generator)
    asked = random_texts(BATCH, slots.query_slots, retriever.dim, generator)
    encode, batch = f"encode {len(passages)} passages", f"MaxSim, {BATCH} queries, {plan.vectors:,} passages"
    calls: dict[str, Call] = {encode: lambda _: retriever.encode_passages(passages)}
    for count in (FEW, MANY):
        if (one := _with_query_slots(retriever, count)) is not None:
            calls[_query_name(count)] = partial(_encode_one, one, queries)
    calls[f"MaxSim, 1 query, {plan.vectors:,} passages"] = lambda r: best_passages(
        asked.select([r % BATCH]), there, _FOUND
    )
    calls[batch] = lambda _: best_passages(asked, there, _FOUND)
    mode: Mode = "hybrid" if retriever.vocabulary_size else "multi"
    calls[f"text to hits, {mode}, {len(passages)} passages"] = lambda r: index.search(
        queries[r % len(queries)], k=_FOUND, mode=mode
    )
    return calls, {encode: (len(passages), "passages/s"), batch: (BATCH, "queries/s")}


def _with_query_slots(retriever: DiffRetriever, count: int) -> DiffRetriever | None:
    """Return the same model with other masked positions for queries; None if it has not learned so many."""
    learned = retriever.slot_embeddings
    if learned is not None and learned.shape[1] < count:
        return None
    settings = replace(retriever.settings, query_slots=count)
    return DiffRetriever(retriever.backbone, settings, slot_embeddings=learned)


@contextmanager
def _filled(folder: str, retriever: DiffRetriever, passages: Sequence[Passage]) -> Iterator[Index]:
    with Index.create(Path(folder) / "index", retriever) as index:
        index.add(passages)
        yield index


def _query_name(slots: int) -> str:
    return f"encode 1 query, K = {slots}"


def _encode_one(retriever: DiffRetriever, queries: Sequence[str], number: int) -> object:
    return retriever.encode_queries([queries[number % len(queries)]])


def _metered(call: Call, into: list[float], number: int) -> object:
    started = time.process_time()
    found = call(number)
    into.append(time.process_time() - started)
    return found


def _row(name: str, seconds: list[float], cpu: list[float], count: tuple[int, str] | None) -> BenchRow:
    times = np.array(seconds)
    values, unit = (1000 * times, "ms") if count is None else (count[0] / times, count[1])
    # Calls before the clock ran were metered too.
    timed = cpu[-len(seconds) :]
    return BenchRow(
        name,
        unit,
        float(np.median(values)),
        float(values.min()),
        float(values.max()),
        len(times),
        float(np.median(timed)),
    )
