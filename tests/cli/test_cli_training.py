from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from diffretriever import DiffRetriever, open_system
from diffretriever.cli.main import app

RECIPE = """
output: {output}
model: {{base: {base}, query_slots: 1, passage_slots: 2, max_query_length: 90, max_passage_length: 100}}
data: {{folder: {folder}, sources: [{{path: pairs.parquet}}]}}
optimisation: {{steps: 9, batch: 4, bf16: false}}
"""


@pytest.fixture
def recipe(tmp_path, checkpoints):
    pairs = {"query": [f"query {i}" for i in range(8)], "positive": [f"passage {i}" for i in range(8)]}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    text = RECIPE.format(output=tmp_path / "run", folder=tmp_path, base=checkpoints / "tiny-dream")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "recipe.yaml"


def test_a_recipe_becomes_a_model(recipe, tmp_path):
    done = CliRunner().invoke(app, ["train", str(recipe), "--set", "optimisation.steps=2"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "run" / "model")
    settings = open_system(tmp_path / "run" / "model", device="cpu").settings
    assert (settings.query_slots, settings.passage_slots) == (1, 2)


def test_stages_train_one_after_the_other(recipe, tmp_path):
    recipe.write_text(recipe.read_text(encoding="utf-8") + "stages: [{}, {loss: {sparse: 0.5}, seed: 2}]\n", "utf-8")
    call = ["train", str(recipe), "--set", "optimisation.steps=2"]
    shown = CliRunner().invoke(app, [*call, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("dry run: ") == 2
    assert not (tmp_path / "run").exists()
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "run" / "model")
    assert "run/stage-1, stage 1 of 2" in done.stderr.replace("\n", "")
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert run["settings"]["model"]["base"] == str(tmp_path / "run" / "stage-1" / "model")
    vectors = [
        DiffRetriever.from_pretrained(folder, device="cpu").encode_queries(["a query"]).vectors(0)
        for folder in (tmp_path / "run" / "stage-1" / "model", tmp_path / "run" / "model")
    ]
    assert 0 < abs(vectors[0] - vectors[1]).max() < 0.2  # two steps further, not two steps from the base


def test_a_stage_goes_on_only_from_the_model_that_it_started_from(recipe, tmp_path):
    text = recipe.read_text(encoding="utf-8")
    call = ["train", str(recipe), "--set", "optimisation.steps=2"]
    recipe.write_text(text + "stages: [{}, {seed: 2}]\n", "utf-8")
    for _ in range(2):  # the second time both stages are finished
        done = CliRunner().invoke(app, call)
        assert done.exit_code == 0, done.output
    recipe.write_text(text + "stages: [{seed: 5}, {seed: 2}]\n", "utf-8")
    shutil.rmtree(tmp_path / "run" / "stage-1")
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 1
    assert "holds a run with other settings, data or base (base_fingerprint was" in " ".join(done.stderr.split())


def test_mistakes_are_named_without_a_traceback(recipe):
    done = CliRunner().invoke(app, ["train", str(recipe), "--set", "optimisation.stepz=2"])
    assert done.exit_code == 1
    assert "error: `optimisation`: unknown key 'stepz'; known are batch, betas" in done.stderr


def test_a_shipped_recipe_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # With a setting that there is not: what the recipe needs beside its file is not here.
    for name in ("mini", "recipes/mini.yaml"):
        done = CliRunner().invoke(app, ["train", name, "--dry-run", "--set", "stepz=2"])
        assert "unknown key 'stepz'" in done.stderr
        assert "recipes/mini.yaml" in done.stderr.replace("\n", "")
    missing = CliRunner().invoke(app, ["train", "maxi"])
    assert missing.exit_code == 1
    assert "error: maxi: no such recipe" in missing.stderr
