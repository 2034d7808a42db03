from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import train_gpu


def test_the_script_trains_a_toy_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_gpu.main(["--out", str(tmp_path), "--tiny", "--device", "cpu"])
    rows = json.loads((tmp_path / "train_gpu.json").read_text(encoding="utf-8"))["rows"]
    assert [row["one_pass"] for row in rows] == [True, False]
    assert all(row["seconds"] > 0 and row["tokens"] > 0 for row in rows)
    # Both ways take the same steps: from the same weights and rows the same loss, but for bf16 and dropout.
    assert math.isclose(rows[0]["loss"], rows[1]["loss"], rel_tol=0.05)
    assert capsys.readouterr().out.count("\n") == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no CUDA device"):
        train_gpu.main(["--out", str(tmp_path)])
