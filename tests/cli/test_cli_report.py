from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from diffretriever.evaluation.results import Results, find_results

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = GOLDEN / "checkpoints" / "tiny-dream"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECTIONS = [
    "Effectiveness",
    "Effectiveness and latency",
    "Per-query differences",
    "Latency: cpu",
    "Number of masked positions: tiny-dream",
    "How the numbers were made",
]
VOID = {"meta", "br", "hr", "img", "input", "link"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Results of every study, by the commands that users give."""
    from diffretriever.cli.main import app

    root = tmp_path_factory.mktemp("studies")
    collection = root / "data & <more>"
    (collection / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        shutil.copy(GOLDEN / "data" / name, collection / name)
    shutil.copy(GOLDEN / "data" / "qrels.tsv", collection / "qrels" / "test.tsv")
    results = root / "results"
    source = ["-c", collection, "--split", "test"]
    commands = [
        ["evaluate", "bm25", *source, "--out", results],
        ["evaluate", MODEL, *source, "--query-slots", 1, "--passage-slots", 4, "--label", "tiny-dream",
         "--out", results],
        ["sweep", MODEL, *source, "--grid", "1,2", "--out", root / "sweep", "--transfer", collection],
        ["latency", MODEL, "--lengths", "10,30", "--slots", "1,2", "--rounds", 3, "--batch", 2, "--sizes", "100,1000",
         "--search-slots", "1:1,1:4", "--out", root / "latency"],
    ]  # fmt: skip
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            app([str(part) for part in command])
        assert not stop.value.code
    return root


@pytest.fixture(scope="module")
def page(measured):
    from diffretriever.cli.main import app

    out = measured / "report.html"
    with pytest.raises(SystemExit) as stop:
        app(["report", *(str(measured / name) for name in ("results", "sweep", "latency")), "--out", str(out)])
    assert not stop.value.code
    return out


class Outline(HTMLParser):
    """Headings, ids and links of a page, and whether its tags are balanced."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.headings, self.errors, self.text = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "srcset", "data", "action", "poster"):
                self.links.append(value)
            if name.startswith("on") or tag in ("script", "iframe", "object", "embed", "link"):
                self.errors.append(f"{tag} {name}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def outline(path):
    parsed = Outline()
    parsed.feed(path.read_text(encoding="utf-8"))
    parsed.close()
    return parsed


def test_the_page_has_every_section_and_is_well_formed(page):
    found = outline(page)
    assert found.headings == SECTIONS
    assert (found.errors, found.open) == ([], [])
    assert len(found.ids) == len(set(found.ids))
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_page_needs_nothing_else(page):
    found, text = outline(page), page.read_text(encoding="utf-8")
    assert found.links
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", text))


def test_names_from_outside_are_escaped(page):
    text = page.read_text(encoding="utf-8")
    assert "data & <more> test" in "".join(outline(page).text)
    assert "<more>" not in text
    assert "data &amp; &lt;more&gt; test" in text


def test_every_number_of_the_table_is_that_of_the_results(page, measured):
    text = "".join(outline(page).text)
    for _, results in find_results(measured / "results"):
        for mode in results.modes:
            assert f"{mode.measures['nDCG@10']:.4f}" in text
    assert (
        "paired two-sided randomisation test over queries, p < 0.05 after Holm's correction over 4 comparisons" in text
    )
    assert "bm25" in text
    assert "arXiv 2605.07210" in text
    assert "Not measured here" in text


def test_own_points_are_encoding_plus_search(measured):
    from diffretriever.studies.effectiveness import board, query_latency
    from diffretriever.studies.latency_results import LatencyResults

    run = LatencyResults.read(measured / "latency" / "latency.json")
    table = board([results for _, results in find_results(measured / "results")])
    encoding = next(p.one.median_ms for p in run.encoding if p.key.endswith("K=1") and p.length == 10)
    for name, pair in (("tiny-dream single", (1, 1)), ("tiny-dream multi", (1, 4))):
        time = query_latency(table.row(name), [run], 900)
        search = next(
            p.one.median_ms for p in run.search if (p.query_slots, p.passage_slots) == pair and p.passages == 1000
        )
        assert time.ms == pytest.approx(encoding + search)
        assert (time.length, time.passages) == (10, 1000)
    assert query_latency(table.row("tiny-dream hybrid"), [run], 900) is None
    assert query_latency(table.row("bm25"), [run], 900) is None


def test_marks_need_a_difference_that_queries_agree_on(measured):
    """Against itself under another name no row is marked; made better on every query, it is."""
    from dataclasses import replace

    from diffretriever.studies.effectiveness import board
    from diffretriever.studies.significance import marks_against

    results = Results.read(measured / "results" / "data & <more>.test" / "bm25")
    (mode,) = results.modes
    raised = {q: value + 0.2 + 0.01 * i for i, (q, value) in enumerate(mode.per_query["nDCG@10"].items())}
    better = replace(mode, per_query={"nDCG@10": raised}, measures={"nDCG@10": sum(raised.values()) / len(raised)})
    rows = [
        results,
        replace(results, system=replace(results.system, label="same")),
        replace(results, system=replace(results.system, label="better"), modes=(better,)),
    ]
    table = board(rows, "nDCG@10")
    task = table.tasks[0]
    marks, note = marks_against(table, table.rows[0])
    assert marks == {("same", task): "", ("better", task): "better"}
    assert "over 2 comparisons" in note
    assert marks_against(table, table.row("better"))[0] == {("bm25", task): "worse", ("same", task): "worse"}


def test_commands_are_shown_without_the_folders_of_one_machine(measured):
    from dataclasses import replace

    from diffretriever.studies.document import Listing, Paragraph
    from diffretriever.studies.report import Choices, Inputs, compose

    inputs = Inputs.read([measured / "results", measured / "latency"])
    command = "diffretriever evaluate bm25 -c '/home/me/my data' --rerank /home/me/runs/a.trec --out here/r"
    made = [replace(results, command=command) for results in inputs.results]
    busy = [replace(run, machine=replace(run.machine, load=99.5, cores=2)) for run in inputs.latency]
    document = compose(replace(inputs, results=tuple(made), latency=tuple(busy)), Choices())
    blocks = [block for section in document.sections for block in section.blocks]
    assert next(line for block in blocks if isinstance(block, Listing) for line in block.lines) == (
        "diffretriever evaluate bm25 -c 'my data' --rerank a.trec --out here/r"
    )
    said = " ".join(block.text for block in blocks if isinstance(block, Paragraph))
    assert "Other work shared the machine (load average 99.5 on 2 cores)" in said
    assert "to 99.5" in said


def test_markdown_brings_its_figures(cli, measured, tmp_path):
    out = tmp_path / "page.md"
    done = cli("report", measured / "results", measured / "sweep", measured / "latency", "--out", out)
    assert done.code == 0
    text = out.read_text(encoding="utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == SECTIONS
    pictures = re.findall(r"!\[[^\]]*\]\((page/[^)]+\.svg)\)", text)
    assert len(pictures) == len(list((tmp_path / "page").iterdir())) >= 5
    assert all((tmp_path / picture).read_text(encoding="utf-8").startswith("<?xml") for picture in pictures)
    assert r"data \& \<more\> test" in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["results", "--baseline", "bm26"], 1, "no row 'bm26'; there are bm25, tiny-dream single"),
        (["results", "--measure", "P@7"], 1, "no result has the measure 'P@7'"),
        (["results", "--baseline", "bm25", "--focus", "bm25"], 1, "cannot be compared with itself"),
        (["results", "--out", "page.pdf"], 2, "must end with .html or .md"),
        (["nothing"], 1, "there is no results.json, sweep.json or latency.json"),
    ],
)
def test_what_cannot_be_shown_is_explained(cli, measured, tmp_path, arguments, code, said):
    (measured / "nothing").mkdir(exist_ok=True)
    rest = arguments[1:] if "--out" in arguments else [*arguments[1:], "--out", tmp_path / "x.html"]
    done = cli("report", measured / arguments[0], *rest)
    assert done.code == code
    assert said in " ".join(done.err.split())


def test_the_published_numbers_stand_alone_too(cli, measured, tmp_path):
    done = cli("report", measured / "latency", "--out", tmp_path / "page.html")
    assert done.code == 0
    assert outline(tmp_path / "page.html").headings == [SECTIONS[1], SECTIONS[3], SECTIONS[5]]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium installed")
def test_a_browser_lays_the_page_out(page, tmp_path):
    """The text that a browser has after layout, and a picture of it that is not blank."""
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path}",
    ]  # fmt: skip
    picture = tmp_path / "page.png"
    size = ["--window-size=1200,3000", f"--screenshot={picture}"]
    subprocess.run([CHROMIUM, *options, *size, page.as_uri()], check=True, capture_output=True, timeout=120)
    dumped = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", page.as_uri()], check=True, capture_output=True, timeout=120
    )
    assert all(f">{section}</h2>" in dumped.stdout.decode() for section in SECTIONS)
    from PIL import Image

    with Image.open(picture) as image:
        colours = image.convert("RGB").resize((200, 500)).getcolors(100_000)
    assert len(colours) > 50
