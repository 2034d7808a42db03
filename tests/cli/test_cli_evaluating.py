from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from diffretriever.evaluation.results import Results

GOLDEN = Path(__file__).parents[1] / "golden"
DATA = GOLDEN / "data"
MODES = "single,multi,sparse,hybrid"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden data as a BEIR folder."""
    made = tmp_path_factory.mktemp("c") / "golden"
    (made / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        shutil.copy(DATA / name, made / name)
    shutil.copy(DATA / "qrels.tsv", made / "qrels" / "dev.tsv")
    return made


@pytest.mark.parametrize("model", ["tiny-dream", "tiny-llada"])
def test_one_command_for_every_backbone(cli, folder, tmp_path, model):
    command = ["evaluate", GOLDEN / "checkpoints" / model, "--collection", folder, "--modes", MODES, "--out", tmp_path]
    done = cli(*command)
    assert done.code == 0, done.err
    results = Results.read(tmp_path / "golden.dev" / model)
    for mode in results.modes:
        assert f"{mode.measures['nDCG@10']:.4f}" in done.out
        assert (tmp_path / "golden.dev" / model / mode.run).is_file()
    assert [m.mode for m in results.modes] == MODES.split(",")
    assert results.system.provenance.query_slots == 4
    assert "golden.dev: 20 passages, 8 queries" in done.err
    again = cli(*command)
    assert "done already" in again.err
    assert again.out == done.out


def test_another_question_does_not_replace_results_unasked(cli, folder, tmp_path):
    command = ["evaluate", "bm25", "-c", folder, "--out", tmp_path]
    assert cli(*command).code == 0
    other = cli(*command, "--measures", "RR@10")
    assert other.code == 1
    assert "task.measures.0 was nDCG@10, now RR@10" in other.err
    assert cli(*command, "--measures", "RR@10", "--overwrite").code == 0
    assert Results.read(tmp_path / "golden.dev" / "bm25").task.measures == ("RR@10",)
    assert cli(*command, "--k1", "1.5", "--b", "0.75").code == 0
    assert (tmp_path / "golden.dev" / "bm25-1.5-0.75").is_dir()


def test_whose_idf_is_stamped_and_asked_for(cli, folder, tmp_path):
    found = {}
    for idf in ("collection", "model"):
        options = ["--modes", "sparse", "--idf", idf, "--label", idf]
        done = cli("evaluate", "mini", "-c", folder, "--out", tmp_path, *options)
        assert done.code == 0, done.err
        found[idf] = Results.read(tmp_path / "golden.dev" / idf)
    assert [r.system.settings.get("idf") for r in found.values()] == ["collection", None]
    first, second = ((tmp_path / "golden.dev" / idf / "sparse.trec").read_text() for idf in found)
    assert first != second


def test_reranking_and_other_systems(cli, folder, tmp_path):
    assert cli("evaluate", "bm25", "-c", folder, "--out", tmp_path).code == 0
    first = tmp_path / "golden.dev" / "bm25" / "lexical.trec"
    model = GOLDEN / "checkpoints" / "tiny-dream"
    options = ["-c", folder, "--out", tmp_path, "--rerank", first, "--depth", 3]
    done = cli("evaluate", model, "--system", "diffembed", *options, "--qrels", DATA / "qrels.tsv", "--modes", MODES)
    assert done.code == 0, done.err
    assert "offers no multi, sparse, hybrid: left out" in done.err
    assert "re-ranking lexical.trec" in done.out
    results = Results.read(tmp_path / "golden.given.rerank-3" / "tiny-dream-diffembed")
    assert results.task.first_stage.depth == results.task.depth == 3
    assert results.times.encoded_passages == results.task.first_stage.passages < 20
    refused = cli("evaluate", "bm25", *options)
    assert refused.code == 1
    assert "cannot re-rank" in refused.err


def test_an_estimate_encodes_nothing_for_good(cli, folder, tmp_path):
    model = GOLDEN / "checkpoints" / "tiny-dream"
    done = cli("evaluate", model, "-c", folder, "--out", tmp_path, "--estimate")
    assert done.code == 0
    assert "20 passages to encode; about" in done.err
    assert not list(tmp_path.rglob("shard-*"))
    assert not list(tmp_path.rglob("results.json"))


def test_the_mean_over_collections(cli, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    lines = (other / "qrels" / "dev.tsv").read_text().splitlines()
    (other / "qrels" / "dev.tsv").write_text("\n".join(lines[:5]) + "\n")
    done = cli("evaluate", "bm25", "-c", folder, "-c", other, "--out", tmp_path / "out", "--measures", "nDCG@10")
    assert done.code == 0, done.err
    values = [Results.read(p.parent).mode("lexical").measures["nDCG@10"] for p in tmp_path.rglob("results.json")]
    assert len(values) == 2
    assert f"{sum(values) / 2:.4f}" in done.out
    assert "queries have no judgement in this split" in done.err


def test_the_command_is_stamped(cli, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["diffretriever", "evaluate", "a b"])
    cli("evaluate", "bm25", "-c", folder, "--out", tmp_path, "--seed", 3)
    written = json.loads((tmp_path / "golden.dev" / "bm25" / "results.json").read_text())
    assert (written["command"], written["seed"]) == ("diffretriever evaluate 'a b'", 3)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--modes", "dense"], 2, "no mode 'dense'"),
        (["--measures", "ndcg_of_ten"], 1, "ndcg_of_ten"),
        (["--measures", ","], 1, "each once"),
        (["--split", "train"], 1, "no split 'train'; there are dev: choose one as the split (--split)"),
        (["-c", "elsewhere", "--qrels", "x"], 2, "belong to one collection"),
        (["--rerank", "nothing.trec"], 1, "cannot be opened"),
        (["--system", "colbert"], 1, "no system 'colbert'"),
    ],
)
def test_wrong_options(cli, folder, tmp_path, options, code, message):
    done = cli("evaluate", GOLDEN / "checkpoints" / "tiny-dream", "-c", folder, "--out", tmp_path, *options)
    assert done.code == code
    assert message in done.err
    assert not list(tmp_path.rglob("results.json"))


def test_measures_need_their_extra_before_anything_is_encoded(cli, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    command = ["evaluate", GOLDEN / "checkpoints" / "tiny-dream", "-c", folder, "--out", tmp_path]
    done = cli(*command)
    assert (done.code, "diffretriever[eval]" in done.err) == (1, True)
    assert list(tmp_path.iterdir()) == []
    assert cli(*command, "--estimate").code == 0  # which measures nothing
