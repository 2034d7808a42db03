from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from diffretriever import open_system
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


def test_mistakes_are_named_without_a_traceback(recipe):
    done = CliRunner().invoke(app, ["train", str(recipe), "--set", "optimisation.stepz=2"])
    assert done.exit_code == 1
    assert "error: `optimisation`: unknown key 'stepz'; known are batch, betas" in done.stderr
