from __future__ import annotations

from xml.etree import ElementTree

import pytest

from diffretriever.studies.figures import style
from diffretriever.studies.figures.curves import Curve, CurvePanel, curves_figure, short_number
from diffretriever.studies.figures.differences import DifferencePanel, differences_figure
from diffretriever.studies.figures.heatmap import HeatPanel, heatmap_figure
from diffretriever.studies.figures.style import COLOURS, GRID, INK, looks
from diffretriever.studies.figures.tradeoff import TradePanel, TradePoint, tradeoff_figure

POINTS = (
    TradePoint("a & b", "single", 0.4, 10.0),
    TradePoint("a & b", "multi", 0.5, 100.0),
    TradePoint("bm25", "lexical", 0.3, None),
)


def drawn(kind):
    if kind == "tradeoff":
        return tradeoff_figure("t", 'quote " and <tag>', "", [TradePanel("panel", "nDCG@10", "ms", POINTS)])
    if kind == "curves":
        panel = CurvePanel(
            "c", "tokens", "ms", (Curve("x", (1.0, 2.0), (3.0, 4.0), (4.0, 5.0)), Curve("y", (1.0,), (2.0,)))
        )
        return curves_figure("c", "title", "", [panel])
    if kind == "heat":
        values = {(q, p): 0.1 * q + 0.01 * p for q in (1, 4) for p in (1, 4, 16)}
        return heatmap_figure("h", "title", "", "nDCG@10", [HeatPanel("dense", values, {(4, 16): "chosen"})])
    return differences_figure("d", "title", "", "nDCG@10", [DifferencePanel("c", "one", "two", (0.5, 0.0, -0.25))])


KINDS = ["tradeoff", "curves", "heat", "differences"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_is_the_same_svg_every_time_and_holds_nothing_foreign(kind):
    figure = drawn(kind)
    assert figure == drawn(kind)
    root = ElementTree.fromstring(figure.standing())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value.startswith("#"), value
    assert INK not in figure.standing()
    assert GRID not in figure.standing()


@pytest.mark.parametrize("kind", KINDS)
def test_inline_figures_take_the_ink_of_the_page_and_have_ids_of_their_own(kind):
    figure = drawn(kind)
    root = ElementTree.fromstring(figure.inline())
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(name.startswith(f"{figure.name}-") for name in ids)
    for element in root.iter():
        target = element.get("{http://www.w3.org/1999/xlink}href")
        assert target is None or target.removeprefix("#") in ids
    assert "currentColor" in figure.inline()
    assert INK not in figure.inline()
    assert root.get("aria-label") == figure.title


def markers(svg):
    """The shapes that markers of the data are drawn with: how often each is filled, and how often it is open."""
    root = ElementTree.fromstring(svg)
    uses = [u for u in root.iter("{http://www.w3.org/2000/svg}use") if COLOURS[0].lower() in (u.get("style") or "")]
    return sum("fill-opacity: 0" in u.get("style") for u in uses), sum("fill: #" in u.get("style") for u in uses)


def test_single_is_open_multi_is_filled_and_a_dashed_line_joins_them():
    svg = drawn("tradeoff").standing()
    opened, filled = markers(svg)
    assert (opened, filled) == (1, 2)  # the filled ones: multi, and the system in the legend
    dashed = [line for line in svg.splitlines() if "stroke-dasharray" in line and COLOURS[0].lower() in line]
    assert len(dashed) == 1


def test_looks_differ_in_more_than_colour():
    many = list(looks([f"system {i}" for i in range(12)]).values())
    assert len({look.marker for look in many}) == 12
    assert len(set(many)) == 12


@pytest.mark.parametrize(
    ("value", "shown"), [(30, "30"), (1000, "1,000"), (20000, "20k"), (1_000_000, "1M"), (1.5e6, "1.5M")]
)
def test_counts_on_an_axis_are_short(value, shown):
    assert short_number(value) == shown


@pytest.fixture
def written(monkeypatch):
    """Reads the texts of a figure, which are written as text then instead of drawn."""
    monkeypatch.setitem(style._RC, "svg.fonttype", "none")

    def texts(figure):
        root = ElementTree.fromstring(figure.standing())
        return ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]

    return texts


NAME = r"$\frac$ $x_$ $y$"


@pytest.mark.parametrize("kind", KINDS)
def test_dollars_in_names_are_drawn_as_dollars(written, kind):
    if kind == "tradeoff":
        points = [TradePoint(NAME, "single", 0.4, 10.0), TradePoint(NAME + "2", "lexical", 0.3, None)]
        figure = tradeoff_figure("t", "", "", [TradePanel(NAME, NAME, "ms", tuple(points))])
    elif kind == "curves":
        figure = curves_figure("c", "", "", [CurvePanel(NAME, "tokens", "ms", (Curve(NAME, (1.0,), (2.0,)),))])
    elif kind == "heat":
        figure = heatmap_figure("h", "", "", NAME, [HeatPanel(NAME, {(1, 1): 0.5}, {})])
    else:
        figure = differences_figure("d", "", "", NAME, [DifferencePanel(NAME, NAME, NAME, (0.5,))])
    texts = written(figure)
    assert any(NAME in text for text in texts)
    # The only formulas are those of the axes of heat maps, which are set letter by letter.
    assert any("".join(text.split()) == "queryslotsKq" for text in texts) == (kind == "heat")


def test_values_lose_a_leading_zero_and_no_other(written):
    values = {(1, 1): 10.25, (1, 4): 0.25, (4, 1): 100.0, (4, 4): 1.0}
    texts = written(heatmap_figure("h", "", "", "m", [HeatPanel("p", values, {})]))
    assert {"10.250", ".250", "100.000", "1.000"} <= set(texts)
