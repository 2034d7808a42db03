from __future__ import annotations

from pathlib import Path

import figures
import pytest
from pairs import Comparison, Timing
from records import row_of, write_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    times = [Timing(1, 1), Timing(1, 2), Timing(1, 1)]
    slower = [Timing(3, 4), Timing(2, 6), Timing(5, 5)]
    rows = [
        row_of(Comparison(name, times, slower, (1.0, 2.0))) for name in ("naive, mini, K = 16", "MaxSim, 32 queries")
    ]
    memory = {"name": "memory, mini", "ours MB": 10.0, "other MB": 50.0, "share": 0.2, "again MB": [5.0, 50.0]}
    latency = {"name": "engine, sparse", "p50 ms": 1.0, "p95 ms": 2.0, "cpu ms": 1.0, "requests": 2.0}
    write_record(tmp_path / "some.json", [*rows, memory, latency], threads=1)
    return tmp_path


def test_tables_give_medians_ranges_and_goals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures.main([str(folder)])
    out = capsys.readouterr().out
    assert "| naive, mini, K = 16 | 4.00 (3.00 to 5.00) | 3.00 (2.00 to 5.00) | 3 | 3 | 1 to 2 |" in out
    assert "| MaxSim, 32 queries | 4.00 (3.00 to 5.00) | 3.00 (2.00 to 5.00) | 3 | 0.7 |" in out
    assert "| mini | 10 | 50 | 0.20 | 0.10 |" in out
    assert "| engine, sparse | 1.0 | 2.0 | 1.0 | 2.0 |" in out
    assert "* some.json: `python " in out


def test_the_picture_is_the_same_for_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    rows, _ = figures.read_rows(folder)
    for name in ("one.svg", "two.svg"):
        figures.draw(rows, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert b"<svg" in (tmp_path / "one.svg").read_bytes()


def test_without_results_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no results"):
        figures.main([str(tmp_path)])
