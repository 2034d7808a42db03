"""The command evaluate: a system on collections, to runs, measures and a stamped results file."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import typer

from diffretriever.cli import evaluation_options as ev
from diffretriever.cli import options as opt
from diffretriever.cli.console import message, result, show, size_text, time_text
from diffretriever.cli.estimating import encoding_estimate
from diffretriever.cli.systems import SystemOptions, scoring_device
from diffretriever.errors import InputError
from diffretriever.json_files import differences

if TYPE_CHECKING:
    from rich.table import Table

    from diffretriever.evaluation.collections import Collection
    from diffretriever.evaluation.experiment import Experiment
    from diffretriever.evaluation.plan import Plan
    from diffretriever.evaluation.results import Coverage, Results


#: Passages whose encoding takes so long that an estimate, which encodes some, is welcome.
_WORTH_AN_ESTIMATE = 256
_MODES = ("single", "multi", "sparse", "hybrid", "hybrid-single", "lexical")


def evaluate(
    model: ev.Model,
    collection: ev.Collections,
    out: ev.Out,
    split: ev.Split = None,
    topics: ev.Topics = None,
    topic_field: ev.Field = ev.TopicField.TITLE,
    qrels: ev.Qrels = None,
    repeats: ev.RepeatsOption = ev.Repeats.REFUSE,
    own_ids: ev.OwnIdsOption = ev.OwnIds.AUTO,
    modes: ev.Modes = None,
    measures: ev.Measures = None,
    k: ev.Depth = 1000,
    rerank: ev.Rerank = None,
    depth: ev.RerankDepth = 100,
    alpha: opt.Alpha = 0.5,
    fusion: opt.Fusion = opt.FusionMethod.MINMAX,
    idf: opt.IdfOption = opt.IdfSource.COLLECTION,
    label: ev.Label = None,
    encodings: ev.Encodings = None,
    estimate: ev.Estimate = False,
    overwrite: ev.Overwrite = False,
    seed: ev.Seed = 0,
    system: ev.System = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch_tokens: opt.BatchTokens = None,
    query_slots: opt.QuerySlots = None,
    passage_slots: opt.PassageSlots = None,
    prompt: opt.PromptOption = None,
    protocol: opt.ProtocolOption = None,
    readout: opt.ReadoutOption = None,
    steps: opt.Steps = None,
    max_query_length: opt.MaxQueryLength = None,
    max_passage_length: opt.MaxPassageLength = None,
    devices: opt.Devices = None,
    k1: ev.K1 = 0.9,
    b: ev.B = 0.4,
) -> None:
    """Evaluate MODEL on collections; the same command goes on after an interruption.

    Writes OUT/COLLECTION.SPLIT/LABEL/results.json and one TREC run per mode beside it.
    """
    if not estimate:
        _require_measures()
    if (topics or qrels) and len(collection) > 1:
        raise typer.BadParameter("--topics and --qrels belong to one collection; give one --collection")
    plan = _plan(modes, measures, k, own_ids, fusion, alpha, idf, rerank, depth, seed)
    choice = SystemOptions(
        model, device, dtype, batch_tokens, query_slots, passage_slots, prompt, protocol, readout, steps, system,
        max_query_length, max_passage_length, devices, k1, b,
    )  # fmt: skip
    opened = _collections(collection, split, topics, topic_field, qrels, repeats)
    experiments = _experiments(choice, label or choice.label, plan, opened, encodings or out / "encodings")
    if estimate:
        for experiment in experiments:
            _say_estimate(experiment, always=True)
        return
    show_results([_evaluate(experiment, out, overwrite=overwrite) for experiment in experiments])


def _require_measures() -> None:
    """Raise before hours of encoding, not after, where nothing can be measured."""
    from diffretriever.evaluation.measures import require_ir_measures

    require_ir_measures()


def _plan(
    modes: str | None,
    measures: str | None,
    k: int,
    own_ids: ev.OwnIds,
    fusion: opt.FusionMethod,
    alpha: float,
    idf: opt.IdfSource,
    rerank: Path | None,
    depth: int,
    seed: int,
) -> Plan:
    from diffretriever.evaluation.plan import Plan, Rerank
    from diffretriever.evaluation.runs import read_run

    return Plan(
        modes=names_of(modes, _MODES),
        depth=k,
        measures=names_of(measures),
        own_ids=own_ids.value,
        fusion=fusion.value,
        alpha=alpha,
        idf=idf.value,
        rerank=None if rerank is None else Rerank(read_run(rerank), str(rerank), depth),
        seed=seed,
    )


def _collections(
    sources: Sequence[str],
    split: str | None,
    topics: Path | None,
    field: ev.TopicField,
    qrels: Path | None,
    repeats: ev.Repeats,
) -> list[Collection]:
    from diffretriever.evaluation.collections import open_collection

    return [
        open_collection(s, split, topics=topics, qrels=qrels, topic_field=field.value, repeats=repeats.value)
        for s in sources
    ]


def names_of(given: str | None, known: Sequence[str] | None = None) -> tuple[str, ...] | None:
    """Return the names of a list with commas, each once."""
    if given is None:
        return None
    # A comma inside parentheses belongs to a measure, such as Judged(rel=1)@10 or RBP(p=0.8,rel=1).
    names = tuple(dict.fromkeys(name.strip() for name in re.split(r",(?![^()]*\))", given) if name.strip()))
    for name in names:
        if known is not None and name not in known:
            raise typer.BadParameter(f"no mode {name!r}; choose from {', '.join(known)}")
    return names


def _experiments(
    choice: SystemOptions, label: str, plan: Plan, collections: Sequence[Collection], encodings: Path
) -> list[Experiment]:
    from diffretriever.evaluation.experiment import Experiment

    system = choice.open()
    device = scoring_device(system)
    made = [
        Experiment(label, choice.model, system, c, plan, encodings, device=device, progress=True) for c in collections
    ]
    if plan.modes and (left_out := [mode for mode in plan.modes if mode not in made[0].modes]):
        message(f"{label} offers no {', '.join(left_out)}: left out")
    return made


def _evaluate(experiment: Experiment, out: Path, *, overwrite: bool) -> Results:
    """Return the results of an experiment: those that are there if they answer the same question."""
    from diffretriever.evaluation.results import RESULTS_FILE, Results

    folder = out / experiment.task_name / experiment.label
    if (folder / RESULTS_FILE).is_file() and not overwrite:
        there = Results.read(folder)
        if there.question.is_that_of(experiment.question):
            message(f"{folder}: done already")
            return there
        different = differences(*(q.by_content()._asdict() for q in (there.question, experiment.question)))
        raise InputError(
            f"{folder} holds the results of another question ({different[0]}); replace them by "
            "--overwrite, or give another --label or --out"
        )
    corpus, queries = len(experiment.corpus), len(experiment.collection.queries)
    message(f"{experiment.task_name}: {corpus:,} passages, {queries:,} queries")
    _say_estimate(experiment)
    results = experiment.run(folder, command=shlex.join(["diffretriever", *sys.argv[1:]]))
    for line in coverage_lines(results.coverage):
        message(f"{experiment.task_name}: {line}")
    times = results.times
    if times.encoded_passages:
        rate = times.encoded_passages / max(times.encode_passages_seconds, 1e-9)
        done = "indexed" if experiment.encodings is None else "encoded"
        message(f"{done} in {time_text(times.encode_passages_seconds)}, {rate:,.0f} passages a second")
    message(f"{folder}: written")
    return results


def _say_estimate(experiment: Experiment, *, always: bool = False) -> None:
    """Say what encoding the missing passages will take, before it starts; of a few only if `always`."""
    from diffretriever.encoder import Encoder

    encodings = experiment.encodings
    if encodings is None or not isinstance(experiment.system, Encoder):
        return
    missing = sum(rows.stop - rows.start for rows in encodings.missing())
    there = len(experiment.pool) - missing
    if not missing:
        message(f"{experiment.task_name}: all {there:,} passages are encoded already")
        return
    if missing < _WORTH_AN_ESTIMATE and not always:
        return
    found = encoding_estimate(experiment.system, experiment.passages(), len(experiment.pool))
    share = missing / len(experiment.pool)
    message(
        f"{experiment.task_name}: {missing:,} passages to encode"
        + (f", {there:,} are there already" if there else "")
        + f"; about {time_text(found.seconds * share)}, and {size_text(found.bytes * share)} in {encodings.folder}"
    )


def coverage_lines(coverage: Coverage) -> list[str]:
    """Return a sentence per count that is not 0."""
    sentences = {
        "unjudged_queries": "{:,} queries have no judgement in this split and were not asked",
        "queries_without_text": "{:,} judged queries are not in the collection and count 0",
        "queries_without_relevant": "{:,} judged queries have no relevant passage and count 0",
        "judged_passages_missing": "{:,} judged passages are not in the corpus",
        "relevant_passages_missing": "{:,} of these are relevant, and nobody can find them",
        "listed_passages_missing": "{:,} passages of the run are not in the corpus and were left out",
        "queries_without_candidates": "{:,} judged queries have no ranking in the run and count 0",
    }
    counts = asdict(coverage)
    return [text.format(counts[name]) for name, text in sentences.items() if counts[name]]


def show_results(results: Sequence[Results]) -> None:
    """Show one table per collection, and the mean over several collections."""
    from rich.table import Table

    for each in results:
        c = each.collection
        first = "" if each.task.first_stage is None else f", re-ranking {Path(each.task.first_stage.run).name}"
        result(f"\n{each.system.label} on {c.name} {c.split}{first}")
        table = Table()
        _fill(table, each.task.measures, [(m.mode, m.measures) for m in each.modes])
        show(table)
    measures = [m for m in results[0].task.measures if all(m in r.task.measures for r in results)]
    if len(results) > 1 and measures:
        result(f"\n{results[0].system.label}, mean of {len(results)} collections")
        table = Table()
        modes = [m.mode for m in results[0].modes]
        means = [{m: mean(r.mode(mode).measures[m] for r in results) for m in measures} for mode in modes]
        _fill(table, measures, list(zip(modes, means, strict=True)))
        show(table)


def _fill(table: Table, measures: Sequence[str], rows: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    table.add_column("mode")
    for measure in measures:
        table.add_column(measure, justify="right")
    for mode, values in rows:
        table.add_row(mode, *(f"{values[measure]:.4f}" for measure in measures))
