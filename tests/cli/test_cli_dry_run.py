from __future__ import annotations

import json
import re
from pathlib import Path

from cli_samples import MODEL, write_jsonl

RECIPES = Path(__file__).parents[2] / "recipes"
ROWS = [{"query": f"planet {i}", "positive": f"planet number {i}", "negative": ["bread", "violin"]} for i in range(6)]


def test_a_dry_run_shows_the_cost_and_writes_nothing(cli, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    shared = ["--set", f"data.folder={tmp_path}", "--set", "data.sources=[{path: rows.jsonl}]", "--dry-run"]
    shared += ["--set", "optimisation.batch=2", "--set", "data.negatives=2", "--set", f"output={tmp_path / 'out'}"]
    recipe = RECIPES / "dream-7b-msmarco.yaml"
    done = cli("train", recipe, *shared, "--set", f"model.base={MODEL}")
    assert done.code == 0, done.err
    assert "two real steps" in done.out
    assert "memory of a device" in done.out
    assert not (tmp_path / "out").exists()


def test_a_later_stage_is_estimated_with_its_own_model_settings(cli, tmp_path):
    """They stand on the first stage's base, since what the stage starts from is not made yet."""
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    recipe = {
        "output": str(tmp_path / "out"),
        "model": {"base": str(MODEL), "prompt": "plain", "max_query_length": 64, "max_passage_length": 64},
        "data": {"folder": str(tmp_path), "sources": [{"path": "rows.jsonl"}]},
        "optimisation": {"steps": 1, "batch": 2, "bf16": False},
        "stages": [
            {"model": {"query_slots": 2, "passage_slots": 3}},
            {"model": {"lora": {"r": 2}}},
            {"model": {"passage_slots": 9}},
        ],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = cli("train", tmp_path / "recipe.yaml", "--dry-run")
    assert done.code == 0, done.err
    trained = [int(n.replace(",", "")) for n in re.findall(r"trained ([\d,]+)", done.out)]
    assert trained[1] < trained[0] / 10
    assert trained[2] == trained[0]
    passages = [int(n) for n in re.findall(r"queries, (\d+) of passages", done.out)]
    assert passages[0] == passages[1] == passages[2] - 6 * 2


def test_a_base_that_is_not_here_is_stood_in_for_by_its_shape(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    shared = ["--set", f"data.folder={tmp_path}", "--set", "data.sources=[{path: rows.jsonl}]", "--dry-run"]
    done = cli("train", RECIPES / "dream-7b-msmarco.yaml", *shared)
    assert done.code == 0, done.err
    assert "7,615,616,512, trained 40,370,176" in done.out
    assert "shape" in done.err
