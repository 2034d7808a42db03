"""What the connection to a server meets: nobody, somebody else, keys and encryption; over real sockets."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess

import pytest

from diffretriever.corpus import Passage
from diffretriever.errors import InputError, ServerError
from diffretriever.index import Index
from diffretriever.index.cluster import server as server_module
from tests.index.qdrant_server import Server

pytestmark = pytest.mark.usefixtures("short_pauses")
KEY = "secret-4711"
PASSAGES = [Passage(f"p{i}", f"word{i} shared") for i in range(40)]


def test_nothing_listens_there(encoder, monkeypatch):
    monkeypatch.setattr(server_module, "FIRST_ATTEMPTS", 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(ServerError, match=rf"127.0.0.1:{port}/c: cannot open it.*nothing answers there.*start"):
            Index.open(f"qdrant://127.0.0.1:{port}/c", encoder)
        with pytest.raises(ServerError, match="nothing answers there"):
            Index.create(f"qdrant://127.0.0.1:{port}/c", encoder)


def test_a_server_that_goes_away(encoder, monkeypatch):
    monkeypatch.setattr(server_module, "ATTEMPTS", 3)
    server = Server()
    with Index.create(server.url("c"), encoder) as index:
        index.add(PASSAGES)
        server.stop()
        with pytest.raises(ServerError, match="cannot search after 3 attempts: nothing answers there"):
            index.search("word3", mode="sparse")
        with pytest.raises(ServerError, match="cannot write passages after 3 attempts") as caught:
            index.add(PASSAGES)
        assert caught.value.stored == ()


@pytest.mark.parametrize("answer", [{"hello": "world"}, ["a"], {"result": {"status": 7}}, None])
def test_something_else_listens_there(server, monkeypatch, answer):
    monkeypatch.setattr(server, "_carry_out", lambda *_: (200, answer))
    with pytest.raises(ServerError, match="not that of a Qdrant server"):
        Index.open(server.url("c"))


def test_an_unknown_host():
    with pytest.raises(ServerError, match="no machine of that name is known"):
        Index.open("qdrant://no-such-host.invalid/c")


def test_the_key_is_sent_and_never_shown(server, encoder, monkeypatch):
    server.api_key = KEY
    with pytest.raises(ServerError, match=r"refuses the key \(401.*set QDRANT_API_KEY"):
        Index.open(server.url("c"))
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    with Index.create(server.url("c"), encoder) as index:
        index.add(PASSAGES)
        assert index.search("word3", 1)[0].passage_id == "p3"
        assert server.keys[-1] == KEY
        shown = f"{index.stats()} {index.manifest} {vars(index)} {vars(index._store)} {index._home}"
        assert KEY not in shown
        assert KEY not in str(server.engine.get_collection("c"))
        server.failures = [400]
        with pytest.raises(ServerError) as caught:
            index.add(PASSAGES)
        assert KEY not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__cause__}"


def test_a_key_does_not_leave_the_machine_unencrypted(monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    with pytest.raises(InputError, match=r"QDRANT_API_KEY is set and qdrant://no-such-host.invalid:6333/c is not enc"):
        Index.open("qdrant://no-such-host.invalid/c")
    monkeypatch.setenv("QDRANT_ALLOW_PLAIN_KEY", "1")
    with pytest.raises(ServerError, match="no machine of that name"):
        Index.open("qdrant://no-such-host.invalid/c")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_an_encrypted_connection(tmp_path, encoder, monkeypatch):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server(context)
    try:
        with pytest.raises(ServerError, match=r"certificate is not trusted.*SSL_CERT_FILE"):
            Index.open(server.url("c", "qdrants"))
        with pytest.raises(ServerError, match="needs qdrants://"):
            Index.open(server.url("c"))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setenv("QDRANT_API_KEY", KEY)
        with Index.create(server.url("c", "qdrants"), encoder) as index:
            index.add(PASSAGES)
            assert index.search("word3", 1)[0].passage_id == "p3"
        assert server.keys[-1] == KEY
    finally:
        server.stop()
