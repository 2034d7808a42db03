"""The command report: result files as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffretriever.cli.console import message


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...",
            help="Folders, with all that lies below, or files: results.json of evaluate, latency.json, sweep.json.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The page: .html, or .md with its figures in a folder beside.")
    ] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Retrieval results",
    measure: Annotated[
        str | None,
        typer.Option(help="Measure; by default the first that all results have.", show_default=False),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="ROW",
            help='Row that others are tested against, such as "bm25" or "mini multi"; by default the first.',
            show_default=False,
        ),
    ] = None,
    focus: Annotated[
        str | None,
        typer.Option(
            metavar="ROW",
            help="Row compared with the baseline query by query; by default the best.",
            show_default=False,
        ),
    ] = None,
    passages: Annotated[
        int, typer.Option(min=1, help="Passages searched in the picture of effectiveness against latency.")
    ] = 10_000,
) -> None:
    """Lay results out on one page: tables with significance, trade-off, latency, sweeps, per-query differences."""
    from diffretriever.studies.html_page import to_html
    from diffretriever.studies.markdown_page import write_markdown
    from diffretriever.studies.report import Choices, Inputs, compose

    if out.suffix not in (".html", ".md"):
        raise typer.BadParameter(f"--out must end with .html or .md, got {out.name!r}")
    document = compose(Inputs.read(results), Choices(title, measure, baseline, focus, passages))
    if out.suffix == ".md":
        write_markdown(document, out)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(to_html(document), encoding="utf-8")
    message(f"{out}: {len(document.sections)} sections, {len(document.figures)} figures")
