"""The command recall: what approximate searches of an index find, and how deep they must go."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli import options as opt
from diffretriever.cli.console import message, result, show
from diffretriever.cli.indexing import closing
from diffretriever.cli.models import load_recorded
from diffretriever.interrupts import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffretriever.index import Calibration, Recall

#: Lengths of the rankings that are reported, and recalls for which the depth is said.
_LENGTHS, _WANTED = (10, 100), (0.9, 0.95, 0.99)


def recall(
    folder: opt.IndexFolder,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Ask these queries: JSONL (BEIR), TSV (id, tab, text) or plain lines. By default queries are made of "
            "the index's own passages.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many of them.")] = 200,
    as_json: opt.AsJson = False,
    model: opt.RecordedModel = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    prompt: opt.RecordedPrompt = None,
) -> None:
    """Measure what approximate searches find of the truly best passages, and keep which depth reaches which recall."""
    from diffretriever.corpus import read_queries
    from diffretriever.index import Index

    asked = [] if queries is None else [query.text for query in read_queries(queries)[:limit]]
    with closing(Index.open(folder)) as index:
        if index.manifest.backend == "exact":
            message(f"{folder} has the exact backend, which compares a query with every passage: the recall is 1")
            return
        with uninterrupted():
            calibration = index.calibrate()
        rows: Sequence[Recall] = calibration.rows
        count = calibration.queries
        if asked:
            encoder = load_recorded(index, model=model, device=device, dtype=dtype, prompt=prompt)
            rows, count = index.recalls(encoder.encode_queries(asked), _LENGTHS), len(asked)
    if as_json:
        depths = {str(r): {str(k): calibration.depth(k, r) for k in _LENGTHS} for r in _WANTED}
        result(json.dumps({"queries": count, "rows": [asdict(row) for row in rows], "depths": depths}, indent=1))
        return
    _show(rows, count, calibration, asked=bool(asked))


def _show(rows: Sequence[Recall], count: int, calibration: Calibration, *, asked: bool) -> None:
    from rich.table import Table

    lengths = sorted({row.k for row in rows})
    table = Table("depth", *(f"recall@{k}" for k in lengths), "p50 ms", title_justify="left")
    for depth in sorted({row.depth for row in rows}):
        found = {row.k: row for row in rows if row.depth == depth}
        shares = [f"{found[k].mean:.3f} ± {found[k].error:.3f}" if depth else "1" for k in lengths]
        table.add_row(f"{depth:,}" if depth else "all", *shares, f"{max(r.milliseconds for r in found.values()):.1f}")
    if rows:
        show(table)
    else:
        message("too few passages for a search that compares with less than all of them")
    whose = f"the {count:,} queries given" if asked else f"{count:,} queries made of its own passages"
    message(f"{calibration.passages:,} passages, {whose}; depth: candidates that MaxSim scores")
    for wanted in _WANTED:
        depths = [f"{calibration.depth(k, wanted) or 'all'} for the best {k}" for k in _LENGTHS]
        message(f"recall {wanted}: calibrated depth {', '.join(depths)}")
