"""The commands compare and tune: what runs are worth against each other, and together."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli import evaluation_options as ev
from diffretriever.cli.console import message, result, show
from diffretriever.cli.evaluating import names_of
from diffretriever.errors import CorpusError, InputError

if TYPE_CHECKING:
    from diffretriever.evaluation.comparison import Comparison
    from diffretriever.evaluation.qrels import Qrel
    from diffretriever.evaluation.runs import Run
    from diffretriever.evaluation.significance import Pair
    from diffretriever.evaluation.tuning import Tuning

_LEVEL = 0.05

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.", show_default=False)
]


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="TREC runs; one alone is only measured.")],
    qrels: Annotated[Path, typer.Option(help="Judgements, in BEIR's or TREC's format.")],
    measures: Annotated[
        str, typer.Option(metavar="M,M,...", help="Measures by their names in ir_measures.")
    ] = "nDCG@10,R@100",
    baseline: Annotated[
        str | None, typer.Option(help="Only pairs with the run of this label.", show_default=False)
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Random exchanges of the randomisation test.")] = 100_000,
    seed: ev.Seed = 0,
    repeats: ev.RepeatsOption = ev.Repeats.REFUSE,
    json_file: JsonFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw per-query differences: .png, .svg or .pdf (extra eval).", show_default=False
        ),
    ] = None,
) -> None:
    """Compare runs: measures, paired t-test and randomisation test, corrected by Holm over all pairs and measures."""
    from diffretriever.evaluation.comparison import compare_runs
    from diffretriever.evaluation.measures import require_ir_measures
    from diffretriever.evaluation.qrels import read_qrels
    from diffretriever.evaluation.runs import read_run

    require_ir_measures()
    names = names_of(measures) or ()
    read = {str(path): read_run(path) for path in runs}
    if len(read) < len(runs):
        raise typer.BadParameter("a run is given twice")
    comparison, evaluations = compare_runs(
        read,
        read_qrels(qrels, repeats.value),
        names,
        qrels_source=str(qrels),
        baseline=baseline,
        resamples=resamples,
        seed=seed,
        command=shlex.join(["diffretriever", *sys.argv[1:]]),
    )
    _show_runs(comparison)
    if comparison.pairs:
        _show_pairs(comparison)
    if json_file is not None:
        comparison.write(json_file)
        message(f"{json_file}: written")
    if plot is not None:
        from diffretriever.evaluation.difference_plot import plot_differences

        plot_differences(evaluations, _pictured(comparison), plot)
        message(f"{plot}: written")


def _show_runs(comparison: Comparison) -> None:
    from rich.table import Table
    from rich.text import Text

    for run in comparison.runs:
        if run.unanswered:
            message(f"{run.label}: {run.unanswered:,} of {comparison.queries:,} judged queries unanswered, counted 0")
    result(f"{comparison.queries:,} judged queries")
    table = Table("run", *comparison.measures)
    for run in comparison.runs:
        table.add_row(Text(run.label), *(f"{run.measures[m]:.4f}" for m in comparison.measures))
    show(table)


def _show_pairs(comparison: Comparison) -> None:
    from rich.table import Table
    from rich.text import Text

    from diffretriever.evaluation.difference_plot import p_text

    result(
        f"\nPaired tests over queries, p corrected by Holm over {len(comparison.pairs)} comparisons; "
        f"* below {_LEVEL:.2f} in both"
    )
    table = Table("first", "second", "measure", "difference", "better/equal/worse", "t-test", "randomisation", "")
    for pair in comparison.pairs:
        p_values = (pair.t_holm, pair.randomisation_holm)
        table.add_row(
            Text(pair.first),
            Text(pair.second),
            pair.measure,
            f"{pair.difference:+.4f}",
            f"{pair.wins}/{pair.ties}/{pair.losses}",
            *(p_text(p) for p in p_values),
            "*" if max(p_values) < _LEVEL else "",
        )
    show(table)


def _pictured(comparison: Comparison) -> list[Pair]:
    """Return the pairs of the first measure; where they are too many for a picture, those with the best run."""
    from diffretriever.evaluation.difference_plot import MOST_PANELS

    pairs = [pair for pair in comparison.pairs if pair.measure == comparison.measures[0]]
    if len(pairs) > MOST_PANELS:
        best = pairs[0].first
        message(f"too many pairs for one picture: drawn are those of {best}, the best run; --baseline chooses others")
        pairs = [pair for pair in pairs if pair.first == best]
    return pairs


def tune(
    dense: Annotated[Path, typer.Argument(metavar="DENSE", help="TREC run, or a folder that evaluate wrote.")],
    sparse: Annotated[
        Path | None, typer.Argument(metavar="SPARSE", help="TREC run; none after a folder.", show_default=False)
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option(help="Judgements; of a folder those it was judged by.", show_default=False)
    ] = None,
    measure: Annotated[str, typer.Option(help="What is made as large as possible.")] = "nDCG@10",
    step: Annotated[float, typer.Option(min=0.001, max=1.0, help="Step from one weight to the next.")] = 0.05,
    repeats: ev.RepeatsOption = ev.Repeats.REFUSE,
    json_file: JsonFile = None,
) -> None:
    """Choose alpha, the weight of the dense side in hybrid search, on judgements that are not the test's."""
    from diffretriever.evaluation.measures import require_ir_measures
    from diffretriever.evaluation.records import write_record
    from diffretriever.evaluation.tuning import tune as tune_runs

    require_ir_measures()
    (left, right), judgements, depth = _both(dense, sparse, qrels, repeats)
    count = round(1 / step)
    if abs(count * step - 1) > 1e-9:
        raise InputError(f"a step must divide 1, got {step}; use 0.05 or 0.1")
    tuning = tune_runs(left, right, judgements, measure, alphas=[i / count for i in range(count + 1)], depth=depth)
    _show_tuning(tuning)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_record(tuning, json_file)
        message(f"{json_file}: written")


