"""The command bench: how fast a model encodes and searches on this machine."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli import options as opt
from diffretriever.cli.console import message, result, show, size_text
from diffretriever.cli.models import ModelOptions
from diffretriever.errors import InputError

if TYPE_CHECKING:
    from diffretriever.studies.bench import BenchResults


def bench(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="mini (shipped), a folder, an alias or a hub id.")
    ] = "mini",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the results as JSON.", show_default=False)
    ] = None,
    passages: Annotated[int, typer.Option(min=1, help="Passages of a call that encodes.")] = 48,
    vectors: Annotated[int, typer.Option(min=1, help="Passages of the exact search.")] = 20_000,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each kind.")] = 7,
    seconds: Annotated[float, typer.Option(min=0, help="Stop after this time, but not before 3 rounds.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Seed of the random vectors.")] = 0,
    as_json: opt.AsJson = False,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch_tokens: opt.BatchTokens = None,
    query_slots: opt.QuerySlots = None,
    passage_slots: opt.PassageSlots = None,
) -> None:
    """Measure how fast MODEL is here, in a minute or two; OMP_NUM_THREADS sets the number of threads."""
    from diffretriever.machine import Machine, versions
    from diffretriever.retriever import DiffRetriever
    from diffretriever.studies.bench import SCHEMA, BenchPlan, BenchResults, measure
    from diffretriever.studies.timing import Schedule

    retriever = ModelOptions(model, device, dtype, batch_tokens, query_slots, passage_slots).load()
    if not isinstance(retriever, DiffRetriever):
        raise InputError(
            f"{model} is opened as {retriever.provenance.system}, which has no masked positions to vary; "
            "`latency` measures it"
        )
    plan = BenchPlan(passages, vectors, seed)
    before = Machine.here()
    message(f"{before.processor}, {before.cores} cores, threads: {before.threads}; rounds of every call, in turn")
    rows, ratio = measure(retriever, plan, Schedule(rounds, 1, seconds))
    machine = Machine.here()
    measured = BenchResults(
        schema=SCHEMA,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["diffretriever", *sys.argv[1:]]),
        plan=plan,
        provenance=retriever.provenance,
        device=str(retriever.backbone.device),
        rows=rows,
        ratio=ratio,
        loads=(before.load, machine.load),
        machine=machine,
        versions=versions(),
    )
    if out is not None:
        measured.write(out)
        message(f"{out}: written")
    if as_json:
        result(json.dumps(asdict(measured), indent=1))
    else:
        _show(measured)


def _show(measured: BenchResults) -> None:
    from rich.table import Table

    table = Table("call", "median", "least", "greatest", "unit", "CPU s")
    for row in measured.rows:
        values = (f"{v:,.1f}" for v in (row.median, row.least, row.greatest))
        table.add_row(row.name, *values, row.unit, f"{row.cpu_seconds:.3f}")
    show(table)
    if measured.ratio is not None:
        median, least, greatest = measured.ratio
        result(f"one query, K = 16 / K = 1: {median:.2f} ({least:.2f} to {greatest:.2f}), of the same round")
    made, machine = measured.provenance, measured.machine
    packages = ", ".join(f"{name} {measured.versions[name]}" for name in ("torch", "transformers", "numpy"))
    loads = " to ".join("?" if load is None else f"{load:.1f}" for load in measured.loads)
    result(f"{made.model}, K = ({made.query_slots}, {made.passage_slots}), {made.dtype} on {measured.device}")
    result(
        f"{machine.accelerator or machine.processor}, {machine.cores} cores, {size_text(machine.memory_bytes)}, "
        f"threads: {machine.threads}, load {loads}; {packages}"
    )
