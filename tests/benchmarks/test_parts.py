"""The benchmark of vectors of parts, on a few passages."""

from __future__ import annotations

import re
import sys

import parts


def test_the_whole_and_its_parts_are_measured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["parts.py", "scifact", "--split", "test", "--queries", "4", "--passages", "12"])
    parts.main()
    said = capsys.readouterr().out
    assert said.startswith("4 queries, 12 passages, minilm, float32")
    values = [float(v) for v in re.findall(r"(?<= )[01]\.\d{4}", said)]
    # Twelve abstracts, those that were asked for among them: whoever reads them finds most.
    assert len(values) == 7
    assert min(values) > 0.5
