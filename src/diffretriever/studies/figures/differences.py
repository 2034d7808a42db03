"""Per-query differences of two rankings: one bar per query, sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffretriever.studies.figures.style import COLOURS, INK, Figure, canvas, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class DifferencePanel:
    """One pair of rankings on one collection.

    Attributes:
        collection: name of the collection.
        first: name of the ranking whose gains go up.
        second: name of the other.
        differences: value of the first minus that of the second, one per query.
    """

    collection: str
    first: str
    second: str
    differences: tuple[float, ...]


def differences_figure(name: str, title: str, caption: str, measure: str, panels: Sequence[DifferencePanel]) -> Figure:
    """Return the panels side by side on one scale, with the numbers of wins, losses and ties."""
    with canvas(3.4 * len(panels) + 0.9, 3.3, len(panels), share=True) as (figure, axes):
        for number, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
            _draw(ax, panel)
            if number == 0:
                ax.set_ylabel(f"difference in {measure}")
        return Figure(name, title, caption, rendered(figure))


def _draw(ax: Axes, panel: DifferencePanel) -> None:
    ordered = sorted(panel.differences, reverse=True)
    wins, losses = sum(d > 0 for d in ordered), sum(d < 0 for d in ordered)
    ties = len(ordered) - wins - losses
    edges = [place + 0.5 for place in range(len(ordered) + 1)]
    for sign, colour in ((1, COLOURS[0]), (-1, COLOURS[1])):
        heights = [d if d * sign > 0 else 0.0 for d in ordered]
        ax.stairs(heights, edges, fill=True, color=colour)
    mean = sum(ordered) / len(ordered)
    ax.axhline(0, color=INK, linewidth=0.9)
    ax.axhline(mean, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    ax.set_title(f"{panel.collection}: mean {mean:+.3f}".replace("-", "\u2212"))
    ax.set_xlabel("queries, best gain first")
    ax.set_xlim(0.5, len(ordered) + 0.5)
    ax.set_ylim(-1.05, 1.05)
    box: dict[str, Any] = {"xycoords": "axes fraction", "fontsize": 9.0}
    ax.annotate(f"{panel.first}\nbetter: {wins}", (0.98, 0.96), ha="right", va="top", color=COLOURS[0], **box)
    ax.annotate(f"{panel.second}\nbetter: {losses}", (0.02, 0.04), ha="left", va="bottom", color=COLOURS[1], **box)
    ax.annotate(f"equal: {ties}", (0.98, 0.04), ha="right", va="bottom", **box)
