"""Curves: latency against the length of a text, and against the size of an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffretriever.studies.figures.style import Figure, canvas, looks, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Curve:
    """One series.

    Attributes:
        label: its name.
        x: places on the horizontal axis, rising.
        middle: its values.
        high: upper end of a band above them, such as the 95th percentile; None without.
    """

    label: str
    x: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...] | None = None


@dataclass(frozen=True)
class CurvePanel:
    """Axes with some series.

    Attributes:
        title: what it shows.
        x_label: with its unit.
        y_label: with its unit.
        curves: the series.
        log_x: whether the horizontal axis is logarithmic; the vertical one always is.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = False


def curves_figure(name: str, title: str, caption: str, panels: Sequence[CurvePanel]) -> Figure:
    """Return panels of curves side by side, each with its own legend below."""
    longest = max(len(panel.curves) for panel in panels)
    with canvas(5.1 * len(panels), 3.7 + 0.21 * -(-longest // 2), len(panels)) as (figure, axes):
        for ax, panel in zip(axes, panels, strict=True):
            _draw(ax, panel)
        return Figure(name, title, caption, rendered(figure))


def _draw(ax: Axes, panel: CurvePanel) -> None:
    look = looks([curve.label for curve in panel.curves])
    for curve in panel.curves:
        own = look[curve.label]
        ax.plot(curve.x, curve.middle, color=own.colour, marker=own.marker, dashes=own.dashes, label=curve.label)
        if curve.high is not None:
            ax.fill_between(curve.x, curve.middle, curve.high, color=own.colour, alpha=0.15, linewidth=0)
    ax.set_title(panel.title)
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(panel.y_label)
    ax.set_yscale("log")
    if panel.log_x:
        ax.set_xscale("log")
    _plain_ticks(ax, panel)
    columns = 2 if len(panel.curves) > 1 else 1
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, handlelength=3.2, columnspacing=1.2)


def _plain_ticks(ax: Axes, panel: CurvePanel) -> None:
    """Label the axes with plain numbers at the measured places and at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    places = sorted({x for curve in panel.curves for x in curve.x})
    values = [v for curve in panel.curves for v in (*curve.middle, *(curve.high or ()))]
    wide = max(values) / max(min(values), 1e-9) > 1000
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_number(x)))


def short_number(value: float) -> str:
    """Return a count as people write it on an axis: 800, 10k, 1M."""
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if value >= size:
            return f"{value / (1e6 if unit == 'M' else 1e3):g}{unit}"
    return f"{value:,.0f}"
