from __future__ import annotations

import json

from cli_samples import MODEL

BASE = MODEL.parent / "tiny-qwen2"


def test_a_causal_model_is_adapted_and_measured(cli, tmp_path):
    from diffretriever import DiffRetriever

    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"the violin of number {i} has strings\n" for i in range(12)), encoding="utf-8")
    options = ["--steps", 2, "--batch", 2, "--length", 16, "--held-out", 4, "--no-bf16", "--device", "cpu"]
    done = cli("adapt", BASE, texts, "--out", tmp_path / "out", *options, "--prompt-share", 0)
    assert done.code == 0, done.err
    assert "t = 0.15" in done.out
    assert "model: written" in done.err
    rows = json.loads((tmp_path / "out" / "adaptation.json").read_text(encoding="utf-8"))["rows"]
    assert [row["step"] for row in rows] == [0, 2]
    assert DiffRetriever.from_pretrained(tmp_path / "out" / "model").backbone.spec.attention == "full"
    other = cli("adapt", BASE, texts, "--out", tmp_path / "out", *options)
    assert other.code == 1
    assert "other settings" in other.err


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(cli, tmp_path):
    done = cli("adapt", "minilm", tmp_path / "texts.txt", "--out", tmp_path / "out", "--device", "cuda:99")
    assert done.code == 1
    assert "device is 'cuda:99'; there is no CUDA GPU" in done.err
    assert not (tmp_path / "out").exists()
