"""Effectiveness against latency, in the paper's manner: open = one vector, filled = several, a dashed link between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffretriever.studies.figures.style import INK, Figure, Look, canvas, looks, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Latencies that a logarithmic axis may be labelled with.
_TICKS = tuple(m * 10.0**e for e in range(-2, 6) for m in (1, 2, 5))
_DENSE_TICKS = tuple(m * 10.0**e for e in range(-2, 6) for m in (1, 1.5, 2, 3, 4, 5, 7))


@dataclass(frozen=True)
class TradePoint:
    """One system in one variant.

    Attributes:
        system: name of the system; its variants are linked.
        variant: "single", "multi", or "lexical" for a system without vectors.
        effectiveness: value of the measure.
        latency_ms: time of one query; None draws a line across instead of a point.
    """

    system: str
    variant: str
    effectiveness: float
    latency_ms: float | None


@dataclass(frozen=True)
class TradePanel:
    """One panel: points that were measured on one machine.

    Attributes:
        title: which points.
        measure: label of the vertical axis.
        latency: label of the horizontal axis, with its unit.
        points: the points.
    """

    title: str
    measure: str
    latency: str
    points: tuple[TradePoint, ...]


def tradeoff_figure(name: str, title: str, caption: str, panels: Sequence[TradePanel]) -> Figure:
    """Return the panels side by side, with one legend of systems below."""
    systems = list(dict.fromkeys(p.system for panel in panels for p in panel.points if p.latency_ms is not None))
    look = looks(systems)
    rows = -(-len(systems) // 3)
    width = 7.0 if len(panels) == 1 else 4.9 * len(panels)
    with canvas(width, 3.9 + 0.22 * rows, len(panels)) as (figure, axes):
        for ax, panel in zip(axes, panels, strict=True):
            _draw(ax, panel, look)
        figure.legend(
            handles=_handles(systems, look),
            loc="outside lower center",
            ncols=3,
            columnspacing=1.4,
            handletextpad=0.4,
        )
        return Figure(name, title, caption, rendered(figure))


def _draw(ax: Axes, panel: TradePanel, look: dict[str, Look]) -> None:
    for system in dict.fromkeys(p.system for p in panel.points):
        own = [p for p in panel.points if p.system == system]
        for p in own:
            if p.latency_ms is None:
                ax.axhline(p.effectiveness, color=INK, linewidth=1.1, linestyle=(0, (1.5, 2.5)))
                ax.annotate(
                    f"{system} {p.effectiveness:.3f}",
                    (1, p.effectiveness),
                    xycoords=("axes fraction", "data"),
                    xytext=(-2, 3),
                    textcoords="offset points",
                    ha="right",
                    fontsize=8.5,
                )
        placed = [(p.latency_ms, p) for p in own if p.latency_ms is not None]
        if len(placed) > 1:
            xs, ys = [x for x, _ in placed], [p.effectiveness for _, p in placed]
            ax.plot(xs, ys, color=look[system].colour, linestyle=(0, (4, 2.5)), linewidth=1.3, zorder=2)
        for latency, p in placed:
            _mark(ax, latency, p, look[system])
    ax.set_title(panel.title)
    ax.set_xlabel(panel.latency)
    ax.set_ylabel(panel.measure)
    _log_axis(ax, [p.latency_ms for p in panel.points if p.latency_ms is not None])
    ax.margins(y=0.12)


def _mark(ax: Axes, latency: float, point: TradePoint, look: Look) -> None:
    ax.plot(
        [latency],
        [point.effectiveness],
        marker=look.marker,
        color=look.colour,
        markerfacecolor=look.colour if point.variant == "multi" else "none",
        markeredgewidth=1.7,
        markersize=8.5,
        linestyle="none",
        zorder=3,
    )


def _log_axis(ax: Axes, values: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, labelled with plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if not values:
        return
    low, high = min(values) / 1.35, max(values) * 1.35
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ticks = _TICKS if high / low > 10 else _DENSE_TICKS
    ax.xaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _handles(systems: Sequence[str], look: dict[str, Look]) -> list[object]:
    from matplotlib.lines import Line2D

    made: list[object] = [
        Line2D([], [], color=look[s].colour, marker=look[s].marker, linestyle="none", markersize=8, label=s)
        for s in systems
    ]
    for label, face in (("open: one vector", "none"), ("filled: several vectors", INK)):
        made.append(
            Line2D([], [], color=INK, marker="o", markerfacecolor=face, linestyle="none", markersize=7, label=label)
        )
    return made
