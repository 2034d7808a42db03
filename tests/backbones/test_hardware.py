from __future__ import annotations

import logging
import re

import pytest
import torch

from diffretriever.backbones.hardware import (
    default_device,
    default_dtype,
    device_named,
    usable_threads,
    warn_of_slow_bf16,
)
from diffretriever.errors import InputError


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_bf16_where_the_processor_is_faster_in_it(
    found: dict[str, object], wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert default_dtype(torch.device("cpu")) == wanted
    assert default_dtype(torch.device("cuda")) == torch.bfloat16
    assert default_dtype(torch.device("mps")) == torch.float32


@pytest.mark.parametrize(
    ("device", "found", "warned"),
    [
        ("cpu", {"avx2": True}, True),
        ("cpu", {"avx2": True, "avx512_bf16": True}, False),
        ("cpu", {"avx512_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ("cuda", {"avx2": True}, False),
    ],
)
def test_a_warning_where_bf16_is_slow(device, found, warned, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    with caplog.at_level(logging.WARNING, logger="diffretriever"):
        warn_of_slow_bf16(torch.device(device), "--no-bf16")
    assert ["--no-bf16" in record.message for record in caplog.records] == [True] * warned


@pytest.mark.parametrize(("cores", "wanted"), [(8, 6), (4, 4), (1, 1)])
def test_threads_are_the_cores_that_may_be_used(cores: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    for load in (0.3, 20.0):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0, 0), raising=False)
        assert usable_threads() == wanted


def test_what_the_user_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert usable_threads() == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "device is 'cuda'; there is no CUDA GPU here: leave the device out, or give cpu"),
        ("cuda:1", "device is 'cuda:1'; there is no CUDA GPU here"),
        ("mps", "device is 'mps'; there is no GPU of Apple's here"),
        ("meta", "device is 'meta'; give cpu, cuda, cuda:1 or mps"),
        ("gpu", "device is 'gpu'; give cpu, cuda, cuda:1 or mps"),
        ("cuda:x", "device is 'cuda:x'; give cpu"),
        ("", "device is ''; give cpu"),
    ],
)
def test_a_device_that_is_not_here_is_named(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.mps, "device_count", lambda: 0)
    with pytest.raises(InputError, match=re.escape(message)):
        device_named(name)


def test_devices_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_named(None) == default_device()
    assert device_named("cpu") == torch.device("cpu") == device_named(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_named(name) for name in ("cuda", "cuda:1")] == [torch.device("cuda"), torch.device("cuda:1")]
    with pytest.raises(InputError, match="there is no CUDA GPU of that number here, the last is cuda:1"):
        device_named("cuda:2")
