"""The command search: one question, or a file of queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli import options as opt
from diffretriever.cli.console import message, result, show
from diffretriever.cli.indexing import closing
from diffretriever.cli.models import load_recorded
from diffretriever.cli.results import dumps, hits_json, hits_table, query_words

if TYPE_CHECKING:
    from diffretriever.corpus import Query
    from diffretriever.index import Hit
    from diffretriever.index.filters import Filter
    from diffretriever.index.searching import Mode
    from diffretriever.representations import Representations

#: Queries encoded and searched at a time, so that a long file neither fills memory nor stays silent.
_STEP = 256


def search(
    folder: opt.IndexFolder,
    question: Annotated[str | None, typer.Argument(metavar="QUESTION", show_default=False)] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Search every query of a file: JSONL (BEIR), TSV (id, tab, text) or plain lines.", show_default=False
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Write the results of --queries as a TREC run.", show_default=False)
    ] = None,
    tag: Annotated[str, typer.Option(help="Name of the system in the run.")] = "diffretriever",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of results.")] = 10,
    as_json: opt.AsJson = False,
    words: opt.Words = 3,
    mode: opt.ModeOption = None,
    alpha: opt.Alpha = 0.5,
    fusion: opt.Fusion = opt.FusionMethod.MINMAX,
    where: opt.Where = None,
    exact: opt.Exact = None,
    recall: opt.WantedRecall = 0.99,
    model: opt.RecordedModel = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    prompt: opt.RecordedPrompt = None,
) -> None:
    """Search an index, by one QUESTION or by a file of queries."""
    _check_usage(question, queries, run, as_json=as_json)
    from diffretriever.corpus import Query, read_queries
    from diffretriever.index import Index

    condition = parse_conditions(where)
    asked = [Query("", question or "")] if queries is None else read_queries(queries)
    with closing(Index.open(folder)) as index:
        encoder = load_recorded(index, model=model, device=device, dtype=dtype, prompt=prompt)

        usual: Mode = "hybrid" if index.manifest.vocabulary_size else "multi"
        chosen: Mode = mode.value if mode else usual

        def answer(encoded: Representations) -> list[list[Hit]]:
            return index.search_batch(
                encoded, k, chosen, alpha=alpha, fusion=fusion.value, where=condition, exact=exact, recall=recall
            )

        if queries is None:
            encoded = encoder.encode_queries([question or ""], words=words)
            _show_answer(question or "", answer(encoded)[0], encoded, as_json=as_json)
            return
        from diffretriever.progress import progress_bar

        results: list[list[Hit]] = []
        with progress_bar("searching", len(asked)) as advance:
            for start in range(0, len(asked), _STEP):
                chunk = asked[start : start + _STEP]
                results += answer(encoder.encode_queries([query.text for query in chunk]))
                advance(len(chunk))
    _write(asked, results, run, tag, as_json=as_json)


def _check_usage(question: str | None, queries: Path | None, run: Path | None, *, as_json: bool) -> None:
    if (question is None) == (queries is None):
        raise typer.BadParameter("give either a QUESTION or --queries FILE")
    if queries is not None and run is None and not as_json:
        raise typer.BadParameter("--queries needs --run FILE or --json")
    if run is not None and queries is None:
        raise typer.BadParameter("--run needs --queries FILE")
    if run is not None:
        from diffretriever.evaluation.runs import check_run_path

        check_run_path(run)


def parse_conditions(where: Sequence[str] | None) -> Filter | None:
    """Return the filter of all --where options together, or None."""
    from diffretriever.index.filter_text import parse_filter
    from diffretriever.index.filters import AllOf

    filters = tuple(parse_filter(condition) for condition in where or ())
    return AllOf(filters) if filters else None


def _show_answer(question: str, hits: list[Hit], encoded: Representations, *, as_json: bool) -> None:
    if as_json:
        result(dumps(hits_json(question, hits)))
        return
    if predicted := encoded.slot_words(0):
        message(f"query slots: {query_words(predicted)}")
    if not hits:
        message("no passage found")
        return
    show(hits_table(hits))
    if not hits[0].exact:
        message("approximate: not every passage was compared; --exact compares them all")


def _write(
    asked: Sequence[Query], results: Sequence[Sequence[Hit]], run: Path | None, tag: str, *, as_json: bool
) -> None:
    if as_json:
        for query, hits in zip(asked, results, strict=True):
            result(dumps(hits_json(query.text, hits, query_id=query.query_id)))
    if run is not None:
        from diffretriever.evaluation.runs import Run, write_run

        write_run(Run.of([query.query_id for query in asked], results, tag), run)
        message(f"{run}: {sum(map(len, results)):,} results of {len(asked):,} queries")
