"""The command mine: hard negatives for training rows."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli import options as opt
from diffretriever.cli.console import message
from diffretriever.cli.indexing import closing
from diffretriever.cli.models import load_recorded

if TYPE_CHECKING:
    from diffretriever.index import Mode
    from diffretriever.training.mining import MiningReport, MiningSettings
    from diffretriever.training.rankers import Ranker

_SOURCE = "Source"


class Choice(str, Enum):
    """How negatives are taken from the window."""

    RANDOM = "random"
    TOP = "top"


Rows = Annotated[
    Path,
    typer.Argument(metavar="ROWS", help="Training rows, JSONL or Parquet: query, and positive_passages or positive."),
]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="JSONL file for the rows with their negatives.")]
IndexPlace = Annotated[
    str | None,
    typer.Option(
        "--index",
        metavar="DIR",
        help="Rank by an index: its folder, or its address.",
        show_default=False,
        rich_help_panel=_SOURCE,
    ),
]
Corpus = Annotated[
    str | None,
    typer.Option(
        "--corpus",
        metavar="INPUT",
        help="Rank by BM25 over a corpus (extra eval).",
        show_default=False,
        rich_help_panel=_SOURCE,
    ),
]
First = Annotated[int, typer.Option("--from", min=1, help="Rank at which the window begins.")]
Last = Annotated[int, typer.Option("--to", min=1, help="Rank at which it ends.")]
Negatives = Annotated[int, typer.Option("--negatives", "-n", min=1, help="Negatives of a row at most.")]
Margin = Annotated[
    float, typer.Option(min=0.0, help="Leave out what scores above this share of the positive's score; 0 keeps all.")
]
Gap = Annotated[float | None, typer.Option(help="Least difference to the positive's score.", show_default=False)]
ChoiceOption = Annotated[Choice, typer.Option("--choice", help="Draw from the window, or take its best.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides the draws.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file made in another way.")]
K1 = Annotated[float, typer.Option(min=0.0, help="k1 of BM25.", rich_help_panel=_SOURCE)]
B = Annotated[float, typer.Option(min=0.0, max=1.0, help="b of BM25.", rich_help_panel=_SOURCE)]


def mine(
    rows: Rows,
    out: Out,
    index: IndexPlace = None,
    corpus: Corpus = None,
    first: First = 1,
    last: Last = 100,
    negatives: Negatives = 15,
    margin: Margin = 0.95,
    gap: Gap = None,
    choice: ChoiceOption = Choice.RANDOM,
    seed: Seed = 1,
    overwrite: Overwrite = False,
    mode: opt.ModeOption = None,
    alpha: opt.Alpha = 0.5,
    k1: K1 = 0.9,
    b: B = 0.4,
    model: opt.RecordedModel = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
) -> None:
    """Give training rows hard negatives: ranked high for their queries, unlikely to be relevant.

    The same command goes on after an interruption.
    """
    if (index is None) == (corpus is None):
        raise typer.BadParameter("give either --index DIR or --corpus INPUT")
    from diffretriever.training.mining import MiningSettings

    settings = MiningSettings(first, last, negatives, margin or None, gap, choice.value, seed)
    if index is None:
        from diffretriever.corpus import read_passages
        from diffretriever.systems.bm25 import BM25
        from diffretriever.training.rankers import BM25Ranker

        _run(rows, BM25Ranker(list(read_passages(str(corpus))), BM25(k1, b), progress=True), out, settings, overwrite)
        return
    from diffretriever.index import Index
    from diffretriever.training.rankers import IndexRanker

    with closing(Index.open(index)) as opened:
        opened.encoder = load_recorded(opened, model=model, device=device, dtype=dtype)
        usual: Mode = "hybrid" if opened.manifest.vocabulary_size else "multi"
        _run(rows, IndexRanker(opened, mode.value if mode else usual, alpha=alpha), out, settings, overwrite)


def _run(rows: Path, ranker: Ranker, out: Path, settings: MiningSettings, overwrite: bool) -> None:
    from diffretriever.training.mining import mine as mine_rows

    try:
        report = mine_rows(rows, ranker, out, settings, overwrite=overwrite, progress=True)
    except KeyboardInterrupt:
        message(f"stopped: {out} keeps the rows written so far; the same command goes on")
        raise typer.Exit(130) from None
    _tell(report, out)


def _tell(report: MiningReport, out: Path) -> None:
    rules = ", ".join(f"{count:,} {rule}" for rule, count in sorted(report.left_out.items()))
    message(f"{out}: {report.rows:,} rows; {report.negatives:,} negatives in this call; left out: {rules or 'none'}")
    if report.short:
        message(f"{report.short:,} rows have fewer negatives than asked for, {report.without:,} of them none")
    if report.unscored:
        message(f"{report.unscored:,} rows have no positive that the source knows, so no margin was applied to them")
