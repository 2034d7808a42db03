from __future__ import annotations

import json
from pathlib import Path

import memory
import pytest


def test_the_script_measures_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--passages", "2100", "--out", str(tmp_path / "memory.json")])
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert [row["passages"] for row in rows] == [1024, 2048, 2100, 2100]
    assert rows[0]["resident bytes"] > 1e8
    assert "| 2,100 |" in capsys.readouterr().out


def test_growth_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.growth([100, 90, 95, 100]) == 0
    assert memory.growth([100, 100, 100, 120]) == pytest.approx(0.2)
    sizes = iter([10**9, 10**9, 2 * 10**9])
    monkeypatch.setattr(memory, "resident", lambda: next(sizes))
    with pytest.raises(SystemExit, match="memory grew by 100"):
        memory.main(["--passages", "2100"])


def test_texts_are_made_anew_and_differ() -> None:
    chunks = list(memory.texts(2000, 0))
    assert [len(c) for c in chunks] == [1024, 976]
    assert chunks == list(memory.texts(2000, 0))
    assert len({word for chunk in chunks for text in chunk for word in text.split()}) > 3900
