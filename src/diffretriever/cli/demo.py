"""The command demo: the bundled SciFact collection indexed, searched, explained and measured."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli import options as opt
from diffretriever.cli.console import message, result, show, time_text
from diffretriever.cli.explaining import explain_stored
from diffretriever.cli.filling import fill, survey
from diffretriever.cli.indexing import closing
from diffretriever.cli.models import ModelOptions
from diffretriever.cli.results import hits_table, query_words
from diffretriever.errors import InputError

if TYPE_CHECKING:
    from diffretriever.corpus import Passage, Query
    from diffretriever.encoder import Encoder
    from diffretriever.evaluation import Evaluation, Qrel
    from diffretriever.index import Index
    from diffretriever.representations import Representations

_WORDS = 3
#: Claims that a reader without training in medicine understands.
_SHOWN = ("36", "132", "232")
_HITS = 3
_DEPTH = 100
_MEASURES = ("nDCG@10", "R@100")


@dataclass(frozen=True)
class Task:
    """What the demo searches: passages, claims, judgements, and whether that is all of SciFact."""

    passages: list[Passage]
    queries: list[Query]
    qrels: list[Qrel]
    whole: bool


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Keep the index here, and use it again if it is finished.", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=10, help="Only so many passages, for a quick try.", show_default=False)
    ] = None,
    model: opt.DefaultModel = "mini",
    device: opt.Device = None,
    dtype: opt.Dtype = None,
) -> None:
    """Index 5,183 scientific abstracts (they ship with the package), check claims against them, measure the answers."""
    from diffretriever.evaluation.measures import require_ir_measures

    require_ir_measures()
    started = time.monotonic()
    task = load_task(limit)
    subset = "" if task.whole else ", a small part of SciFact: the numbers below are higher than those of all of it"
    message(f"SciFact: {len(task.passages):,} abstracts, {len(task.queries):,} claims{subset}")
    encoder = ModelOptions(model, device, dtype).load()
    with _folder(out) as folder, closing(_open(folder, encoder, task)) as index:
        _fill(index, encoder, task, folder, keep=out is not None)
        queries = encoder.encode_queries([query.text for query in task.queries], words=_WORDS)
        _show_claims(index, encoder, task, queries)
        evaluations = [_evaluate(index, task, queries, mode) for mode in opt.Mode]
    _show_measures(evaluations, task)
    message(f"done in {time_text(time.monotonic() - started)}")
    if out is not None:
        message(f'now try: diffretriever search {out} "does vitamin D protect against infections?"')


def load_task(limit: int | None) -> Task:
    """Return SciFact, or a part of it: claims in order, the passages judged for them, and others up to `limit`."""
    from diffretriever.evaluation import scifact

    collection = scifact()
    passages = list(collection.passages)
    if limit is None or limit >= len(passages):
        return Task(passages, collection.queries, collection.qrels, whole=True)
    judged: dict[str, set[str]] = {}
    for qrel in collection.qrels:
        judged.setdefault(qrel.query_id, set()).add(qrel.passage_id)
    wanted: set[str] = set()
    queries = []
    for query in collection.queries:
        # Half of the passages answer a claim, the other half are there to be told from them.
        if len(wanted | judged[query.query_id]) > limit // 2:
            break
        wanted |= judged[query.query_id]
        queries.append(query)
    others = [p.passage_id for p in passages if p.passage_id not in wanted]
    wanted.update(others[: limit - len(wanted)])
    asked = {query.query_id for query in queries}
    kept = [p for p in passages if p.passage_id in wanted]
    return Task(kept, queries, [q for q in collection.qrels if q.query_id in asked], whole=False)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="diffretriever-demo-") as folder:
        yield Path(folder) / "index"


def _open(folder: Path, encoder: Encoder, task: Task) -> Index:
    """Return the index in the folder if it is one of these passages and this encoder, else a new one."""
    from diffretriever.index import Index

    if not folder.is_dir() or not any(folder.iterdir()):
        return Index.create(folder, encoder)
    index = Index.open(folder, encoder)
    foreign = set(index) - {passage.passage_id for passage in task.passages}
    if foreign:
        with closing(index):
            raise InputError(f"{folder} holds other passages, {min(foreign)!r} for one; give another folder by --out")
    return index


def _fill(index: Index, encoder: Encoder, task: Task, folder: Path, *, keep: bool) -> None:
    known = set(index)
    missing = [passage for passage in task.passages if passage.passage_id not in known]
    if not missing:
        message(f"{folder} holds them all already")
        return
    started = time.monotonic()
    try:
        fill(index, encoder, missing, survey(missing, "SciFact"), words=_WORDS)
    except KeyboardInterrupt:
        message(f"stopped: {len(index):,} abstracts are indexed" + (", call again to go on" if keep else ""))
        raise typer.Exit(130) from None
    seconds = time.monotonic() - started
    message(f"indexed in {time_text(seconds)}, {len(missing) / seconds:.0f} abstracts a second")


def _show_claims(index: Index, encoder: Encoder, task: Task, queries: Representations) -> None:
    rows = [row for row, query in enumerate(task.queries) if query.query_id in _SHOWN] or [0]
    for row in rows:
        query, encoded = task.queries[row], queries.select([row])
        hits = index.search(encoded, k=_DEPTH)
        result(f"\nclaim: {query.text}")
        result(f"query slots: {query_words(encoded.slot_words(0))}")
        show(hits_table(hits[:_HITS]))
        ranks = {hit.passage_id: hit.rank for hit in hits}
        evidence = [q.passage_id for q in task.qrels if q.query_id == query.query_id and q.relevance > 0]
        places = [f"{i} at rank {ranks[i]}" if i in ranks else f"{i} beyond rank {_DEPTH}" for i in evidence]
        result(f"evidence according to the judges: {', '.join(places)}")
        if row == rows[0] and hits:
            explanation = explain_stored(index, encoder, encoded, hits[0].passage_id, query=query.text)
            result("\nwhy the first one:")
            show(explanation.to_rich())


def _evaluate(index: Index, task: Task, queries: Representations, mode: opt.Mode) -> Evaluation:
    from diffretriever.evaluation import Run, evaluate

    hits = index.search_batch(queries, k=_DEPTH, mode=mode.value)
    run = Run.of([query.query_id for query in task.queries], hits, mode.value)
    return evaluate(run, task.qrels, _MEASURES)


def _show_measures(evaluations: list[Evaluation], task: Task) -> None:
    from rich.table import Table

    what = "SciFact test" if task.whole else "a small part of SciFact"
    result(f"\n{what}, {len(task.queries)} claims, {len(task.passages):,} abstracts")
    table = Table()
    table.add_column("mode")
    for measure in _MEASURES:
        table.add_column(measure, justify="right")
    for evaluation in evaluations:
        table.add_row(evaluation.tag, *(f"{evaluation[measure]:.3f}" for measure in _MEASURES))
    show(table)
