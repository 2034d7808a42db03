from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffretriever.errors import InputError
from diffretriever.training.config import build_recipe, read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SOURCES = [{"path": "a.parquet", "weight": 1.0}]


def test_the_shipped_recipe_reads_and_overrides_apply():
    recipe = read_recipe(RECIPES / "mini.yaml", ["steps=7", "loss.words=0.5", "passage_tokens=[32, 64]"])
    assert (recipe.steps, recipe.loss.words, recipe.passage_tokens) == (7, 0.5, (32, 64))
    assert (recipe.query_slots, recipe.passage_slots) == (4, 16)
    assert sum(source.weight for source in recipe.sources) == pytest.approx(1.0)


def test_a_recipe_is_json():
    assert json.loads(build_recipe({"sources": SOURCES}).to_json())["sources"] == [SOURCES[0] | {"cloze": 0.0}]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"sources": SOURCES, "stepz": 1}, "stepz"),
        ({"sources": [{"file": "a"}]}, "file"),
        ({"sources": SOURCES, "loss": {"colour": 1}}, "colour"),
        ({"sources": SOURCES, "steps": 0}, "steps must be at least 1"),
        ({"sources": SOURCES, "batch": 10, "group": 4}, "multiple of group"),
        ({}, "no sources"),
    ],
)
def test_what_cannot_be_used_is_named(raw, words):
    with pytest.raises(InputError, match=words):
        build_recipe(raw)


def test_an_override_needs_a_value():
    with pytest.raises(InputError, match="key=value"):
        read_recipe(RECIPES / "mini.yaml", ["steps"])
