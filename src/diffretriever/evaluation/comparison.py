"""Comparison: several runs on the same judgements, as a versioned JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffretriever.evaluation.facts import qrels_digest, run_digest
from diffretriever.evaluation.measures import Evaluation, evaluate, parse_measures
from diffretriever.evaluation.qrels import Qrel
from diffretriever.evaluation.records import write_record
from diffretriever.evaluation.runs import Run
from diffretriever.evaluation.significance import RESAMPLES, Pair, compare

#: Version of the file's layout.
COMPARISON_SCHEMA = 1


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs.

    Attributes:
        label: its name, one of its kind.
        file: where it was read from.
        run_hash: digest of its rankings.
        unanswered: judged queries without a ranking; they count 0.
        measures: measure -> mean.
    """

    label: str
    file: str
    run_hash: str
    unanswered: int
    measures: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Several runs on the same judgements.

    Attributes:
        schema: version of this layout, `COMPARISON_SCHEMA`.
        command: the command line.
        qrels: file of the judgements.
        qrels_hash: their digest.
        queries: judged queries.
        measures: names of the measures.
        resamples: random exchanges of the randomisation test.
        seed: their seed.
        runs: the runs, in the order given.
        pairs: every pair by every measure.
    """

    schema: int
    command: str
    qrels: str
    qrels_hash: str
    queries: int
    measures: tuple[str, ...]
    resamples: int
    seed: int
    runs: tuple[ComparedRun, ...]
    pairs: tuple[Pair, ...]

    def write(self, path: Path) -> None:
        """Write the comparison as JSON, in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(self, path)


def compare_runs(
    runs: Mapping[str, Run],
    qrels: Sequence[Qrel],
    measures: Sequence[str],
    *,
    labels: Mapping[str, str] | None = None,
    qrels_source: str = "",
    baseline: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    command: str = "",
) -> tuple[Comparison, dict[str, Evaluation]]:
    """Return the comparison of runs, and the values of each, by label.

    Args:
        runs: file -> run.
        qrels: judgements of all.
        measures: names as ir_measures writes them; the first decides the order of runs in a pair.
        labels: file -> label; by default `run_labels`.
        qrels_source: file of the judgements, for the record.
        baseline: label of a run; only pairs with it.
        resamples: random exchanges of the randomisation test.
        seed: their seed.
        command: the command line, for the record.

    Raises:
        InputError: a measure is unknown, or the baseline is none of the runs.
    """
    parse_measures(measures)
    labels = labels or run_labels(runs)
    evaluations = {labels[file]: evaluate(run, qrels, measures) for file, run in runs.items()}
    judged = {q.query_id for q in qrels}
    compared = tuple(
        ComparedRun(
            labels[file],
            file,
            run_digest(run),
            len(judged - {q for q, ranking in run.rankings.items() if ranking}),
            {v.measure: v.value for v in evaluations[labels[file]].values},
        )
        for file, run in runs.items()
    )
    pairs = compare(evaluations, measures, baseline=baseline, resamples=resamples, seed=seed)
    comparison = Comparison(
        COMPARISON_SCHEMA, command, qrels_source, qrels_digest(qrels), len(judged), tuple(measures), resamples, seed,
        compared, tuple(pairs),
    )  # fmt: skip
    return comparison, evaluations


def run_labels(runs: Mapping[str, Run]) -> dict[str, str]:
    """Return a label per file: the run's tag, or its file's name or path where tags are equal."""
    for label in (lambda file: runs[file].tag, lambda file: Path(file).stem, str):
        labels = {file: label(file) for file in runs}
        if len(set(labels.values())) == len(runs):
            return labels
    return {file: file for file in runs}
