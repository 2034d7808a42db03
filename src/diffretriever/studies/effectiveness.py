"""Effectiveness: one row per system and mode, one column per collection, for the tables and figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffretriever.errors import InputError
from diffretriever.evaluation.results import ModeResult, Results
from diffretriever.studies.latency_results import LatencyResults


@dataclass(frozen=True)
class Entry:
    """One system in one mode on one collection."""

    results: Results
    mode: ModeResult


@dataclass(frozen=True)
class Row:
    """One system in one mode.

    Attributes:
        label: name of the system.
        mode: name of the mode.
        entries: task -> what it did there; a task is a collection, its split, and the run that was re-ranked if any.
    """

    label: str
    mode: str
    entries: Mapping[str, Entry]

    @property
    def name(self) -> str:
        """Name of the row."""
        return self.label if self.mode == "lexical" else f"{self.label} {self.mode}"

    def value(self, task: str, measure: str) -> float | None:
        """Return the mean of a measure on a task, None where it was not evaluated."""
        entry = self.entries.get(task)
        return None if entry is None else entry.mode.measures.get(measure)

    def per_query(self, task: str, measure: str) -> Mapping[str, float]:
        """Return the values of a measure per query."""
        return self.entries[task].mode.per_query[measure]


@dataclass(frozen=True)
class Board:
    """All rows of a report under one measure.

    Attributes:
        measure: the measure.
        tasks: the columns.
        rows: the rows that were evaluated under the measure on some task.
    """

    measure: str
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]

    def mean(self, row: Row) -> float | None:
        """Return the mean over all tasks, None where one is missing."""
        values = [row.value(task, self.measure) for task in self.tasks]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    def row(self, name: str) -> Row:
        """Return the row of a name.

        Raises:
            InputError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise InputError(f"no row {name!r}; there are {', '.join(row.name for row in self.rows)}")


def task_of(results: Results) -> str:
    """Return the name of what a system was judged on."""
    stage = results.task.first_stage
    name = f"{results.collection.name} {results.collection.split}"
    return name if stage is None else f"{name}, {stage.tag} top {stage.depth}"


def board(found: Sequence[Results], measure: str | None = None) -> Board:
    """Return the rows of some results.

    Args:
        found: the results.
        measure: the measure; by default the first that all results have.

    Raises:
        InputError: no measure is common, or a system was judged twice on one task and the results differ.
    """
    chosen = measure or _common_measure(found)
    rows: dict[tuple[str, str], dict[str, Entry]] = {}
    hashes: dict[str, str] = {}
    for results in found:
        task, label = task_of(results), results.system.label
        corpus = hashes.setdefault(task, results.collection.corpus_hash + results.collection.qrels_hash)
        if corpus != results.collection.corpus_hash + results.collection.qrels_hash:
            raise InputError(f"{task}: {label} was judged on another corpus or other judgements than those before it")
        for mode in results.modes:
            if chosen not in mode.measures:
                continue
            own = rows.setdefault((label, mode.mode), {})
            if task in own:
                raise InputError(f"{label} {mode.mode} was judged on {task} twice; give each result once")
            own[task] = Entry(results, mode)
    if not rows:
        raise InputError(f"no result has the measure {chosen!r}")
    return Board(chosen, tuple(hashes), tuple(Row(label, mode, own) for (label, mode), own in rows.items()))


def _common_measure(found: Sequence[Results]) -> str:
    common = [m for m in found[0].task.measures if all(m in results.task.measures for results in found)]
    if not common:
        raise InputError("the results have no measure in common; choose one by --measure")
    return common[0]


@dataclass(frozen=True)
class QueryLatency:
    """The time of one query: encoding it and searching.

    Attributes:
        ms: milliseconds, the sum of two medians.
        length: tokens of the encoded text.
        passages: passages searched.
        device: where it was measured.
    """

    ms: float
    length: int
    passages: int
    device: str


def query_latency(row: Row, measured: Sequence[LatencyResults], passages: int) -> QueryLatency | None:
    """Return the time of one query of a row, None where its encoder or its search was not measured.

    Args:
        row: a row in mode "single" or "multi".
        measured: runs of the latency study; the first that measured the system counts.
        passages: size of the index; the nearest measured one is taken.
    """
    results = next(iter(row.entries.values())).results
    provenance = results.system.provenance
    if provenance is None or row.mode not in ("single", "multi"):
        return None
    pair = (1, 1) if row.mode == "single" else (provenance.query_slots, provenance.passage_slots)
    for run in measured:
        keys = [
            s.key
            for s in run.systems
            if (s.system, s.model, s.vectors)
            == (provenance.system, Path(provenance.model).name, provenance.query_slots)
        ]
        encoding = [p for p in run.encoding if p.key in keys]
        search = [p for p in run.search if (p.query_slots, p.passage_slots) == pair and p.dim == results.system.dim]
        if encoding and search:
            short = min(encoding, key=lambda p: p.length)
            near = min(search, key=lambda p: abs(p.passages - passages))
            return QueryLatency(short.one.median_ms + near.one.median_ms, short.length, near.passages, run.device)
    return None
