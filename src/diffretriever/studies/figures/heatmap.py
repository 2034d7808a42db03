"""Heat maps of a measure over the grid of (K_q, K_p)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffretriever.studies.figures.style import INK, Figure, canvas, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pair = tuple[int, int]


@dataclass(frozen=True)
class HeatPanel:
    """One grid.

    Attributes:
        title: collection and mode.
        values: (K_q, K_p) -> value of the measure.
        framed: pair -> what is said of it, such as "chosen"; it gets a frame.
    """

    title: str
    values: Mapping[Pair, float]
    framed: Mapping[Pair, str]


def heatmap_figure(name: str, title: str, caption: str, measure: str, panels: Sequence[HeatPanel]) -> Figure:
    """Return the grids side by side; every cell carries its value, and the colours are each grid's own."""
    with canvas(3.5 * len(panels) + 0.2, 3.8, len(panels)) as (figure, axes):
        for ax, panel in zip(axes, panels, strict=True):
            _draw(ax, panel, measure)
        return Figure(name, title, caption, rendered(figure))


def _draw(ax: Axes, panel: HeatPanel, measure: str) -> None:
    from matplotlib.patches import Rectangle

    rows = sorted({q for q, _ in panel.values})
    columns = sorted({p for _, p in panel.values})
    grid = [[panel.values.get((q, p), float("nan")) for p in columns] for q in rows]
    low, high = min(panel.values.values()), max(panel.values.values())
    # Cividis rises evenly in lightness for every colour vision.
    top = high if high > low else low + 1e-9
    ax.pcolormesh(grid, cmap="cividis", vmin=low, vmax=top, edgecolors="face", linewidth=0.2)
    for i, q in enumerate(rows):
        for j, p in enumerate(columns):
            if (q, p) in panel.values:
                share = (panel.values[q, p] - low) / (high - low or 1.0)
                text = f"{panel.values[q, p]:.3f}".removeprefix("0")
                ax.text(
                    j + 0.5,
                    i + 0.5,
                    text,
                    ha="center",
                    va="center",
                    fontsize=9.5,
                    color="black" if share > 0.55 else "white",
                )
    for q, p in panel.framed:
        if (q, p) in panel.values:
            corner = (columns.index(p) + 0.04, rows.index(q) + 0.04)
            ax.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="#D55E00", linewidth=2.6))
    ax.set_xticks([j + 0.5 for j in range(len(columns))], [str(p) for p in columns])
    ax.set_yticks([i + 0.5 for i in range(len(rows))], [str(q) for q in rows])
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    said = ", ".join(f"{text} ({q}, {p})" for (q, p), text in panel.framed.items())
    ax.set_title(f"{panel.title}\n{measure}" + (f"; {said}" if said else ""), color=INK, fontsize=9.5)
    ax.set_xlabel("passage slots $K_p$", parse_math=True)
    ax.set_ylabel("query slots $K_q$", parse_math=True)
