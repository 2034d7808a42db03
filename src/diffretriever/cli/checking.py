"""The command check: whether an index holds what was written to it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli import options as opt
from diffretriever.cli.console import message, result
from diffretriever.cli.indexing import closing
from diffretriever.errors import IndexFormatError
from diffretriever.interrupts import uninterrupted

if TYPE_CHECKING:
    from diffretriever.index import CheckReport

_SHOWN = 20


def check(
    folder: opt.IndexFolder,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Mend what can be mended. Damaged passages are given up: their ids are said, so that they can be "
            "added again. Keep a copy of DIR first.",
        ),
    ] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Read a whole index and say what is wrong with it: counts, ids, texts, vectors, weights, files. Exit 1 if so."""
    with uninterrupted():
        report = _report(folder, repair=repair)
    if as_json:
        result(json.dumps(asdict(report), ensure_ascii=False, indent=1))
    else:
        for problem in report.problems[:_SHOWN]:
            result(problem)
        if len(report.problems) > _SHOWN:
            result(f"... and {len(report.problems) - _SHOWN:,} more problems")
        if report.repaired and report.lost:
            result(f"given up: {', '.join(report.lost)}")
        state = "whole" if report.is_whole else "repaired" if report.repaired else "damaged"
        message(f"{folder} is {state}: {report.passages:,} passages, checksum {report.checksum or 'unknown'}")
    if report.problems and not report.repaired:
        raise typer.Exit(1)


def _report(folder: str, *, repair: bool) -> CheckReport:
    from diffretriever.index import CheckReport, Index

    try:
        with closing(Index.open(folder)) as index:
            return index.check(repair=repair)
    except IndexFormatError as error:
        if not repair:
            raise
        with closing(Index.open(folder, salvage=True)) as index:
            report = index.check(repair=True)
        problems = tuple(dict.fromkeys((str(error), *report.problems)))
        return CheckReport(report.passages, report.checksum, problems, report.lost, repaired=True)
