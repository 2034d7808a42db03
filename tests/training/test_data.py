from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffretriever.errors import CorpusError
from diffretriever.training.config import Recipe, Source
from diffretriever.training.data import PairFile, PairSchedule, cloze

TEXT = "Masked positions are read at once. The passage is long enough for it. A third piece ends this small text."


@pytest.fixture
def folder(tmp_path):
    pairs = {"query": [f"title {i}" for i in range(40)], "positive": [f"passage number {i}" for i in range(40)]}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    pq.write_table(pa.table({"text": [f"{TEXT} Number {i}." for i in range(30)]}), tmp_path / "texts.parquet")
    return tmp_path


def schedule(folder, **changes):
    sources = (Source("pairs.parquet", 0.75), Source("texts.parquet", 0.25, cloze=1.0))
    recipe = Recipe(
        **{"data": str(folder), "sources": sources, "steps": 8, "batch": 4, "group": 1, "pool": 2} | changes
    )
    return PairSchedule(recipe, [PairFile.read(folder / s.path) for s in sources])


def test_shares_follow_the_weights(folder):
    drawn = [schedule(folder).source(step) for step in range(8)]
    assert drawn.count(0) == 6
    assert drawn.count(1) == 2


def test_no_pair_comes_twice_before_all_have_come(folder):
    s = schedule(folder)
    seen = [pair for step in range(8) if s.source(step) == 0 for pair in s.batch(step)]
    assert len(seen) == len(set(seen)) == 24


def test_any_order_of_steps_gives_the_same_batches(folder):
    forward, backward = schedule(folder), schedule(folder)
    expected = [forward.batch(step) for step in range(8)]
    assert [backward.batch(step) for step in reversed(range(8))] == expected[::-1]


def test_another_seed_draws_otherwise(folder):
    assert schedule(folder, seed=1).batch(0) != schedule(folder, seed=2).batch(0)


def test_every_process_draws_the_same(folder):
    program = (
        "import sys; from tests.training.test_data import schedule; from pathlib import Path;"
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


def test_a_cloze_query_comes_from_the_passage():
    drawn = [cloze(TEXT, np.random.default_rng(seed)) for seed in range(40)]
    assert all(pair.query in TEXT for pair in drawn)
    kept = sum(pair.query in pair.passage for pair in drawn)
    assert 2 <= kept <= 20
    assert all(pair.passage in TEXT or pair.query not in pair.passage for pair in drawn)


def test_a_short_text_gives_no_cloze():
    assert cloze("One piece only.", np.random.default_rng(0)) is None


def test_groups_hold_neighbours(tmp_path):
    n = 24
    pairs = {"query": [f"q {i % 6} {i}" for i in range(n)], "positive": [str(i) for i in range(n)]}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    recipe = Recipe(data=str(tmp_path), sources=(Source("pairs.parquet", 1.0),), steps=2, batch=12, pool=2, group=4)

    def embed(texts):
        return np.eye(6, dtype=np.float32)[[int(text.split()[1]) for text in texts]]

    s = PairSchedule(recipe, [PairFile.read(tmp_path / "pairs.parquet")], embed)
    for step in range(2):
        topics = [pair.query.split()[1] for pair in s.batch(step)]
        assert all(len(set(topics[i : i + 4])) == 1 for i in range(0, 12, 4))


def test_a_missing_file_and_foreign_columns_say_so(tmp_path):
    with pytest.raises(CorpusError, match="does not exist"):
        PairFile.read(tmp_path / "none.parquet")
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "odd.parquet")
    with pytest.raises(CorpusError, match="question"):
        PairFile.read(tmp_path / "odd.parquet")
