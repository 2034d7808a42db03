"""Places for an index: a folder, a collection of a server on the loopback, a collection of a real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

from diffretriever.index.cluster.location import ClusterLocation
from tests.index.qdrant_server import Server

#: A real server, such as http://localhost:6333; its key is taken from QDRANT_API_KEY.
SERVER_URL = os.environ.get("QDRANT_URL", "")
#: Every kind of place; "server" is left out where there is none.
KINDS = [
    "edge",
    "exact",
    "cluster",
    pytest.param(
        "server", marks=[pytest.mark.server, pytest.mark.skipif(not SERVER_URL, reason="QDRANT_URL is not set")]
    ),
]


def backend_of(kind: str) -> str:
    return "cluster" if kind == "server" else kind


@contextmanager
def loopback_server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def collection(kind: str, server: Server) -> Iterator[str]:
    """Give the address of a collection that does not exist yet, and remove it afterwards."""
    name = f"diffretriever-test-{uuid4().hex}"
    address = server.url(name) if kind == "cluster" else f"{SERVER_URL.replace('http', 'qdrant', 1).rstrip('/')}/{name}"
    try:
        yield address
    finally:
        client = ClusterLocation.parse(address).connect()
        client.delete_collection(name)
        client.close()
