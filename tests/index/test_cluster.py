"""Addresses, manifests, writes and repeated requests of an index on a server, over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from qdrant_client import models

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError, IndexMismatchError, InputError, ServerError
from diffretriever.index import Index, Storage
from diffretriever.index.cluster import server as server_module
from diffretriever.index.cluster import store as cluster_module
from diffretriever.index.cluster.location import ClusterLocation
from diffretriever.index.cluster.uploads import in_parallel
from diffretriever.index.points.points import point_id
from tests.index.hashing import VOCABULARY, HashEncoder

pytestmark = pytest.mark.usefixtures("short_pauses")
PASSAGES = [Passage(f"p{i}", f"word{i} shared", metadata={"i": i}) for i in range(40)]
KEY = "secret-4711"


@pytest.fixture
def filled(server, encoder):
    with Index.create(server.url("filled"), encoder) as index:
        index.add(PASSAGES)
        yield index


@pytest.mark.parametrize(
    ("text", "location", "shown"),
    [
        ("qdrant://host/name", ("host", 6333, "", "name", False), "qdrant://host:6333/name"),
        ("qdrants://h.example:443/a%20b", ("h.example", 443, "", "a b", True), "qdrants://h.example:443/a%20b"),
        ("qdrant://[::1]:7000/c", ("::1", 7000, "", "c", False), "qdrant://[::1]:7000/c"),
        ("qdrants://h/team/search/c", ("h", 6333, "team/search", "c", True), "qdrants://h:6333/team/search/c"),
    ],
)
def test_addresses(text, location, shown):
    parsed = ClusterLocation.parse(text)
    assert (parsed.host, parsed.port, parsed.prefix, parsed.collection, parsed.tls) == location
    assert str(parsed) == shown
    assert ClusterLocation.parse(shown) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qdrant://host", "names no collection"),
        ("qdrant://host/", "names no collection"),
        ("qdrant://host/..", "names no collection"),
        ("qdrant://host/a%2Fb", "names no collection"),
        ("qdrant:///name", "is no address of an index"),
        ("qdrant://host:99999/name", "is no address"),
        ("qdrant://host:x/name", "is no address"),
        ("qdrant://[::1/name", "is no address"),
    ],
)
def test_bad_addresses(text, message, encoder):
    with pytest.raises(InputError, match=message):
        Index.create(text, encoder)
    with pytest.raises(InputError, match=message):
        Index.open(text)
    assert encoder.encoded == []  # refused before any work


@pytest.mark.parametrize("text", [f"qdrant://{KEY}@h/c", f"qdrant://u:{KEY}@h/c", f"qdrant://h/c?key={KEY}"])
def test_a_key_in_an_address_is_refused_and_not_shown(text):
    with pytest.raises(InputError, match="set QDRANT_API_KEY instead") as caught:
        Index.open(text)
    assert KEY not in str(caught.value)


def test_options_that_do_not_go_together(tmp_path, encoder, server):
    with pytest.raises(InputError, match="backend 'cluster', not 'exact'"):
        Index.create(server.url("c"), encoder, backend="exact")
    with pytest.raises(InputError, match="needs the address of a collection"):
        Index.create(tmp_path, encoder, backend="cluster")
    with pytest.raises(InputError, match="only an index on a server has shards"):
        Index.create(tmp_path, encoder, shards=2)
    with pytest.raises(InputError, match="replicas must be at least 1, got 0"):
        Index.create(server.url("c"), encoder, replicas=0)
    from pathlib import Path

    with pytest.raises(InputError, match="give an address as a string"):
        Index.open(Path("qdrant://host/name"))


def test_the_client_is_an_extra(encoder):
    code = (
        "import sys; sys.modules['qdrant_client'] = None\n"
        "from diffretriever.errors import MissingExtraError\n"
        "from diffretriever.index import Index\n"
        "try: Index.open('qdrant://127.0.0.1:1/c')\n"
        "except MissingExtraError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "diffretriever[cluster]"' in result.stdout


def test_shards_and_replicas_are_asked_for(server, encoder):
    Index.create(server.url("spread"), encoder, shards=6, replicas=3).close()
    asked = next(body for (method, _), body in zip(server.requests, server.bodies, strict=True) if method == "PUT")
    assert b'"shard_number":6' in asked
    assert b'"replication_factor":3' in asked
    assert b'"write_consistency_factor":2' in asked
    assert b'"datatype":"float16"' in asked


def test_the_idf_of_a_collection_comes_with_its_creation(server):
    encoder = HashEncoder(term_idf=np.linspace(0.5, 8, VOCABULARY, dtype=np.float32))
    Index.create(server.url("counting"), encoder).close()
    assert [path for method, path in server.requests if method in ("PUT", "PATCH")] == ["/collections/counting"]
    with Index.open(server.url("counting"), encoder) as index:
        assert index.current_terms() is not None


def test_what_a_collection_must_be(server, encoder, filled):
    with pytest.raises(IndexFormatError, match=r"filled exists already; open it, or pass overwrite=True"):
        Index.create(server.url("filled"), encoder)
    with pytest.raises(IndexFormatError, match="holds no collection of that name"):
        Index.open(server.url("nothing"))
    with pytest.raises(IndexMismatchError, match="'hash' against 'other'"):
        Index.open(server.url("filled"), HashEncoder(fingerprint="other"))
    server.engine.create_collection("foreign", metadata={"somebody": "else"})
    for attempt in (Index.open, lambda url: Index.create(url, encoder, overwrite=True)):
        with pytest.raises(IndexFormatError, match="a collection that this package did not make"):
            attempt(server.url("foreign"))
    assert server.engine.collection_exists("foreign")
    with Index.create(server.url("filled"), encoder, overwrite=True) as index:
        assert len(index) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "index format 99, this version reads up to"),
        ({"backend": "edge"}, "manifest says backend 'edge'"),
        ({"dim": 8}, "has vectors that its manifest does not describe"),
        ({"vocabulary_size": 0}, "has vectors that its manifest does not describe"),
        ({"provenance": {}}, "is damaged"),
    ],
)
def test_a_changed_manifest_is_refused(server, filled, change, message):
    metadata = server.engine.get_collection("filled").config.metadata
    server.engine.update_collection("filled", metadata={"diffretriever": metadata["diffretriever"] | change})
    with pytest.raises(IndexFormatError, match=message):
        Index.open(server.url("filled"))


def test_a_server_that_keeps_no_manifest_is_too_old(server, encoder):
    server.keeps_metadata = False
    with pytest.raises(IndexFormatError, match=r"which keeps no manifest; use 1\.16 or later"):
        Index.create(server.url("old"), encoder)
    assert not server.engine.collection_exists("old")


@pytest.mark.parametrize("fault", [503, 429, 500, 408, "close", "lose"])
def test_what_passes_is_tried_again(server, encoder, fault):
    with Index.create(server.url("c"), encoder) as index:
        server.failures = [fault] * 3
        assert index.add(PASSAGES) == 40
        assert server.failures == []
        assert sum(path.endswith("/points") and method == "PUT" for method, path in server.requests) == 4
        server.failures = [fault] * 2
        assert index.search("word7", 1)[0].passage_id == "p7"
        server.failures = [fault] * 2
        assert index.delete(["p7"]) == 1
        server.failures = [fault] * 2
        index.set_metadata({"p8": {"i": 80}})
        assert index.get("p8").passage.metadata == {"i": 80}
        server.failures = [fault] * 2
        assert sorted(index) == sorted(p.passage_id for p in PASSAGES if p.passage_id != "p7")


@pytest.mark.parametrize("fault", [400, 403, 404, 413])
def test_what_lasts_is_not_tried_again(server, filled, fault):
    server.failures = [fault, 599]
    with pytest.raises(ServerError, match=str(fault)):
        filled.add([Passage("new", "word")])
    assert server.failures == [599]


@pytest.mark.parametrize(("storage", "made"), [(Storage(), ["lost"]), (Storage(pca=4), ["lost.projection", "lost"])])
def test_a_lost_answer_to_creation_is_no_failure(server, encoder, monkeypatch, storage, made):
    answered = server._answer

    def losing(http, body):
        name = http.path.split("?")[0].removeprefix("/collections/")
        if http.command == "PUT" and "/" not in name and name not in lost:
            lost.append(name)
            server._carry_out("PUT", f"/collections/{name}", body)
            http.close_connection = True
        else:
            answered(http, body)

    lost: list[str] = []
    monkeypatch.setattr(server, "_answer", losing)
    sample = encoder.encode_passages([p.text for p in PASSAGES])
    with Index.create(server.url("lost"), encoder, storage=storage, sample=sample) as index:
        assert lost == made
        index.add(PASSAGES[:1])
        assert len(index) == 1
    with Index.open(server.url("lost"), encoder) as index:
        assert list(index) == ["p0"]


def test_a_projection_that_another_program_makes_meanwhile_is_not_taken_for_ones_own(server, encoder, monkeypatch):
    answered = server._answer

    def overtaking(http, body):
        if http.command == "PUT" and http.path.startswith("/collections/c.projection") and not overtaken:
            overtaken.append(json.loads(body))
            theirs = {**overtaken[0], "metadata": {**overtaken[0]["metadata"], "creation": "theirs"}}
            server._carry_out("PUT", "/collections/c.projection", json.dumps(theirs).encode())
        answered(http, body)

    overtaken: list[dict] = []
    monkeypatch.setattr(server, "_answer", overtaking)
    sample = encoder.encode_passages([p.text for p in PASSAGES])
    with pytest.raises(ServerError, match="already exists"):
        Index.create(server.url("c"), encoder, storage=Storage(pca=4), sample=sample)


@pytest.mark.parametrize("mode", ["multi", "single", "sparse", "hybrid"])
def test_a_passage_that_another_program_deletes_during_a_search_is_no_hit(server, encoder, filled, monkeypatch, mode):
    answered = server._answer

    def deleting(http, body):
        if http.command == "POST" and http.path.split("?")[0] == "/collections/filled/points":  # names are asked for
            server.engine.delete("filled", models.PointIdsList(points=[str(point_id("p3"))]))
        answered(http, body)

    monkeypatch.setattr(server, "_answer", deleting)
    hits = filled.search("word3 shared", 5, mode)
    assert len(hits) == 5
    assert "p3" not in {hit.passage_id for hit in hits}


def test_a_write_that_fails_in_the_end_says_what_is_stored(server, encoder, monkeypatch):
    monkeypatch.setattr(cluster_module, "_WRITE_PASSAGES", 10)
    monkeypatch.setattr(server_module, "ATTEMPTS", 3)
    with Index.create(server.url("c"), encoder) as index:
        index._store._uploads = 1
        real = server._carry_out

        def full(method, path, body):
            return (507, {"status": {"error": "disk full"}}) if b'"p25"' in body else real(method, path, body)

        monkeypatch.setattr(server, "_carry_out", full)
        with pytest.raises(ServerError, match=r"507, disk full.*20 of 40 passages of this write are stored") as caught:
            index.add(PASSAGES)
        assert sorted(caught.value.stored) == sorted(p.passage_id for p in PASSAGES[:20])
        assert set(index) == set(caught.value.stored)
        monkeypatch.setattr(server, "_carry_out", real)
        known = set(index)
        assert index.add(p for p in PASSAGES if p.passage_id not in known) == 20
        assert set(index) == {p.passage_id for p in PASSAGES}


def test_uploads_run_side_by_side_within_bounds(server, encoder, monkeypatch):
    monkeypatch.setattr(cluster_module, "_WRITE_PASSAGES", 2)
    with Index.create(server.url("c"), encoder) as index:
        server.begin_together(cluster_module.UPLOADS)
        server.delay = 0.02  # in which one more would be noticed
        assert index.add(PASSAGES) == 40
        server.delay = 0.0
        assert server.most == cluster_module.UPLOADS
        assert len(index) == 40


def test_a_slow_receiver_holds_the_maker_back():
    made, done, gate = [], [], threading.Event()

    def jobs():
        for i in range(100):
            made.append(i)
            if len(made) == 9:  # 4 running, 4 waiting, 1 in hand: nothing more is made before one is done
                gate.set()
            yield lambda i=i: (gate.wait(60), done.append(i))

        assert len(done) >= 92

    in_parallel(jobs(), 4, stop=lambda: None)
    assert sorted(done) == list(range(100))


def test_the_first_error_stops_the_rest():
    begun, stopped = [], threading.Event()

    def job(i):
        begun.append(i)
        if i == 3:
            raise ServerError("broken")
        stopped.wait(60)

    with pytest.raises(ServerError, match="broken"):
        in_parallel((lambda i=i: job(i) for i in range(1000)), 4, stop=stopped.set)
    assert len(begun) < 20


def test_an_interruption_stops_what_runs():
    begun, stopped = [], threading.Event()

    def jobs():
        for i in range(1000):
            if i == 6:
                raise KeyboardInterrupt
            yield lambda i=i: (begun.append(i), stopped.wait(60))

    with pytest.raises(KeyboardInterrupt):
        in_parallel(jobs(), 4, stop=stopped.set)
    assert stopped.is_set()
    assert len(begun) <= 6


def test_requests_are_bounded_in_size(server, encoder, monkeypatch):
    monkeypatch.setattr(cluster_module, "_WRITE_BYTES", 20_000)
    with Index.create(server.url("c"), encoder) as index:
        index.add([Passage(f"p{i}", "word " * 500) for i in range(30)])
        sizes = [len(b) for (m, p), b in zip(server.requests, server.bodies, strict=True) if p.endswith("/points")]
        assert len(sizes) > 5
        assert max(sizes) < 20_000


def test_more_numbers_than_a_server_holds_are_refused(server):
    with Index.create(server.url("c"), HashEncoder(dim=4096, passage_slots=300)) as index:
        with pytest.raises(InputError, match=r"'big' has 260 vectors of 4096 dimensions"):
            index.add([Passage("big", " ".join(f"w{i}" for i in range(260)))], words=0)
        assert len(index) == 0


def test_many_passages_and_queries_take_several_requests(server, encoder, monkeypatch):
    monkeypatch.setattr(cluster_module, "_SCROLL", 7)
    monkeypatch.setattr(cluster_module, "_RETRIEVE", 7)
    monkeypatch.setattr(cluster_module, "_QUERIES", 3)
    monkeypatch.setattr(cluster_module, "_KNOWN_NAMES", 5)
    with Index.create(server.url("c"), encoder) as index:
        index.add(PASSAGES)
        assert sorted(index) == sorted(p.passage_id for p in PASSAGES)
        found = index.search_batch([f"word{i}" for i in range(40)], 20)
        assert [hits[0].passage_id for hits in found] == [p.passage_id for p in PASSAGES]
        assert index.delete([p.passage_id for p in PASSAGES[:30]]) == 30
        assert len(index) == 10


def test_hybrid_asks_the_server_once_for_both_lists(server, filled):
    filled.search("word3 shared", 5)
    server.requests.clear()
    hits = filled.search("word3 shared", 5)
    assert sum(path.endswith("/points/query/batch") for _, path in server.requests) == 1
    assert hits[0].passage_id == "p3"
    assert hits[0].sparse is not None


def test_the_size_decides_when_nobody_else_does(server, filled, monkeypatch):
    assert filled.search("word3", 1, "multi")[0].exact
    monkeypatch.setattr(cluster_module, "EXACT_MULTI_WORK", 10)
    monkeypatch.setattr(cluster_module, "EXACT_SINGLE_WORK", 10)
    for mode in ("multi", "single", "hybrid"):
        assert not filled.search("word3", 1, mode)[0].exact
    assert filled.search("word3", 1, "multi", exact=True)[0].exact
