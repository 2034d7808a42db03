"""Every study of the paper by the commands that users give, on checkpoints in the layout of Dream's and LLaDA's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from diffretriever.evaluation.results import Results
from diffretriever.studies.latency_results import LatencyResults
from diffretriever.studies.sweep_results import SweepResults

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = {"tiny-dream": "Dream", "tiny-llada": "llada"}


def lines(name):
    return (GOLDEN / "data" / name).read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def marco(tmp_path_factory):
    """The golden data in MS MARCO's layout: collection and topics tab-separated, judgements in TREC's four columns."""
    made = tmp_path_factory.mktemp("marco")
    corpus, queries = ([json.loads(line) for line in lines(name)] for name in ("corpus.jsonl", "queries.jsonl"))
    passages = [f"{row['_id']}\t{' '.join((row['title'] + ' ' + row['text']).split())}\n" for row in corpus]
    (made / "collection.tsv").write_text("".join(passages), encoding="utf-8")
    (made / "topics.tsv").write_text("".join(f"{row['_id']}\t{row['text']}\n" for row in queries), encoding="utf-8")
    shutil.copy(GOLDEN / "data" / "qrels.tsv", made / "qrels.trec")
    return made


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    """The golden data in BEIR's layout, with a split to choose on and one to test on."""
    made = tmp_path_factory.mktemp("beir") / "golden"
    (made / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        shutil.copy(GOLDEN / "data" / name, made / name)
    judged = ["\t".join((query, passage, grade)) for query, _, passage, grade in map(str.split, lines("qrels.tsv"))]
    for split in ("train", "test"):
        text = "\n".join(["query-id\tcorpus-id\tscore", *judged, ""])
        (made / "qrels" / f"{split}.tsv").write_text(text, encoding="utf-8")
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_a_published_checkpoint_goes_through_every_study(cli, marco, beir, tmp_path, name):
    model = GOLDEN / "checkpoints" / name
    assert json.loads((model / "config.json").read_text())["model_type"] == FAMILIES[name]

    def done(*command):
        ended = cli(*command)
        assert ended.code == 0, ended.err
        return ended

    queries = ["--topics", marco / "topics.tsv", "--qrels", marco / "qrels.trec"]
    out = tmp_path / "results"
    done("evaluate", "bm25", "-c", marco / "collection.tsv", *queries, "--out", out)
    done("evaluate", model, "-c", marco / "collection.tsv", *queries, "--out", out)
    done("evaluate", model, "-c", beir, "--out", out)
    done("sweep", model, "-c", beir, "--split", "train", "--transfer", beir, "--grid", "1,4", "--out", tmp_path / "k")
    options = ["--lengths", "20", "--slots", "1,4", "--rounds", 3, "--batch", 2, "--sizes", "50"]
    done("latency", model, *options, "--out", tmp_path / "t")
    done("report", out, tmp_path / "k", tmp_path / "t", "--out", tmp_path / "page.md")

    results = Results.read(out / "collection.given" / name)
    assert {mode.mode for mode in results.modes} == {"single", "multi", "sparse", "hybrid"}
    assert results.system.provenance.model == str(model)
    assert len(SweepResults.read(tmp_path / "k" / "sweep.json").grids[0].cells) == 4
    assert [s.vectors for s in LatencyResults.read(tmp_path / "t" / "latency.json").systems] == [1, 4]
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    for heading in ("Effectiveness", f"Number of masked positions: {name}", "Effectiveness and latency"):
        assert f"## {heading}" in text
    for mode in results.modes:
        assert f"{mode.measures['nDCG@10']:.4f}" in text
