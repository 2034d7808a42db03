"""The command sweep: which numbers of masked positions, and what a choice per query would bring."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from diffretriever.cli import evaluation_options as ev
from diffretriever.cli import options as opt
from diffretriever.cli import study_options as given
from diffretriever.cli.console import message, result, show, time_text
from diffretriever.cli.estimating import encoding_estimate
from diffretriever.cli.evaluating import names_of
from diffretriever.cli.study_options import numbers
from diffretriever.errors import InputError

if TYPE_CHECKING:
    from diffretriever.evaluation.collections import Collection
    from diffretriever.evaluation.results import Results
    from diffretriever.studies.sweep import Sweep
    from diffretriever.studies.sweep_results import Grid, OracleRow, SweepResults
    from diffretriever.studies.variants import Variant

_NONE = "none"


def sweep(
    model: given.SweepModel,
    collection: given.Source,
    out: ev.Out,
    split: given.SweepSplit = "train",
    grid: given.Grid = "1,2,4,8,16",
    transfer: given.Transfer = None,
    transfer_split: given.TransferSplit = None,
    modes: given.SweepModes = "dense,sparse,hybrid",
    measure: given.Measure = "nDCG@10",
    control: given.Control = None,
    noise: given.NoiseSize = 2.0,
    k: ev.Depth = 1000,
    alpha: opt.Alpha = 0.5,
    label: ev.Label = None,
    estimate: ev.Estimate = False,
    seed: ev.Seed = 0,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch_tokens: opt.BatchTokens = None,
    prompt: opt.PromptOption = None,
    protocol: opt.ProtocolOption = None,
    readout: opt.ReadoutOption = None,
    max_query_length: opt.MaxQueryLength = None,
    max_passage_length: opt.MaxPassageLength = None,
) -> None:
    """Try every pair (K_q, K_p) of MODEL on a training split; the same command goes on after an interruption.

    Writes OUT/sweep.json, and the results and runs of every pair below OUT.
    """
    from diffretriever.evaluation.collections import open_collection
    from diffretriever.evaluation.measures import require_ir_measures
    from diffretriever.pretrained import open_checkpoint
    from diffretriever.studies.sweep import MODES, Sweep, SweepPlan
    from diffretriever.studies.variants import VariantFactory

    require_ir_measures()
    if model == "bm25":
        raise InputError("bm25 ranks by words and has no masked positions to sweep; `evaluate` takes it")
    settings = {
        "prompt": prompt,
        "protocol": protocol,
        "readout": readout,
        "max_query_length": max_query_length,
        "max_passage_length": max_passage_length,
    }
    counts = tuple(sorted(set(numbers(grid))))
    plan = SweepPlan(counts, names_of(modes, MODES) or MODES, measure, k, alpha, noise, seed)
    opened = [open_collection(collection, split), *(open_collection(t, transfer_split) for t in transfer or ())]
    checkpoint = open_checkpoint(model, settings, device=device, dtype=dtype)
    command = shlex.join(["diffretriever", *sys.argv[1:]])
    factory = VariantFactory(checkpoint, model, batch_tokens)
    work = _Work(Sweep(label or Path(model).name, model, factory, plan, out, command), opened, _controls(control))
    work.say_estimate()
    if not estimate:
        _finish(work.run(), out)


def _finish(found: SweepResults, out: Path) -> None:
    path = found.write(out)
    _show(found)
    message(f"{path}: {len(found.grids)} grids of {len(found.grids[0].cells)} pairs")


def _controls(given_controls: Sequence[str] | None) -> list[str]:
    from diffretriever.studies.sweep import CONTROLS

    wanted = list(dict.fromkeys(given_controls or [CONTROLS[0]]))
    if wanted == [_NONE]:
        return []
    for name in wanted:
        if name not in CONTROLS:
            raise InputError(f"no control {name!r}; choose from {', '.join(CONTROLS)}, or {_NONE} alone")
    return wanted


@dataclass(frozen=True)
class _Work:
    """A sweep, the collections (the first one chooses), and the controls of its oracle."""

    sweep: Sweep
    collections: list[Collection]
    controls: list[str]

    def say_estimate(self) -> None:
        """Say what encoding will take, before it starts."""
        seconds = 0.0
        for collection in self.collections:
            variants = self.sweep.grid_variants()
            if collection is self.collections[0]:
                # Those of the control take as long as the largest pair at most.
                pair = max(self.sweep.plan.pairs)
                for control in self.controls:
                    variants += self.sweep.control_variants(control, pair)
            seconds += sum(map(self._missing_seconds, self._one_per_side(variants), [collection] * len(variants)))
        pairs, count = len(self.sweep.plan.pairs), len(self.collections)
        message(f"{pairs} pairs on {count} collections: about {time_text(seconds)} to encode, then searching")

    def _one_per_side(self, variants: Sequence[Variant]) -> list[Variant]:
        return list({variant.passage_side: variant for variant in variants}.values())

    def _missing_seconds(self, variant: Variant, collection: Collection) -> float:
        experiment = self.sweep.experiment(variant, collection)
        encodings, count = experiment.encodings, len(experiment.pool)
        missing = sum(rows.stop - rows.start for rows in encodings.missing()) if encodings is not None else 0
        if not missing:
            return 0.0
        return encoding_estimate(variant, collection.passages, count).seconds * missing / count

    def run(self) -> SweepResults:
        """Judge every pair, choose, transfer, and measure the headroom per query."""
        from diffretriever.machine import Machine, versions
        from diffretriever.studies.sweep import transfers
        from diffretriever.studies.sweep_results import SCHEMA, SweepResults

        sweep, plan = self.sweep, self.sweep.plan
        judged = [self._judge(f"{c.name} {c.split}", sweep.grid_variants(), c) for c in self.collections]
        grids = [sweep.grid(c, own) for c, own in zip(self.collections, judged, strict=True)]
        chosen = {mode: grids[0].best(mode).pair for mode in plan.modes}
        return SweepResults(
            schema=SCHEMA,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=sweep.command,
            seed=plan.seed,
            label=sweep.label,
            measure=plan.measure,
            modes=plan.modes,
            default=sweep.factory.default,
            chosen=dict(chosen),
            grids=tuple(grids),
            transfers=tuple(transfers(grids[0], grids[1:], plan.modes, sweep.factory.default)),
            oracles=tuple(self._oracles([results for _, results in judged[0]], grids[0])),
            machine=Machine.here(),
            versions=versions(),
        )

    def _judge(self, what: str, variants: list[Variant], collection: Collection) -> list[tuple[str, Results]]:
        from diffretriever.progress import progress_bar

        with progress_bar(what, len(variants)) as advance:
            return self.sweep.judge(variants, collection, advance)

    def _oracles(self, judged: Sequence[Results], grid: Grid) -> list[OracleRow]:
        from diffretriever.studies.sweep import oracle_rows

        rows: list[OracleRow] = []
        for control in self.controls:
            noisy: dict[tuple[int, int], list[Results]] = {}
            for mode in self.sweep.plan.modes:
                pair = grid.best(mode).pair
                if pair not in noisy:
                    variants = self.sweep.control_variants(control, pair)
                    what = f"control: {control} at {pair}"
                    noisy[pair] = [results for _, results in self._judge(what, variants, self.collections[0])]
                rows += oracle_rows(self.sweep.plan, mode, pair, judged, noisy[pair], control)
        return rows


def _show(found: SweepResults) -> None:
    """Show the grids, the transfer and the headroom."""
    from rich.table import Table

    for grid in found.grids:
        counts = sorted({cell.passage_slots for cell in grid.cells})
        for mode in found.modes:
            result(f"{found.measure}, {mode}, {grid.collection} {grid.split}; chosen {found.chosen[mode]}")
            table = Table("K_q \\ K_p", *map(str, counts))
            for query_slots in sorted({cell.query_slots for cell in grid.cells}):
                own = sorted((c for c in grid.cells if c.query_slots == query_slots), key=lambda c: c.passage_slots)
                table.add_row(str(query_slots), *(f"{cell.values[mode]:.4f}" for cell in own))
            show(table)
    if found.transfers:
        table = Table("mode", "collection", "chosen", "best there", "model's own", "rank", title="Transfer")
        for t in found.transfers:
            own_value = "" if t.default_value is None else f"{t.default_value:.4f}"
            best = f"{t.best_value:.4f} {t.best}"
            table.add_row(t.mode, f"{t.collection} {t.split}", f"{t.chosen_value:.4f}", best, own_value, str(t.rank))
        show(table)
    if found.oracles:
        table = Table("mode", "choice", "control", "gain", "gain of control", "excess", title="Headroom per query")
        for row in found.oracles:
            gaps = (row.headroom.oracle.gain, row.headroom.control.gain, row.headroom.excess)
            values = [f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})" for gap in gaps]
            table.add_row(row.mode, row.choice, row.control, *values)
        show(table)