def _both(
    dense: Path, sparse: Path | None, qrels: Path | None, repeats: ev.Repeats
) -> tuple[tuple[Run, Run], Sequence[Qrel], int | None]:
    """Return both runs, the judgements, and the length at which the rankings were cut if that is known."""
    from diffretriever.evaluation.qrels import read_qrels
    from diffretriever.evaluation.results import Results
    from diffretriever.evaluation.runs import read_run
    from diffretriever.fusion import DEPTH

    if not dense.is_dir():
        if sparse is None or qrels is None:
            raise typer.BadParameter("two runs and --qrels are needed, or a folder that evaluate wrote")
        return (read_run(dense), read_run(sparse)), read_qrels(qrels, repeats.value), None
    if sparse is not None:
        raise typer.BadParameter("a folder holds both runs; give nothing after it")
    results = Results.read(dense)
    there = [m.mode for m in results.modes]
    sides = next(((d, "sparse") for d in ("multi", "single") if d in there), None)
    if sides is None or "sparse" not in there:
        raise CorpusError(f"{dense} holds {', '.join(there)}; evaluate with the modes multi and sparse, then tune")
    needed = min(DEPTH, results.collection.passages)
    if results.task.first_stage is None and results.task.depth < needed:
        raise CorpusError(
            f"{dense} holds rankings of {results.task.depth} passages, and hybrid search fuses {DEPTH}; evaluate with "
            f"-k {DEPTH}, then tune"
        )
    runs = [read_run(dense / results.mode(mode).run) for mode in sides]
    source = results.collection.qrels if qrels is None else str(qrels)
    if not Path(source).is_file():
        raise CorpusError(f"the judgements {source} are not a file here; give them as --qrels FILE")
    return (runs[0], runs[1]), read_qrels(source, repeats.value), results.task.depth


def _show_tuning(tuning: Tuning) -> None:
    from rich.table import Table

    table = Table("alpha", tuning.measure)
    for alpha, value in zip(tuning.alphas, tuning.values, strict=True):
        table.add_row(f"{alpha:.3g}", f"{value:.4f}", style="bold" if alpha == tuning.best_alpha else None)
    table.add_row("rrf", f"{tuning.rrf:.4f}")
    show(table)
    result(f"alpha {tuning.best_alpha:.3g} is best: {tuning.measure} {tuning.best:.4f} over {tuning.queries:,} queries")
