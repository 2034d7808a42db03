"""Difference plot: per-query differences between runs, sorted, one panel per pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffretriever.errors import InputError, MissingExtraError
from diffretriever.evaluation.measures import Evaluation
from diffretriever.evaluation.significance import Pair, paired_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Blue and vermilion of Okabe and Ito's palette, told apart by every kind of colour vision; and a grey for ties.
_BETTER, _WORSE, _EQUAL = "#0072B2", "#D55E00", "#999999"
_COLUMNS, MOST_PANELS = 3, 12
_FORMATS = {".png", ".svg", ".pdf"}


def plot_differences(evaluations: Mapping[str, Evaluation], pairs: Sequence[Pair], path: str | Path) -> None:
    """Write a picture of at most 12 pairs of one measure.

    Args:
        evaluations: label -> values of a run.
        pairs: the pairs, all of one measure.
        path: file of the picture: .png, .svg or .pdf.

    Raises:
        InputError: there is no pair, or the format is another.
        MissingExtraError: matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"{path}: a picture is written as {', '.join(sorted(_FORMATS))}; name the file so")
    if not pairs:
        raise InputError("a picture of differences needs two runs")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "eval", "drawing a picture") from error
    shown = pairs[:MOST_PANELS]
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    # Names come from users: dollars in them are dollars, not formulas.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, pair in zip(grid.flat, shown, strict=False):
            _panel(axes, evaluations, pair)
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_visible(False)
        for row in grid:
            row[0].set_ylabel(f"difference in {shown[0].measure}")
        figure.suptitle(f"{shown[0].measure} per query, sorted; p by randomisation, Holm-corrected", fontsize=11)
        figure.savefig(path, dpi=150)


def _panel(axes: Axes, evaluations: Mapping[str, Evaluation], pair: Pair) -> None:
    first, second = paired_values(evaluations[pair.first], evaluations[pair.second], pair.measure)
    differences = np.sort(first - second)[::-1]
    better, worse = differences[: pair.wins], differences[len(differences) - pair.losses :]
    places = np.arange(1, len(differences) + 1)
    for values, at, colour in (
        (better, places[: pair.wins], _BETTER),
        (worse, places[len(differences) - pair.losses :], _WORSE),
    ):
        axes.bar(at, values, width=1.0, color=colour, linewidth=0)
    axes.axhline(0, color=_EQUAL, linewidth=0.8)
    axes.set_xlim(0.5, len(differences) + 0.5)
    axes.set_xlabel(f"queries ({len(differences)})")
    axes.set_title(f"{pair.first}\nagainst {pair.second}", fontsize=9)
    axes.text(
        0.98, 0.96,
        f"mean {pair.difference:+.3f}, p {p_text(pair.randomisation_holm, '= ')}\n"
        f"better {pair.wins}, equal {pair.ties}, worse {pair.losses}",
        transform=axes.transAxes, ha="right", va="top", fontsize=8,
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)


def p_text(value: float, equals: str = "") -> str:
    """Return a p-value as it is printed, `equals` before it unless it is only known to be smaller."""
    return "< .001" if value < 0.001 else equals + f"{value:.3f}".removeprefix("0")
