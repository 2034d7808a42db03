from __future__ import annotations

import json

import matched
import pytest

from diffretriever.training.recipes import read_recipe
from diffretriever.training.settings import TrainingSettings


def write(folder, label, modes):
    folder = folder / "results" / "few.test" / label
    folder.mkdir(parents=True)
    found = [{"mode": mode, "per_query": {"nDCG@10": values}} for mode, values in modes.items()]
    (folder / "results.json").write_text(json.dumps({"modes": found}), encoding="utf-8")


def test_systems_differ_in_what_they_are_and_in_nothing_else():
    whole = [read_recipe(matched.RECIPE, own) for own in matched.SYSTEMS.values()]
    assert [(s.model.system, s.model.query_slots, s.model.passage_slots) for s in whole] == [
        ("diffembed", None, None),
        ("diffretriever", 1, 1),
        ("diffretriever", 4, 16),
    ]
    kept = ("data", "seed", "loss", "optimisation", "teacher", "trainer")
    assert all(getattr(s, name) == getattr(whole[0], name) for s in whole for name in kept)
    assert isinstance(whole[0], TrainingSettings)


def test_the_table_has_means_and_deviations_over_seeds_and_pairs_have_their_queries(tmp_path):
    for seed, gain in ((1, 0.0), (2, 0.1)):
        write(tmp_path, f"diffembed-seed{seed}", {"single": {"a": 0.5, "b": 0.2 + gain}})
        multi = {q: v for q, v in zip("ab", (0.9, 0.4 + gain), strict=True)}
        write(tmp_path, f"k4-16-seed{seed}", {"multi": multi, "single": {"a": 0.6, "b": 0.3}})
    values = {row: matched._values(tmp_path, *matched.ROWS[row], [1, 2]) for row in list(matched.ROWS)[::3]}
    table = matched._table(values)
    assert "| DiffEmbed, mean of tokens | 0.375 (0.035) | 0.375 (0.035) |" in table
    assert "| DiffRetriever (4, 16), MaxSim | 0.675 (0.035) |" in table
    (pair,) = matched._pairs(values, "few.test")
    assert (pair.first, pair.second) == ("DiffRetriever (4, 16), MaxSim", "DiffEmbed, mean of tokens")
    assert pair.difference == pytest.approx(0.3)
    assert pair.randomisation_p == pytest.approx(0.5)  # two queries that agree: the least that two can say
    assert f"| few.test | {pair.first} | {pair.second} | +0.300 | 0.5000 |" in matched._pair_table({"few.test": [pair]})
