from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from diffretriever.evaluation import Run, ScoredPassage, write_run
from diffretriever.evaluation.results import Results

GOLDEN = Path(__file__).parents[1] / "golden"
QRELS = GOLDEN / "data" / "qrels.tsv"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of four systems that answer the golden queries with passages shifted by so many places."""
    folder = tmp_path_factory.mktemp("runs")
    judged = [line.split() for line in QRELS.read_text().splitlines()]
    relevant = {q: p for q, _, p, r in judged if int(r) > 0}
    for shift, tag in enumerate(("good", "fair", "poor", "bad")):
        results = []
        for i, passage_id in enumerate(relevant.values()):
            ids = [f"x{j}" for j in range(shift * (i % 3))] + [passage_id]
            results.append([ScoredPassage(p, float(-j)) for j, p in enumerate(ids)])
        write_run(Run.of(list(relevant), results, tag), folder / f"{tag}.trec")
    return [folder / f"{tag}.trec" for tag in ("fair", "good", "poor", "bad")]


def test_runs_are_measured_and_paired(cli, runs, tmp_path):
    done = cli("compare", *runs, "--qrels", QRELS, "--json", tmp_path / "c.json", "--resamples", 500)
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "c.json").read_text())
    assert [run["label"] for run in written["runs"]] == ["fair", "good", "poor", "bad"]
    for run in written["runs"]:
        assert f"{run['measures']['nDCG@10']:.4f}" in done.out
    assert len(written["pairs"]) == 6 * 2
    assert written["pairs"][0]["first"] == "good"
    assert (written["resamples"], written["queries"], written["qrels"]) == (500, 8, str(QRELS))
    assert "corrected by Holm over 12 comparisons" in done.out


def test_one_run_is_only_measured(cli, runs):
    done = cli("compare", runs[1], "--qrels", QRELS, "--measures", "RR@10,RR(rel=2)@10")
    assert done.code == 0
    assert "RR(rel=2)@10" in done.out
    assert "Paired" not in done.out


def test_the_picture_of_differences(cli, runs, tmp_path):
    pictures = [tmp_path / name for name in ("all.png", "baseline.png", "one.svg")]
    fast = ["--qrels", QRELS, "--resamples", 50]
    assert cli("compare", *runs, *fast, "--plot", pictures[0]).code == 0
    assert cli("compare", *runs, *fast, "--plot", pictures[1], "--baseline", "bad").code == 0
    assert cli("compare", *runs[:2], *fast, "--plot", pictures[2]).code == 0
    sizes = [struct.unpack(">II", p.read_bytes()[16:24]) for p in pictures[:2]]
    assert sizes[0][1] == pytest.approx(2 * sizes[1][1], rel=0.1), "six panels in two rows, three in one"
    assert "<svg" in pictures[2].read_text()
    refused = cli("compare", *runs, *fast, "--plot", tmp_path / "p.gif")
    assert refused.code == 1
    assert "written as .pdf, .png, .svg" in refused.err


def test_dollars_in_a_name_are_no_formula_of_the_picture(cli, runs, tmp_path):
    odd = [tmp_path / r"$\frac$ a.trec", tmp_path / r"$\frac$ b.trec"]
    for run, copy in zip(runs, odd, strict=False):
        lines = [line.split() for line in run.read_text(encoding="utf-8").splitlines()]
        # Of one tag, so that the files' names are the labels.
        copy.write_text("".join(" ".join([*line[:5], "tag"]) + "\n" for line in lines), encoding="utf-8")
    picture = tmp_path / "p.svg"
    done = cli("compare", *odd, "--qrels", QRELS, "--resamples", 20, "--plot", picture)
    assert done.code == 0, done.err
    assert r"\frac" in done.out
    assert "<svg" in picture.read_text(encoding="utf-8")


def test_too_many_pairs_are_drawn_against_the_best(cli, runs, tmp_path):
    copies = [shutil.copy(run, tmp_path / f"copy-{run.name}") for run in runs[1:]]
    done = cli("compare", *runs, *copies, "--qrels", QRELS, "--resamples", 20, "--plot", tmp_path / "p.png")
    assert done.code == 0, done.err
    assert "too many pairs for one picture" in done.err
    assert "copy-good" in done.out, "equal tags make the files' names the labels"


def test_unanswered_queries_are_said(cli, runs, tmp_path):
    lines = runs[0].read_text().splitlines()
    (tmp_path / "short.trec").write_text("\n".join(line for line in lines if not line.startswith("q1 ")) + "\n")
    done = cli("compare", tmp_path / "short.trec", "--qrels", QRELS)
    assert "fair: 1 of 8 judged queries unanswered, counted 0" in done.err


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    from diffretriever.cli.main import app

    out = tmp_path_factory.mktemp("out")
    model = GOLDEN / "checkpoints" / "tiny-dream"
    data = ["-c", str(GOLDEN / "data"), "--qrels", str(QRELS), "--out", str(out)]
    with pytest.raises(SystemExit) as stop:
        app(["evaluate", str(model), *data, "--alpha", "0.35"])
    assert not stop.value.code
    return out / "data.given" / "tiny-dream"


class TestTune:
    def test_on_what_evaluate_wrote(self, cli, evaluated, tmp_path):
        done = cli("tune", evaluated, "--json", tmp_path / "new" / "t.json")
        assert done.code == 0, done.err
        tuned = json.loads((tmp_path / "new" / "t.json").read_text())
        results = Results.read(evaluated)
        values = dict(zip(tuned["alphas"], tuned["values"], strict=True))
        assert values[0.35] == pytest.approx(results.mode("hybrid").measures["nDCG@10"])
        assert values[1.0] == pytest.approx(results.mode("multi").measures["nDCG@10"])
        assert tuned["best"] == max(values.values())
        assert f"alpha {tuned['best_alpha']:.3g} is best" in done.out

    def test_on_two_runs(self, cli, evaluated, tmp_path):
        both = [evaluated / "multi.trec", evaluated / "sparse.trec"]
        done = cli("tune", *both, "--qrels", QRELS, "--measure", "RR@10", "--step", 0.25, "--json", tmp_path / "t.json")
        assert done.code == 0, done.err
        assert json.loads((tmp_path / "t.json").read_text())["alphas"] == [0.0, 0.25, 0.5, 0.75, 1.0]

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["{run}"], 2, "two runs and --qrels are needed"),
            (["{folder}", "{run}"], 2, "a folder holds both runs"),
            (["{run}", "{run}", "--qrels", QRELS, "--step", 0.3], 1, "a step must divide 1, got 0.3"),
            ([GOLDEN], 1, "no such file"),
        ],
    )
    def test_wrong_usage(self, cli, evaluated, arguments, code, message):
        places = {"{run}": evaluated / "multi.trec", "{folder}": evaluated}
        done = cli("tune", *(places.get(a, a) for a in arguments))
        assert done.code == code
        assert message in done.err


def test_repeated_judgements(cli, runs, tmp_path):
    (tmp_path / "qrels").write_text(QRELS.read_text() + "q1 0 d14 3\n")
    refused = cli("compare", runs[0], "--qrels", tmp_path / "qrels")
    assert refused.code == 1
    assert "already judged in line 2" in refused.err
    done = cli("compare", runs[0], "--qrels", tmp_path / "qrels", "--repeats", "highest", "--measures", "RR(rel=3)@10")
    assert done.code == 0, done.err
    assert "0.1250" in done.out, "one query of eight has a passage of grade 3, and the run has it first"


def test_tune_wants_rankings_as_long_as_those_that_are_fused(cli, tmp_path):
    data = ["-c", GOLDEN / "data", "--qrels", QRELS, "--out", tmp_path, "-k", 5]
    assert cli("evaluate", GOLDEN / "checkpoints" / "tiny-dream", *data).code == 0
    done = cli("tune", tmp_path / "data.given" / "tiny-dream")
    assert done.code == 1
    assert "holds rankings of 5 passages, and hybrid search fuses 1000; evaluate with -k 1000" in done.err
