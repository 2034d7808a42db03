from __future__ import annotations

import json
from pathlib import Path

import gpu
import pytest
import torch


def test_the_script_runs_on_toy_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--out", str(tmp_path / "results"), "--tiny", "--device", "cpu"])
    written = json.loads((tmp_path / "results" / "gpu.json").read_text())
    measured = written["measured"]
    assert measured["tiny-dream, passages, K = 16"]["passages/s"] > 0
    assert {f"tiny-qwen2, decoding {n}, batch {b}" for n in (1, 4, 20) for b in (1, 32)} <= set(measured)
    assert "| one query, K = 1 and 16 | <= 7 ms" in capsys.readouterr().out


def test_what_was_measured_before_a_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> dict[str, float]:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(gpu, "decoding", fails)
    with pytest.raises(torch.OutOfMemoryError):
        gpu.main(["--out", str(tmp_path), "--tiny", "--device", "cpu"])
    measured = json.loads((tmp_path / "gpu.json").read_text())["measured"]
    assert measured["tiny-dream, one query, K = 16"]["median ms"] > 0
    assert not any("decoding" in name for name in measured)


def test_flops_are_those_of_the_weights_but_for_attention() -> None:
    backbone = gpu.random_backbone("tiny-dream", device=torch.device("cpu"))
    layer = sum(p.numel() for p in backbone.model.base_model.layers[0].parameters() if p.dim() > 1)
    one = gpu.body_flops(backbone, [100], 100)
    assert one == pytest.approx(2 * (2 * layer * 100 + 4 * 64 * 100 * 100))
    assert gpu.body_flops(backbone, [100], 1) < 0.7 * one


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main(["--out", str(tmp_path)])
