from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diffretriever.index import Index
from diffretriever.index.cluster import server as server_module
from tests.index.hashing import HashEncoder
from tests.index.places import KINDS, collection, loopback_server
from tests.index.qdrant_server import Server


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


@pytest.fixture(scope="session")
def loopback() -> Iterator[Server]:
    """Give a server that all tests share; a test that makes it misbehave starts its own."""
    with loopback_server() as server:
        yield server


@pytest.fixture
def server() -> Iterator[Server]:
    """Give a server of the test's own, which may be made to misbehave."""
    started = Server()
    yield started
    started.stop()


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once, without a key from outside."""
    monkeypatch.setattr(server_module, "PAUSE", 0.001)
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def place(kind: str, tmp_path: Path, loopback: Server) -> Iterator[Path | str]:
    """Give where a new index of that kind can be: a folder, or the address of a collection."""
    if kind in ("edge", "exact"):
        yield tmp_path / "index"
    else:
        with collection(kind, loopback) as address:
            yield address
