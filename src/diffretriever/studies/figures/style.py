"""Style: one look of all figures, on light and on dark pages, told apart without colour as well.

Colours are Okabe and Ito's (2008), which people with any common colour vision tell apart; every series has a marker
and a dash pattern of its own besides. Ink and grid are drawn in two stand-in colours, which `Figure.inline` replaces
by the page's own text colour and `Figure.standing` by ink on white.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from diffretriever.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

#: Okabe and Ito's palette but for its yellow, which is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "*")
#: Stand-ins for the ink and for the lines behind the data.
INK, GRID = "#010203", "#040506"
_ON_WHITE = {INK: "#1f2328", GRID: "#d0d7de"}
#: The blue of the palette is dim on black: pages give it a lighter one there.
_INLINE = {INK: "currentColor", GRID: "var(--grid)", "#0072b2": "var(--blue)"}


class Look(NamedTuple):
    """How a series is drawn."""

    colour: str
    marker: str
    dashes: tuple[float, ...]


_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 1, 1, 1, 1, 1))


def looks(names: list[str]) -> dict[str, Look]:
    """Return a look per name, in order: colours repeat after seven, with other markers."""
    return {
        name: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], _DASHES[i % len(_DASHES)])
        for i, name in enumerate(names)
    }


@dataclass(frozen=True)
class Figure:
    """A finished picture.

    Attributes:
        name: short name, for files and anchors.
        title: what it shows, in a line.
        caption: how to read it, and what it was measured on.
        svg: the picture, with stand-ins for ink and grid.
    """

    name: str
    title: str
    caption: str
    svg: str

    def inline(self) -> str:
        """Return the picture for an HTML page: no XML head, ids of its own, ink of the page."""
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r'\bid="', f'id="{self.name}-', svg)
        svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{self.name}-", svg)
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        head = f'<svg role="img" aria-label="{escape(self.title, quote=True)}" class="figure"'
        return _inked(head + svg[len("<svg") :], _INLINE)

    def standing(self) -> str:
        """Return the picture as a file of its own, on white."""
        return _inked(self.svg, _ON_WHITE)


def _inked(svg: str, inks: dict[str, str]) -> str:
    for stand_in, ink in inks.items():
        svg = svg.replace(stand_in, ink)
    return svg


@contextmanager
def canvas(
    width: float, height: float, columns: int = 1, *, share: bool = False
) -> Iterator[tuple[Canvas, list[Axes]]]:
    """Give an empty figure of so many axes side by side, in the style of all figures.

    Args:
        width: inches.
        height: inches.
        columns: number of axes.
        share: whether the axes share their vertical scale.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "drawing figures") from error
    with matplotlib.rc_context(_RC):
        figure = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        axes = figure.subplots(1, columns, squeeze=False, sharey=share)[0]
        for each in axes:
            each.patch.set_alpha(0.0)
            each.set_axisbelow(True)
        yield figure, list(axes)


def rendered(figure: Canvas) -> str:
    """Return a figure as SVG, the same bytes every time; call it within `canvas`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"<!--.*?-->\n?", "", buffer.getvalue(), flags=re.DOTALL)


_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.0,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    # Names come from users: dollars in them are dollars, not formulas.
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "diffretriever",
}
