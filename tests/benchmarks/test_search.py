from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import search
import torch
from pairs import DisagreementError

from diffretriever.late_interaction import Slots


def test_the_script_measures_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "search.json"
    search.main(["--passages", "300", "--queries", "3", "--rounds", "1", "--out", str(out)])
    written = json.loads(out.read_text())
    assert written["about"]["machine"]["threads"] == 1
    assert written["about"]["passages"] == 300
    rows = {row["name"]: row for row in written["rows"]}
    assert rows["MaxSim, 32 queries, float16 on disk, products in float32"]["ratio"]["cpu"] > 0
    assert rows["engine, multi, exact"]["agreement"] == 1
    assert rows["engine, sparse, exact"]["p50 ms"] > 0
    assert "| comparison |" in capsys.readouterr().out


def test_wrong_scores_are_found() -> None:
    vectors = np.eye(search.PASSAGE_SLOTS, search.DIM, dtype=np.float32).repeat(search.CHECKED, axis=0)
    passages = Slots(vectors, np.arange(search.CHECKED + 1) * search.PASSAGE_SLOTS)
    queries = Slots(np.eye(search.QUERY_SLOTS, search.DIM, dtype=np.float32), np.array([0, search.QUERY_SLOTS]))
    right = search.all_scores(queries, passages, torch.float32)
    assert search.disagreement(queries, passages, torch.float32, right, None) is None
    assert "off by 0.5" in str(search.disagreement(queries, passages, torch.float32, right + 0.5, None))


def test_the_yardstick_does_the_same_number_of_flop(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    monkeypatch.setattr(torch, "mm", lambda a, b, out: rows.append(len(a)))
    search.matrix_products(2 * search.SIDE**2 * 2500, torch.float32)()
    assert rows == [1024, 1024, 452]


def test_an_engine_that_finds_others_gives_no_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(search, "_share", lambda found, truth: 0.5)
    with pytest.raises(DisagreementError, match=r"multi: 0\.500 of the ten best"):
        search.main(["--rows", "engine", "--passages", "60", "--queries", "2"])
