from __future__ import annotations

import pytest
import torch

from diffretriever.backbones.hardware import default_dtype, free_threads


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_bf16_where_the_processor_multiplies_in_it(
    found: dict[str, bool], wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert default_dtype(torch.device("cpu")) == wanted
    assert default_dtype(torch.device("cuda")) == torch.bfloat16
    assert default_dtype(torch.device("mps")) == torch.float32


def test_threads_are_those_that_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    for load, wanted in ((0.3, 6), (3.5, 5), (20.0, 1)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0, 0), raising=False)
        assert free_threads() == wanted
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert free_threads() == 6
