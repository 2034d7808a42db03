"""Effectiveness as sections: the table with its marks, the trade-off with latency, the differences per query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from diffretriever.studies.document import Block, Cell, Paragraph, Section, Table
from diffretriever.studies.effectiveness import Board, QueryLatency, Row, query_latency
from diffretriever.studies.figures.differences import DifferencePanel, differences_figure
from diffretriever.studies.figures.style import Figure
from diffretriever.studies.figures.tradeoff import TradePanel, TradePoint, tradeoff_figure
from diffretriever.studies.latency_results import LatencyResults
from diffretriever.studies.published import published

#: Signs of a row that is better and of one that is worse than the baseline.
BETTER, WORSE = "▲", "▽"
#: Panels of differences in a row of a figure.
_IN_A_ROW = 4

#: (row, task) -> "better", "worse" or "" against the baseline.
Marks = Mapping[tuple[str, str], str]


def effectiveness_section(board: Board, marks: Marks, note: str) -> Section:
    """Return the table of all rows; the best of a column stands out.

    Args:
        board: the rows.
        marks: what differs significantly from the baseline.
        note: what the marks mean: test, correction, level, baseline.
    """
    rows = [_row(board, row, marks) for row in board.rows]
    means = len(board.tasks) > 1
    columns = [[row[i + 2] for row in rows] for i in range(len(board.tasks) + means)]
    best = [max((float(cell.text) for cell in column if cell.text != "–"), default=None) for column in columns]
    marked = []
    for row in rows:
        cells = [
            replace(cell, strong=cell.text != "–" and float(cell.text) == top)
            for cell, top in zip(row[2:], best, strict=True)
        ]
        marked.append((*row[:2], *cells))
    head = ("system", "mode", *board.tasks, *(["mean"] if means else []))
    table = Table(f"{board.measure}, all queries", head, tuple(marked), words=2, note=note)
    return Section("Effectiveness", (table,))


def _row(board: Board, row: Row, marks: Marks) -> tuple[Cell, ...]:
    signs = {"better": BETTER, "worse": WORSE, "": ""}
    cells = [Cell(row.label), Cell(row.mode)]
    for task in board.tasks:
        value = row.value(task, board.measure)
        kind = marks.get((row.name, task), "")
        meaning = f"significantly {kind}" if kind else ""
        cells.append(Cell("–" if value is None else f"{value:.4f}", signs[kind], meaning=meaning))
    if len(board.tasks) > 1:
        mean = board.mean(row)
        cells.append(Cell("–" if mean is None else f"{mean:.4f}"))
    return tuple(cells)


def tradeoff_section(board: Board | None, measured: Sequence[LatencyResults], passages: int) -> Section:
    """Return effectiveness against latency: what was measured, and beside it what the paper published.

    Args:
        board: the rows; None without results.
        measured: runs of the latency study.
        passages: size of the index searched.
    """
    blocks: list[Block] = []
    if board is not None:
        own = _own_points(board, measured, passages)
        missing = "Not measured: the results given and the latency study have no encoder in common."
        blocks.append(_own_figure(board, own) if own else Paragraph(missing))
    blocks.append(_published_figure())
    return Section("Effectiveness and latency", tuple(blocks))


_MARKERS = "Open markers: one vector per text; filled: several; a dashed link joins the variants of one system."
_MS = "latency of one query (ms), log scale"


def _own_points(
    board: Board, measured: Sequence[LatencyResults], passages: int
) -> list[tuple[TradePoint, QueryLatency | None]]:
    """Return the rows that have a mean and a latency; lexical ones have a mean alone."""
    found: list[tuple[TradePoint, QueryLatency | None]] = []
    for row in board.rows:
        mean = board.mean(row)
        if mean is None:
            continue
        if row.mode == "lexical":
            found.append((TradePoint(row.label, "lexical", mean, None), None))
        elif (time := query_latency(row, measured, passages)) is not None:
            found.append((TradePoint(row.label, row.mode, mean, time.ms), time))
    return found if any(time is not None for _, time in found) else []


def _own_figure(board: Board, own: Sequence[tuple[TradePoint, QueryLatency | None]]) -> Figure:
    times = [time for _, time in own if time is not None]
    over = board.tasks[0] if len(board.tasks) == 1 else f"mean of {len(board.tasks)} collections"
    panel = TradePanel("Measured here", f"{board.measure}, {over}", _MS, tuple(point for point, _ in own))
    sizes, lengths = sorted({time.passages for time in times}), sorted({time.length for time in times})
    caption = (
        f"{_MARKERS} Latency: median time of encoding a text of {_range(lengths)} tokens plus that of an exact search "
        f"of {_range(sizes)} passages, on {', '.join(sorted({time.device for time in times}))}."
    )
    return tradeoff_figure("tradeoff", "Effectiveness against the latency of one query", caption, [panel])


def _published_figure() -> Figure:
    paper = published()
    panels = []
    for training in ("zero-shot", "fine-tuned"):
        points = tuple(
            TradePoint(p.system, p.variant, p.effectiveness, p.latency_ms)
            for p in paper.points
            if p.training == training
        )
        panels.append(TradePanel(f"Published, {training}", f"{paper.measure}, {paper.collections}", _MS, points))
    caption = f"{_MARKERS} Not measured here: {paper.source}; {paper.latency}. {paper.note}"
    return tradeoff_figure("published", "The same as published by the authors of the method", caption, panels)


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def differences_section(board: Board, first: Row, baseline: Row) -> Section | None:
    """Return the differences of two rows per query, a panel per task that both have; None where there is none."""
    panels = []
    for task in board.tasks:
        if task in first.entries and task in baseline.entries:
            ours, theirs = first.per_query(task, board.measure), baseline.per_query(task, board.measure)
            gaps = tuple(ours[query] - theirs[query] for query in ours if query in theirs)
            panels.append(DifferencePanel(task, first.name, baseline.name, gaps))
    if not panels:
        return None
    figures = tuple(
        differences_figure(
            f"differences-{start // _IN_A_ROW + 1}",
            f"{first.name} against {baseline.name}, query by query",
            f"One bar per query: {board.measure} of {first.name} minus that of {baseline.name}, sorted. "
            "The dashed line is the mean.",
            board.measure,
            panels[start : start + _IN_A_ROW],
        )
        for start in range(0, len(panels), _IN_A_ROW)
    )
    return Section("Per-query differences", figures)
