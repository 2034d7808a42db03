"""The sweep as a section: heat maps, transfer, headroom."""

from __future__ import annotations

from diffretriever.studies.document import Block, Cell, Paragraph, Section, Table, cells
from diffretriever.studies.figures.heatmap import HeatPanel, heatmap_figure
from diffretriever.studies.oracle import Interval
from diffretriever.studies.sweep_results import Grid, SweepResults

#: Grids in a row of a figure.
_IN_A_ROW = 3


def sweep_section(found: SweepResults, number: int) -> Section:
    """Return the section of one sweep.

    Args:
        found: the sweep.
        number: which sweep of the report, for the names of its figures.
    """
    first = found.grids[0]
    chosen = "; ".join(f"{mode} {_pair(pair)}" for mode, pair in found.chosen.items())
    blocks: list[Block] = [
        Paragraph(
            f"{found.label}: every pair of {len(first.cells)} encoded for real, {found.measure} over {first.queries:,} "
            f"queries of {first.collection} {first.split}. Chosen there: {chosen}. The model's own pair is "
            f"{_pair(found.default)}."
        )
    ]
    for order, grid in enumerate(found.grids):
        for start in range(0, len(found.modes), _IN_A_ROW):
            modes = found.modes[start : start + _IN_A_ROW]
            blocks.append(_figure(found, grid, modes, f"sweep-{number}-{order}-{start}"))
    if found.transfers:
        blocks.append(_transfer_table(found))
    if found.oracles:
        blocks.append(_oracle_table(found))
    return Section(f"Number of masked positions: {found.label}", tuple(blocks))


def _figure(found: SweepResults, grid: Grid, modes: tuple[str, ...], name: str) -> Block:
    panels = []
    for mode in modes:
        values = {cell.pair: cell.values[mode] for cell in grid.cells}
        chosen = found.chosen[mode]
        panels.append(HeatPanel(mode, values, {(chosen[0], chosen[1]): "chosen"}))
    on = f"{grid.collection} {grid.split}"
    return heatmap_figure(
        name,
        f"{found.measure} of {found.label} on {on}, by K",
        f"{grid.queries:,} queries. Framed: the pair chosen on the first collection. Every panel has its own colours.",
        found.measure,
        panels,
    )


def _transfer_table(found: SweepResults) -> Table:
    rows = []
    for t in found.transfers:
        default = "–" if t.default_value is None else f"{t.default_value:.4f}"
        gap = f"{t.chosen_value - t.best_value:+.4f}".replace("-", "\u2212")
        words = (t.mode, f"{t.collection} {t.split}")
        chosen, best = f"{t.chosen_value:.4f} {_pair(t.chosen)}", f"{t.best_value:.4f} {_pair(t.best)}"
        rows.append(cells(*words, chosen, best, f"{default} {_pair(t.default)}", gap, str(t.rank)))
    head = ("mode", "collection", "chosen", "best there", "model's own", "chosen \u2212 best", "rank")
    return Table(f"Transfer of the chosen pair, {found.measure}", head, tuple(rows), words=2)


def _oracle_table(found: SweepResults) -> Table:
    rows = []
    for row in found.oracles:
        oracle, control = row.headroom.oracle, row.headroom.control
        words = (row.mode, row.choice, row.control)
        values = (f"{oracle.best_mean:.4f}", f"{oracle.oracle_mean:.4f}")
        gains = (_interval(oracle.gain), _interval(control.gain), _interval(row.headroom.excess))
        spreads = f"{oracle.spread:.3f} / {control.spread:.3f}"
        real = row.headroom.excess.low > 0
        plain = cells(*words, str(len(oracle.variants)), *values, *gains[:2])
        rows.append((*plain, Cell(gains[2], strong=real), Cell(spreads)))
    head = ("mode", "choice", "control", "variants", "best", "oracle", "gain", "of control", "excess", "spread")
    note = (
        "Oracle: the best K for every query; its gain over the best single K holds luck as well. Control: an oracle "
        "over as many variants of the chosen pair that differ in noise alone. Excess: gain minus gain of the control; "
        "bold where its interval lies above 0. In brackets 95% intervals, bootstrap over queries. Spread: mean "
        "standard deviation of a query's value over the variants, of K / of the control; where the control's is much "
        "smaller, so is its luck."
    )
    title = f"Headroom of a choice per query, {found.measure}"
    return Table(title, head, tuple(rows), words=3, note=note)


def _interval(interval: Interval) -> str:
    ends = (interval.value, interval.low, interval.high)
    # Adding 0.0 makes a rounded -0.0 a plain 0.
    value, low, high = (f"{round(end, 3) + 0.0:.3f}".replace("-", "\u2212") for end in ends)
    return f"{value} [{low}, {high}]"


def _pair(pair: tuple[int, ...]) -> str:
    return f"({pair[0]}, {pair[1]})"
