"""The benchmark of slots without their common direction, on a few passages."""

from __future__ import annotations

import json
import re
import sys

import centered
import numpy as np
import pytest

from diffretriever import DiffRetriever


def test_every_mode_is_measured_without_and_with_the_means(tmp_path, monkeypatch, capsys):
    rows = [
        {"query": f"a question about {w}", "positive": f"A text that says much of {w}."}
        for w in ("tea", "rain", "dogs")
    ]
    texts = tmp_path / "rows.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    few = ["--texts", str(texts), "--queries", "4", "--passages", "12"]
    monkeypatch.setattr(sys, "argv", ["centered.py", "mini", "scifact", *few])
    centered.main()
    said = capsys.readouterr().out
    assert said.startswith("4 queries, 12 passages, means of 3 rows, nDCG@10")
    values = [float(v) for v in re.findall(r"(?<= )[01]\.\d{4}", said)]
    assert len(values) == 9
    assert min(values) > 0.5


def test_slots_lose_what_they_have_in_common():
    model = DiffRetriever.from_pretrained("mini", device="cpu", dtype="float32")
    texts = model.encode_passages(["Bread dough rises.", "A hash table stores keys.", "The violin has four strings."])
    means = centered.slot_means(texts)
    assert means.shape == (16, 384)
    moved = centered.center(texts, means)
    slots = [t.dense.reshape(3, 16, 384) for t in (texts, moved)]
    cosines = [np.einsum("ikd,jkd->ijk", s, s)[~np.eye(3, dtype=bool)].mean() for s in slots]
    # Three directions without their mean stand at 120 degrees.
    assert cosines[0] > 0
    assert cosines[1] == pytest.approx(-0.5, abs=0.05)
    assert np.allclose(np.linalg.norm(moved.dense, axis=1), 1, atol=1e-5)
    assert centered.center(texts, 0 * means).dense == pytest.approx(texts.dense, abs=1e-6)
