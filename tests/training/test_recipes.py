from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffretriever.errors import InputError
from diffretriever.training.recipes import build, find_recipe, read_recipe, read_stages
from diffretriever.training.settings import TrainingSettings

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = {"sources": [{"path": "a.parquet"}]}


def settings(**raw):
    return build(TrainingSettings, {"data": DATA} | raw, "")


def test_the_shipped_recipe_reads_and_overrides_apply():
    overrides = ["optimisation.steps=7", "loss.words=0.5", "data.passage_tokens=[32, 64]", "optimisation.clip=1e-1"]
    recipe = read_recipe(RECIPES / "mini.yaml", overrides)
    assert (recipe.optimisation.steps, recipe.loss.words, recipe.data.passage_tokens) == (7, 0.5, (32, 64))
    assert (recipe.model.query_slots, recipe.model.passage_slots, recipe.optimisation.clip) == (4, 16, 0.1)
    assert sum(source.weight for source in recipe.data.sources) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["mini", "mini.yaml", "recipes/mini.yaml", "recipes/repllama-qwen2.5-7b-msmarco.yaml"])
def test_shipped_recipes_are_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()  # a folder is no recipe
    found = find_recipe(name)
    assert found.parent == RECIPES
    assert found.stem == Path(name).name.removesuffix(".yaml")
    own = tmp_path / name
    if own.suffix:
        own.parent.mkdir(exist_ok=True)
        own.write_text("output: mine\n", encoding="utf-8")
        assert find_recipe(name) == Path(name)


@pytest.mark.parametrize("name", ["none.yaml", "mine/mini.yaml", "recipes", "/mini.yaml"])
def test_a_recipe_that_is_nowhere_is_said_with_those_that_are_shipped(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^{name}: no such recipe; give a YAML file, or one that is shipped: .*mini"):
        find_recipe(name)


def test_settings_survive_json():
    recipe = read_recipe(RECIPES / "mini.yaml", ["model.lora.r=8"])
    assert build(TrainingSettings, json.loads(recipe.to_json()), "") == recipe
    assert recipe.model.lora.r == 8


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"stepz": 1}, "unknown key 'stepz'; known are data, evaluation"),
        ({"data": {"sources": [{"file": "a"}]}}, r"`data.sources\[0\]`: unknown key 'file'"),
        ({"data": {"sources": [{"weight": 1}]}}, "lacks 'path'"),
        ({"loss": {"colour": 1}}, "`loss`: unknown key 'colour'"),
        ({"loss": 3}, "`loss` must hold keys and values"),
        ({"optimisation": {"steps": 0}}, "steps must be at least 1"),
        ({"optimisation": {"steps": 1.5}}, "`optimisation.steps` must be a whole number, got 1.5"),
        ({"optimisation": {"bf16": 1}}, "`optimisation.bf16` must be true or false"),
        ({"optimisation": {"learning_rate": "fast"}}, "must be a number, got 'fast'"),
        ({"optimisation": {"betas": [0.9]}}, "must be 2 values"),
        ({"optimisation": {"schedule": "steep"}}, "choose one of cosine, linear"),
        ({"optimisation": {"batch": 10}, "data": DATA | {"group": 4}, "teacher": {}}, "multiple of data.group"),
        ({"loss": {"scores": 1.0}}, "need a teacher"),
        ({"loss": {"temperature": 0}}, "above 0"),
        ({"loss": {"term_scores": 0.1}}, "adds to the teacher's scores"),
        ({"loss": {"word_support": 8}}, "set model.term_bias, too"),
        ({"loss": {"word_support": 0}, "model": {"term_bias": True}}, "word_support must be at least 1"),
        ({"teacher": {"rarity": -0.5}}, "rarity is -0.5; it must be 0 or above"),
        ({"model": {"system": "diffembed"}}, "reads no vocabulary head"),
        ({"model": {"system": "colbert"}}, "choose one of diffretriever"),
        ({"model": {"lora": {"r": 0}}}, "r must be at least 1"),
        ({"data": {"sources": []}}, "no sources"),
        ({"data": {"sources": [{"path": "a", "weight": 1}, {"path": "b"}]}}, "to all of them or to none"),
    ],
)
def test_what_cannot_be_used_is_named(raw, words):
    with pytest.raises(InputError, match=words):
        settings(**raw)


def test_an_override_needs_a_key_and_a_value():
    with pytest.raises(InputError, match="key=value"):
        read_recipe(RECIPES / "mini.yaml", ["steps"])


