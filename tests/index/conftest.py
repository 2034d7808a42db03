from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diffretriever.index import Index
from tests.index.hashing import HashEncoder


@pytest.fixture(params=["edge", "exact"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def encoder() -> HashEncoder:
    return HashEncoder()


@pytest.fixture
def index(tmp_path: Path, backend: str, encoder: HashEncoder) -> Iterator[Index]:
    with Index.create(tmp_path / "index", encoder, backend=backend) as made:
        yield made
