"""The benchmark of vectors of parts, on a few passages."""

from __future__ import annotations

import re
import sys

import parts
import pytest


@pytest.mark.parametrize(("more", "said_of"), [([], ""), (["--rarity", "0.35"], ", rarity 0.35")])
def test_the_whole_and_its_parts_are_measured(monkeypatch, capsys, more, said_of):
    few = ["--split", "test", "--queries", "4", "--passages", "12"]
    monkeypatch.setattr(sys, "argv", ["parts.py", "scifact", *few, *more])
    parts.main()
    said = capsys.readouterr().out
    assert said.startswith(f"4 queries, 12 passages, minilm{said_of}, float32")
    values = [float(v) for v in re.findall(r"(?<= )[01]\.\d{4}", said)]
    # Twelve abstracts, those that were asked for among them: whoever reads them finds most.
    assert len(values) == 7
    assert min(values) > 0.5
