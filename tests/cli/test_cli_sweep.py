from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from diffretriever.evaluation.results import Results
from diffretriever.studies.sweep_results import SweepResults

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = GOLDEN / "checkpoints" / "tiny-dream"
OPTIONS = ["--grid", "1,2,4", "--transfer-split", "test", "--control", "noise", "--control", "prompts"]
RANKINGS = {"dense": ("multi", "single"), "sparse": ("sparse",), "hybrid": ("hybrid",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden data as a BEIR folder whose test split judges half of the queries."""
    made = tmp_path_factory.mktemp("c") / "golden"
    (made / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        shutil.copy(GOLDEN / "data" / name, made / name)
    lines = (GOLDEN / "data" / "qrels.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (made / "qrels" / "train.tsv").write_text("".join(lines), encoding="utf-8")
    (made / "qrels" / "test.tsv").write_text("".join(lines[:7]), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def out(tmp_path_factory, folder):
    """A whole sweep."""
    from diffretriever.cli.main import app

    made = tmp_path_factory.mktemp("sweep")
    command = ["sweep", MODEL, "-c", folder, "--transfer", folder, *OPTIONS, "--out", made]
    with pytest.raises(SystemExit) as stop:
        app([str(part) for part in command])
    assert not stop.value.code
    return made


@pytest.mark.parametrize("pair", [(1, 1), (1, 4), (4, 2)])
def test_a_pair_has_the_scores_of_an_evaluation_of_its_own(cli, out, folder, tmp_path, pair):
    slots = ["--query-slots", pair[0], "--passage-slots", pair[1]]
    command = ["evaluate", MODEL, "-c", folder, "--split", "train", *slots, "--label", "x", "--measures", "nDCG@10"]
    assert cli(*command, "--out", tmp_path).code == 0
    alone = tmp_path / "golden.train" / "x"
    cell = SweepResults.read(out / "sweep.json").grids[0].at(pair)
    for mode, value in cell.values.items():
        ranking = next(name for name in RANKINGS[mode] if (out / cell.results / f"{name}.trec").is_file())
        assert value == pytest.approx(Results.read(alone).mode(ranking).measures["nDCG@10"], abs=1e-12)
        # Runs hold every score to nine digits; only the tag differs.
        ours, theirs = (run(path / f"{ranking}.trec") for path in (out / cell.results, alone))
        assert ours == theirs
    assert Results.read(out / cell.results).system.provenance == Results.read(alone).system.provenance


def run(path):
    return [line.split()[:5] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_choice_is_the_best_of_the_training_split_and_its_transfer_is_said(out):
    found = SweepResults.read(out / "sweep.json")
    train, test = found.grids
    assert (train.split, test.split) == ("train", "test")
    assert 1 < test.queries < train.queries == 8
    assert len(train.cells) == 9
    assert found.default == (4, 16)
    for transfer in found.transfers:
        values = {cell.pair: cell.values[transfer.mode] for cell in train.cells}
        assert values[transfer.chosen] == max(values.values())
        there = {cell.pair: cell.values[transfer.mode] for cell in test.cells}
        assert transfer.chosen_value == there[transfer.chosen] <= transfer.best_value == max(there.values())
        assert transfer.rank == 1 + sum(value > transfer.chosen_value for value in there.values())
        assert transfer.default_value is None  # (4, 16) is not in the grid


def test_the_oracle_and_its_control_are_over_as_many_variants(out):
    found = SweepResults.read(out / "sweep.json")
    assert [(r.mode, r.choice, r.control) for r in found.oracles] == [
        (mode, choice, control)
        for control in ("noise", "prompts")
        for mode in ("dense", "sparse", "hybrid")
        for choice in ("pair", "query side")
    ]
    for row in found.oracles:
        oracle, control = row.headroom.oracle, row.headroom.control
        assert len(oracle.variants) == len(control.variants) == (9 if row.choice == "pair" else 3)
        assert oracle.oracle_mean >= oracle.best_mean
        assert control.oracle_mean >= control.best_mean
        chosen = found.chosen[row.mode]
        assert oracle.best_mean == pytest.approx(found.grids[0].at(chosen).values[row.mode])
        assert row.headroom.excess.value == pytest.approx(oracle.gain.value - control.gain.value)


def test_variants_of_the_control_differ(out):
    """Noise and wordings reach the encoder: no two variants of a control rank alike."""
    for kind in ("noise", "prompts"):
        folders = sorted((out / "golden.train").glob(f"tiny-dream-{kind}-*"))
        runs = {json.dumps(run(next(f.glob("hybrid.trec")))) for f in folders}
        assert len(runs) == len(folders) >= 9


def test_passages_are_encoded_once_per_number_of_slots(out, folder, cli, tmp_path):
    command = ["sweep", MODEL, "-c", folder, "--grid", "1,2,4", "--control", "none", "--modes", "dense"]
    done = cli(*command, "--out", tmp_path)
    assert done.code == 0
    # K_p = 1, 2, 4, and K_p = 1 of (1, 1), which asks for one word.
    assert len(list((tmp_path / "encodings").iterdir())) == 4
    times = [Results.read(path).times for path in (tmp_path / "golden.train").iterdir()]
    assert sum(t.encoded_passages for t in times) == 4 * 20
    again = cli(*command, "--out", tmp_path)
    assert again.out == done.out
    assert "about 1 s to encode" in again.err


def test_a_sweep_goes_on_where_it_stopped(out, folder, cli, tmp_path):
    """Without some of its results and encodings it makes these again, and nothing else changes."""
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    kept = copy / "golden.train" / "tiny-dream-q2-p2" / "results.json"
    before = kept.stat().st_mtime_ns
    shutil.rmtree(copy / "golden.train" / "tiny-dream-q4-p4")
    (copy / "sweep.json").unlink()
    for shard in sorted(copy.glob("encodings/*/shard-00000"))[::2]:
        shutil.rmtree(shard)
    done = cli("sweep", MODEL, "-c", folder, "--transfer", folder, *OPTIONS, "--out", copy)
    assert done.code == 0
    assert kept.stat().st_mtime_ns == before
    first, second = (SweepResults.read(path / "sweep.json") for path in (out, copy))
    assert (first.grids, first.transfers, first.oracles) == (second.grids, second.transfers, second.oracles)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--control", "luck"], "no control 'luck'; choose from noise, prompts, or none alone"),
        (["--control", "none", "--control", "noise"], "no control 'none'"),
        (["--grid", "1,many"], "'1,many' is no list of whole numbers"),
        (["--grid", "0,4"], "'0,4' holds 0; the least is 1"),
        (["--prompt", "plain", "--control", "prompts"], "does not ask for words"),
        (["--grid", "1,2,3,4,5,6", "--control", "prompts"], "6 wordings are needed"),
    ],
)
def test_what_cannot_be_swept_is_explained(cli, folder, tmp_path, options, said):
    done = cli("sweep", MODEL, "-c", folder, "--out", tmp_path, *options)
    assert done.code == 1
    assert said in done.err


def test_causal_models_have_nothing_to_sweep(cli, folder, tmp_path):
    done = cli("sweep", GOLDEN / "checkpoints" / "tiny-qwen2", "-c", folder, "--out", tmp_path)
    assert done.code == 1
    assert "no masked positions" in done.err


def test_bm25_has_nothing_to_sweep(cli, folder, tmp_path):
    done = cli("sweep", "bm25", "-c", folder, "--out", tmp_path)
    assert done.code == 1
    assert "bm25 ranks by words and has no masked positions" in done.err


def test_pairs_are_chosen_on_the_training_split_unless_told_otherwise(cli, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = cli("sweep", "--help").out
    assert "[default: train]" in next(line for line in shown.splitlines() if " --split " in line)
    assert "bm25" not in shown
    refused = cli("sweep", MODEL, "-c", "scifact", "--out", tmp_path)
    assert refused.code == 1
    assert "no split 'train'; there are test: choose one as the split (--split)" in refused.err


def test_measures_need_their_extra_before_anything_is_encoded(cli, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    done = cli("sweep", MODEL, "-c", folder, "--grid", "1", "--out", tmp_path)
    assert (done.code, "diffretriever[eval]" in done.err) == (1, True)
    assert list(tmp_path.iterdir()) == []
