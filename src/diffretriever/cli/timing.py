"""The command latency: how long encoding and searching take."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from diffretriever.cli import options as opt
from diffretriever.cli import study_options as given
from diffretriever.cli.console import message, show, time_text
from diffretriever.cli.study_options import numbers, pairs
from diffretriever.errors import InputError

if TYPE_CHECKING:
    import torch

    from diffretriever.studies.contenders import Contender
    from diffretriever.studies.latency import EncodingPlan
    from diffretriever.studies.latency_results import LatencyResults
    from diffretriever.studies.searching import SearchPlan
    from diffretriever.studies.timing import Schedule


def latency(
    models: given.Models = None,
    shape: given.Shape = None,
    out: given.LatencyOut = Path("latency"),
    lengths: given.Lengths = "30,100,200,400,800",
    slots: given.Slots = "1,4,16",
    answers: given.Answers = "1,4,20",
    batch: given.Batch = None,
    sizes: given.Sizes = None,
    search_slots: given.SearchSlots = "1:1,4:4,4:16",
    rounds: given.Rounds = 20,
    seconds: given.Seconds = 60.0,
    seed: given.Seed = 1,
    threads: given.Threads = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
) -> None:
    """Measure encoding against the length of the text, and searching against the size of the index."""
    import torch

    from diffretriever.studies.latency import EncodingPlan
    from diffretriever.studies.searching import SearchPlan, default_sizes
    from diffretriever.studies.timing import Schedule

    if not models and not shape:
        raise typer.BadParameter("give a MODEL or --shape NAME")
    if threads is not None:
        torch.set_num_threads(threads)
    contenders = _contenders(models or [], shape or [], numbers(slots), numbers(answers), device, dtype, seed)
    where = contenders[0].encoder.backbone.device
    many = batch or (32 if where.type == "cuda" else 8)
    plan = EncodingPlan(tuple(numbers(lengths)), many, seed)
    wanted = default_sizes(where) if sizes is None else [size for size in numbers(sizes, least=0) if size]
    widths = sorted({c.encoder.dim for c in contenders})
    searches = [SearchPlan(dim, tuple(pairs(search_slots)), tuple(wanted), many, seed) for dim in widths]
    measured = _measure(contenders, plan, searches, Schedule(rounds, 2, seconds), where, out)
    path = measured.write(out)
    _show(measured)
    message(f"{path}: {len(measured.encoding)} points of encoding, {len(measured.search)} of searching")


def _contenders(
    models: Sequence[str],
    shapes: Sequence[str],
    slots: Sequence[int],
    answers: Sequence[int],
    device: str | None,
    dtype: str | None,
    seed: int,
) -> list[Contender]:
    from diffretriever.backbones.hardware import device_named
    from diffretriever.pretrained import dtype_named
    from diffretriever.studies.contenders import loaded, shaped

    found: list[Contender] = []
    for name in models:
        found += loaded(name, slots, answers, device, dtype)
    for name in shapes:
        found += shaped(name, slots, answers, device_named(device), dtype_named(dtype), seed)
    if not found:
        raise InputError(f"no model has {' or '.join(map(str, slots))} slots, which it learned; give fewer as --slots")
    keys = [c.about.key for c in found]
    if len(set(keys)) < len(keys):
        raise InputError(f"a system is asked for twice: {', '.join(keys)}")
    return found


def _measure(
    contenders: Sequence[Contender],
    plan: EncodingPlan,
    searches: Sequence[SearchPlan],
    schedule: Schedule,
    device: torch.device,
    out: Path,
) -> LatencyResults:
    """Return everything that was measured; what there is so far is written after every length and size."""
    from diffretriever.machine import Machine, versions
    from diffretriever.progress import progress_bar
    from diffretriever.studies.latency import estimate_seconds, measure_encoding
    from diffretriever.studies.latency_results import SCHEMA, LatencyResults
    from diffretriever.studies.searching import measure_search

    expected = time_text(estimate_seconds(contenders, plan, schedule))
    message(f"{len(contenders)} systems, {len(plan.lengths)} lengths: about {expected} to encode; then searching")
    skipped: list[str] = []
    measured = LatencyResults(
        schema=SCHEMA,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["diffretriever", *sys.argv[1:]]),
        seed=plan.seed,
        device=str(device),
        systems=tuple(c.about for c in contenders),
        encoding=(),
        search=(),
        checks=(),
        skipped=(),
        machine=Machine.here(),
        versions=versions(),
    )
    with progress_bar("encoding, by length", len(plan.lengths)) as advance:
        for points, checks in measure_encoding(contenders, plan, schedule, skipped):
            measured = replace(measured, encoding=(*measured.encoding, *points), checks=(*measured.checks, *checks))
            measured.write(out)
            advance(1)
    with progress_bar("searching", sum(len(s.sizes) * len(s.slots) for s in searches)) as advance:
        for search in searches:
            for point in measure_search(search, schedule, device, skipped):
                measured = replace(measured, search=(*measured.search, point))
                measured.write(out)
                advance(1)
    return replace(measured, skipped=tuple(skipped))


def _show(measured: LatencyResults) -> None:
    """Show the points and, below them, the ratios beside those of the paper."""
    from rich.table import Table

    encoding = Table("system", "tokens", "median ms", "p95 ms", "texts/s", "vectors", title="Encoding, one text")
    for p in measured.encoding:
        times = (f"{p.one.median_ms:.1f}", f"{p.one.p95_ms:.1f}", f"{p.texts_per_second:.1f}")
        encoding.add_row(p.key, str(p.length), *times, f"{p.vectors:.1f}")
    search = Table("vectors", "passages", "median ms", "p95 ms", "queries/s", title="Exact search, one query")
    for s in measured.search:
        pair = f"({s.query_slots}, {s.passage_slots})"
        times = (f"{s.one.median_ms:.2f}", f"{s.one.p95_ms:.2f}", f"{s.queries_per_second:.1f}")
        search.add_row(pair, f"{s.passages:,}", *times)
    checks = Table("ratio", "tokens", "measured", "expected", "holds", title="Ratios, medians of paired rounds")
    for c in measured.checks:
        holds = "" if c.passed is None else "yes" if c.passed else "NO"
        checks.add_row(c.name, str(c.length), f"{c.value:.2f}", c.expected, holds)
    show(encoding, *([search] if measured.search else []), *([checks] if measured.checks else []))
    for line in measured.skipped:
        message(f"left out: {line}")
