from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples everywhere, however slow the machine; `pytest --hypothesis-profile=fresh` draws others.
settings.register_profile("same", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("fresh", settings.get_profile("same"), derandomize=False, print_blob=True)
settings.load_profile("same")

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = GOLDEN / "checkpoints"


class Inputs(NamedTuple):
    query_ids: list[str]
    queries: list[str]
    passage_ids: list[str]
    passages: list[str]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute in one thread here and in the processes that tests start, so that both give the same bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session", autouse=True)
def _fp32() -> Iterator[None]:
    """Load in fp32, which is what the tests hold numbers to, where the hardware would choose bf16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffretriever.backbones.loading.default_dtype", lambda device: torch.float32)
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_output() -> Iterator[None]:
    """Write as to a file: a width or colours that the environment asks for cut messages that tests look for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COLUMNS", "TERMINAL_WIDTH", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _heed_ctrl_c() -> Iterator[None]:
    """Hear SIGINT, which tests send to themselves: a shell starts background jobs with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def checkpoints() -> Path:
    return CHECKPOINTS


@pytest.fixture(scope="session")
def inputs() -> Inputs:
    raw = json.loads((GOLDEN / "inputs.json").read_text(encoding="utf-8"))
    return Inputs(
        [i for i, _ in raw["queries"]],
        [t for _, t in raw["queries"]],
        [i for i, *_ in raw["corpus"]],
        raw["corpus_text_as_encoded"],
    )
