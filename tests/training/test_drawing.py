from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffretriever.training.drawing import cloze, draw_negatives
from diffretriever.training.recipes import build
from diffretriever.training.rows import open_rows
from diffretriever.training.schedule import Schedule, rate
from diffretriever.training.settings import TrainingSettings

TEXT = "Masked positions are read at once. The passage is long enough for it. A third piece ends this small text."


@pytest.fixture
def folder(tmp_path):
    pairs = {
        "query": [f"title {i}" for i in range(40)],
        "positive": [f"passage number {i}" for i in range(40)],
        "negative": [[f"wrong {i} {j}" for j in range(6)] for i in range(40)],
    }
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    pq.write_table(pa.table({"text": [f"{TEXT} Number {i}." for i in range(30)]}), tmp_path / "texts.parquet")
    return tmp_path


def schedule(folder, embed=None, seed=1, steps=8, batch=4, **data):
    sources = [{"path": "pairs.parquet", "weight": 0.75}, {"path": "texts.parquet", "weight": 0.25, "cloze": 1.0}]
    raw = {
        "seed": seed,
        "teacher": {},
        "data": {"folder": str(folder), "sources": sources, "negatives": 2} | data,
        "optimisation": {"steps": steps, "batch": batch},
    }
    settings = build(TrainingSettings, raw, "")
    return Schedule(settings, [open_rows(folder / s.path) for s in settings.data.sources], embed)


def test_shares_follow_the_weights(folder):
    drawn = [schedule(folder).source(step) for step in range(8)]
    assert drawn.count(0) == 6
    assert drawn.count(1) == 2


def test_no_row_comes_twice_before_all_have_come(folder):
    s = schedule(folder)
    seen = [example.query for step in range(8) if s.source(step) == 0 for example in s.batch(step)]
    assert len(seen) == len(set(seen)) == 24


def test_any_order_of_steps_gives_the_same_batches(folder):
    forward, backward = schedule(folder), schedule(folder)
    expected = [forward.batch(step) for step in range(8)]
    assert [backward.batch(step) for step in reversed(range(8))] == expected[::-1]


def test_another_seed_draws_otherwise(folder):
    assert schedule(folder, seed=1).batch(0) != schedule(folder, seed=2).batch(0)


def test_every_process_draws_the_same(folder):
    program = (
        "import sys; from tests.training.test_drawing import schedule; from pathlib import Path;"
        "print([schedule(Path(sys.argv[1])).batch(i) for i in range(8)])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p) + ":."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


def test_negatives_rotate_until_all_have_come(folder):
    s = schedule(folder, steps=30, sources=[{"path": "pairs.parquet"}])
    by_query = {}
    for step in range(30):
        for example in s.batch(step):
            by_query.setdefault(example.query, []).append(example.negatives)
    assert len(by_query) == 40
    for query, drawn in by_query.items():
        own = query.removeprefix("title ")
        assert len(drawn) == 3
        assert sorted(n for ns in drawn for n in ns) == [f"wrong {own} {j}" for j in range(6)]


def test_a_row_with_few_negatives_gives_them_again_and_one_with_none_gives_none():
    assert sorted(draw_negatives(["a", "b"], 4, 0, np.random.default_rng(0))) == ["a", "a", "b", "b"]
    assert draw_negatives([], 4, 0, np.random.default_rng(0)) == ()


def test_a_cloze_query_comes_from_the_passage():
    drawn = [cloze(TEXT, np.random.default_rng(seed)) for seed in range(40)]
    assert all(example.query in TEXT for example in drawn)
    kept = sum(example.query in example.positive for example in drawn)
    assert 2 <= kept <= 20
    assert all(example.positive in TEXT or example.query not in example.positive for example in drawn)


def test_a_short_text_gives_no_cloze():
    assert cloze("One piece only.", np.random.default_rng(0)) is None


def test_groups_hold_neighbours(tmp_path):
    n = 24
    pairs = {"query": [f"q {i % 6} {i}" for i in range(n)], "positive": [str(i) for i in range(n)]}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")

    def embed(texts):
        return np.eye(6, dtype=np.float32)[[int(text.split()[1]) for text in texts]]

    s = schedule(tmp_path, embed, steps=2, batch=12, pool=2, group=4, sources=[{"path": "pairs.parquet"}])
    for step in range(2):
        topics = [example.query.split()[1] for example in s.batch(step)]
        assert all(len(set(topics[i : i + 4])) == 1 for i in range(0, 12, 4))


def test_steps_follow_the_epochs(folder):
    sources = [{"path": "pairs.parquet"}, {"path": "texts.parquet"}]
    raw = {"data": {"folder": str(folder), "sources": sources}, "optimisation": {"epochs": 2.0, "batch": 16}}
    settings = build(TrainingSettings, raw, "")
    s = Schedule(settings, [open_rows(folder / "pairs.parquet"), open_rows(folder / "texts.parquet")])
    assert s.steps == 9  # 2 x 70 rows in batches of 16
    assert [s.source(step) for step in range(9)].count(0) == 5


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_the_rate_rises_then_falls_to_zero(shape):
    rates = [rate(step, 100, 0.1, shape) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert rates[10:] == sorted(rates[10:], reverse=True)