def test_a_file_that_is_no_recipe_is_named(tmp_path):
    (tmp_path / "torn.yaml").write_text("[", encoding="utf-8")
    with pytest.raises(InputError, match="not a readable recipe"):
        read_recipe(tmp_path / "torn.yaml")
    (tmp_path / "list.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(InputError, match="must hold keys and values, got list"):
        read_recipe(tmp_path / "list.yaml")


STAGES = """
output: out
model: {base: minilm, sha256: abc, slot_embeddings: true, slot_start: of, pooling_layer: true}
data: {sources: [{path: a.parquet}]}
optimisation: {steps: 9, batch: 8}
stages:
  - seed: 3
  - {seed: 4, optimisation: {steps: 5}, data: {sources: [{path: b.parquet}, {path: c.parquet}]}}
"""


@pytest.fixture
def stages_file(tmp_path):
    (tmp_path / "stages.yaml").write_text(STAGES, encoding="utf-8")
    return tmp_path / "stages.yaml"


def test_a_stage_starts_from_the_model_of_the_one_before(stages_file):
    first, second = read_stages(stages_file)
    assert (first.output, first.model.base, first.model.sha256) == ("out/stage-1", "minilm", "abc")
    assert (second.output, second.model.base, second.model.sha256) == ("out", "out/stage-1/model", None)
    # What makes slots and layers of another model's weights is not done twice.
    assert (first.model.slot_start, first.model.pooling_layer) == ("of", True)
    assert (second.model.slot_start, second.model.pooling_layer) == ("auto", False)
    assert second.model.slot_embeddings


def test_a_stage_has_its_own_settings_and_those_of_the_file(stages_file):
    first, second = read_stages(stages_file)
    assert (first.seed, second.seed) == (3, 4)
    assert (first.optimisation.steps, second.optimisation.steps) == (9, 5)
    assert first.optimisation.batch == second.optimisation.batch == 8
    assert [len(s.data.sources) for s in (first, second)] == [1, 2]


def test_overrides_hold_for_every_stage_and_the_base_for_the_first(stages_file):
    first, second = read_stages(stages_file, ["optimisation.steps=2", "output=here", "model.base=mine"])
    assert first.optimisation.steps == second.optimisation.steps == 2
    assert (first.output, second.output) == ("here/stage-1", "here")
    assert (first.model.base, second.model.base) == ("mine", "here/stage-1/model")


@pytest.mark.parametrize(("key", "value"), [("base", "mine"), ("sha256", "abc"), ("sha256", None)])
def test_what_a_later_stage_starts_from_is_not_for_it_to_say(tmp_path, key, value):
    recipe = {"data": DATA, "stages": [{"model": {"base": "minilm"}}, {"model": {key: value}}]}
    (tmp_path / "own.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    with pytest.raises(InputError, match=rf"own.yaml: stage 2 sets model.{key} to {value!r}, but starts from the mod"):
        read_stages(tmp_path / "own.yaml")


@pytest.mark.parametrize("override", ["stages=[]", "stages.0.seed=3"])
def test_an_override_cannot_set_a_stage(stages_file, override):
    with pytest.raises(InputError, match=r"an override holds for all stages, and none can set one, got 'stages"):
        read_stages(stages_file, [override])


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ({}, {}, True),
        ({"merge": True}, {}, False),
        ({}, {"merge": True}, False),
        ({}, None, False),
        (None, {}, False),
    ],
)
def test_an_adapter_is_not_put_on_an_adapter(tmp_path, first, second, refused):
    recipe = {"data": DATA, "stages": [{"model": {"lora": lora}} for lora in ({}, first, second)]}
    recipe["stages"][0]["model"]["lora"] = {"merge": True}
    (tmp_path / "lora.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    if refused:
        with pytest.raises(InputError, match=r"stage 2 ends as an adapter, and stage 3 cannot put another on it"):
            read_stages(tmp_path / "lora.yaml")
    else:
        assert len(read_stages(tmp_path / "lora.yaml")) == 3


def test_a_recipe_without_stages_is_one_run():
    path = RECIPES / "dream-7b-msmarco.yaml"
    assert read_stages(path, ["seed=5"]) == [read_recipe(path, ["seed=5"])]


@pytest.mark.parametrize("value", ["[]", "3", "{seed: 1}", "[1]"])
def test_stages_that_are_no_list_of_settings_are_named(tmp_path, value):
    (tmp_path / "bad.yaml").write_text(f"data: {{sources: [{{path: a}}]}}\nstages: {value}\n", encoding="utf-8")
    with pytest.raises(InputError, match="`stages` must be a list of keys and values, one per stage"):
        read_stages(tmp_path / "bad.yaml")
