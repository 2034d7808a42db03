"""Reports of what commands do not write by themselves: odd names, files that were edited by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from diffretriever.errors import CorpusError
from diffretriever.machine import Machine, versions
from diffretriever.studies.document import Cell, Document, Listing, Section, Table
from diffretriever.studies.html_page import to_html
from diffretriever.studies.latency_results import EncodingPoint, LatencyResults, SearchPoint, TimedSystem
from diffretriever.studies.markdown_page import write_markdown
from diffretriever.studies.report import Choices, Inputs, compose
from diffretriever.studies.sweep_results import Cell as Pair
from diffretriever.studies.sweep_results import Grid, SweepResults
from diffretriever.studies.timing import Timing
from tests.evaluation.evaluation_samples import some_results

ODD = [r"$\frac$ $x_$", "&lt;b&gt; &copy;", "~~z~~ $x$ and $y$", "a<b>&\"c'|d", "cost $5, $6"]


def two_results(label):
    first = some_results()
    return first, replace(first, system=replace(first.system, label=label))


def a_sweep():
    cells = (Pair(1, 4, {"dense": 0.5}, "r"), Pair(4, 4, {"dense": 0.6}, "r"))
    return SweepResults(
        1, "2026-01-01T00:00:00+00:00", "diffretriever sweep m", 1, "m", "nDCG@10", ("dense",), (4, 4),
        {"dense": (4, 4)}, (Grid("c", "test", 2, cells),), (), (), Machine.here(), versions(),
    )  # fmt: skip


def a_latency():
    time = Timing.of([1.0, 2.0, 3.0])
    return LatencyResults(
        1, "2026-01-01T00:00:00+00:00", "diffretriever latency m", 1, "cpu",
        (TimedSystem("m K=1", "diffretriever", "m", 1, "single", "loaded", 10, "float32"),),
        (EncodingPoint("m K=1", 10, 9.5, time, 2, 100.0, 1.0), EncodingPoint("m K=1", 30, 29.5, time, 2, 50.0, 1.0)),
        (SearchPoint("single", 1, 1, 64, 100, 25_600, time, 2, 1000.0),), (), (), Machine.here(), versions(),
    )  # fmt: skip


def rendered(document, path):
    write_markdown(document, path)
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_shown_as_it_is(tmp_path, name):
    document = compose(Inputs(two_results(name), (), (replace(a_sweep(), label=name),)), Choices())
    shown = rendered(document, tmp_path / "page.md")
    assert name in [unescape(text) for text in re.findall(r"<td[^>]*>(.*?)</td>", shown)]
    assert f"Number of masked positions: {name}" in [unescape(text) for text in re.findall("<h2>(.*?)</h2>", shown)]
    assert all(f"\\{sign}" in (tmp_path / "page.md").read_text(encoding="utf-8") for sign in "$&~" if sign in name)
    assert name in unescape(re.sub("<[^>]+>", "", to_html(document)))


@pytest.mark.parametrize("name", ["my results (1).md", "50% & more.md", "plain.md"])
def test_the_figures_of_a_markdown_file_are_found_whatever_its_name(tmp_path, name):
    shown = rendered(compose(Inputs((some_results(),), (), ()), Choices()), tmp_path / name)
    sources = re.findall('src="([^"]+)"', shown)
    assert sources
    assert all((tmp_path / unquote(unescape(source))).is_file() for source in sources)


def test_characters_that_no_file_can_hold_are_left_out(tmp_path):
    document = compose(Inputs(two_results("\x07a \x00bell\ud800"), (), ()), Choices(title="\x1bt"))
    assert document.title == "t"
    for figure in document.figures:
        ElementTree.fromstring(figure.standing())
        ElementTree.fromstring(figure.inline())
    assert "a bell" in to_html(document)
    assert "a bell" in rendered(document, tmp_path / "page.md")


def edited(record, folder: Path, change):
    """The path of a record's file, changed by hand."""
    record.write(folder)
    (path,) = folder.iterdir()
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("record", "change", "said"),
    [
        (some_results, lambda f: f["modes"][0].update(per_query={}), "has no values of 'nDCG@10'"),
        (some_results, lambda f: f["modes"][0]["per_query"].update({"nDCG@10": {}}), "has no values of 'nDCG@10'"),
        (a_latency, lambda f: f.update(systems=[]), "systems has no 'm K=1'"),
        (a_sweep, lambda f: f.update(grids=[]), "grids is empty"),
        (a_sweep, lambda f: f["grids"][0].update(cells=[]), "grids is empty, or one of them has no pair"),
        (a_sweep, lambda f: f["grids"][0]["cells"][1].update(values={}), "pair (4, 4): values has no 'dense'"),
        (a_sweep, lambda f: f.update(chosen={}), "chosen has no 'dense'"),
        (a_sweep, lambda f: f["chosen"].update(dense=[4]), "[4] is no pair of K_q and K_p"),
    ],
)
def test_a_file_whose_fields_do_not_go_together_is_named(tmp_path, record, change, said):
    path = edited(record(), tmp_path, change)
    with pytest.raises(CorpusError) as found:
        Inputs.read([tmp_path])
    assert str(path.resolve()) in str(found.value)
    assert said in str(found.value)
    assert "again" in str(found.value)


@pytest.mark.parametrize(("left", "figures"), [("search", 1), ("encoding", 1), (None, 0)])
def test_a_run_that_skipped_every_length_or_every_size_has_a_section(left, figures):
    """As where all lengths were longer than the model takes."""
    run = replace(a_latency(), skipped=("texts of 900 tokens: the model has room for 100",))
    run = replace(run, **{name: () for name in ("encoding", "search") if name != left})
    document = compose(Inputs((), (run,), ()), Choices())
    (section,) = [section for section in document.sections if section.title.startswith("Latency")]
    drawn = [figure for figure in document.figures if figure.name == "latency-1"]
    tables = [block.title for block in section.blocks if isinstance(block, Table)]
    assert len(drawn) == figures
    assert tables == {"search": ["Exact search"], "encoding": ["Encoding"], None: []}[left]


def test_a_page_can_be_heard_and_scrolled_by_keys():
    row = (Cell("m"), Cell("0.5", "▲", meaning="significantly better"))
    table = Table('a "t"', ("system", "value"), (row,))
    page = to_html(Document("t", "l", (Section("s", (table, Listing(("x",)))),)))
    assert '<th scope="row" class="word">m</th>' in page
    assert '<sup role="img" aria-label="significantly better">▲</sup>' in page
    assert '<div class="scroll" tabindex="0" role="region" aria-label="a &quot;t&quot;">' in page
    assert '<pre tabindex="0" role="region"' in page


def test_marks_of_the_table_say_what_they_mean():
    first, second = two_results("better")
    (mode,) = first.modes
    low = {f"q{i}": 0.1 + 0.001 * i for i in range(30)}
    modes = [
        replace(mode, per_query={"nDCG@10": values}, measures={"nDCG@10": sum(values.values()) / 30})
        for values in (low, {query: value + 0.3 for query, value in low.items()})
    ]
    results = (replace(first, modes=(modes[0],)), replace(second, modes=(modes[1],)))
    page = to_html(compose(Inputs(results, (), ()), Choices()))
    assert 'aria-label="significantly better"' in page
