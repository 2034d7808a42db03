"""Indexes copied between places: everything arrives, whatever happens on the way."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import ExitStack

import numpy as np
import pytest
from qdrant_client.models import PointStruct, PointVectors, UpdateResult

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError, IndexMismatchError, InputError, ServerError
from diffretriever.index import Index
from diffretriever.index import transfer as transfer_module
from diffretriever.index.notes import read_note, write_note
from diffretriever.index.storage.storage import Storage
from diffretriever.index.transfer import copy_index
from tests.index.hashing import HashEncoder
from tests.index.places import collection
from tests.index.qdrant_server import Server

MODES = ["hybrid", "multi", "single", "sparse"]
AWKWARD = [
    Passage("ü/日本語 🌙", "tides and moon", "Títle", {"year": 2021, "score": 2.0, "open": True, "tags": ["a", "b"]}),
    Passage("empty", ""),
    Passage("title only", "", "sea"),
    Passage("nul\x00", "line\nbreak\u2028 'quotes' \"too\"", metadata={"": "", "a.b[0]": 2**70, "f": 1e-300}),
]


@pytest.fixture
def server():
    started = Server()
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(transfer_module, "_PASSAGES", 7)
    monkeypatch.setattr(transfer_module, "_MAINTAIN_EVERY", 2)
    monkeypatch.setattr("diffretriever.index.cluster.server.PAUSE", 0.001)
    monkeypatch.setattr("diffretriever.index.cluster.server.ATTEMPTS", 3)


def fill(place, backend, *, storage="float16"):
    """Make an index with passages of no, two and three words per slot, some replaced, some deleted."""
    with Index.create(place, HashEncoder(), backend=backend, storage=storage) as index:
        index.add([Passage(f"p{i:02d}", f"word{i} shared", metadata={"i": i}) for i in range(30)], words=3)
        index.add([Passage(f"p{i:02d}", f"other{i} shared") for i in range(5, 10)], words=0)
        index.add(AWKWARD, words=2)
        index.set_metadata({"p20": {"i": -20}})
        index.delete(["p00", "p01"])
        write_note(index, "prompt.json", '{"é": 1}')
    return place


def contents(place):
    with Index.open(place) as index:
        held = {}
        for passage_id in index:
            stored = index.get(passage_id)
            r = stored.representations
            held[passage_id] = (
                stored.passage, r.dense.tobytes(), r.pooled.tobytes(), r.sparse.toarray().tobytes(), stored.slot_words
            )  # fmt: skip
        return held


def searched(place):
    queries = ["word3 shared", "tides", "other7", "sea moon shared"]
    with Index.open(place, HashEncoder()) as index:
        found = [hits for mode in MODES for hits in index.search_batch(queries, 50, mode)]
    return [{hit.passage_id: hit.score for hit in hits} for hits in found]


ROUTES = [
    ("edge", "cluster", "float16"),
    ("cluster", "edge", "float32"),
    ("exact", "cluster", "float32"),
    ("cluster", "exact", "float16"),
    ("edge", "exact", "float16"),
    ("exact", "edge", "float32"),
    ("cluster", "cluster", "float16"),
]


@pytest.mark.parametrize(("source", "target", "storage"), ROUTES)
def test_everything_arrives(tmp_path, loopback, source, target, storage):
    with ExitStack() as rest:
        places = [
            rest.enter_context(collection("cluster", loopback)) if kind == "cluster" else tmp_path / f"{kind}{i}"
            for i, kind in enumerate((source, target))
        ]
        fill(places[0], source, storage=storage)
        done = copy_index(*places, backend=target)
        assert done.complete
        assert (done.written, done.unchanged, done.removed, done.extra) == (32, 0, 0, 0)
        assert done.source == done.target
        assert done.source.passages == 32
        assert contents(places[1]) == contents(places[0])
        for ours, theirs in zip(*map(searched, places), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
        with Index.open(places[1], HashEncoder()) as index:
            assert index.manifest.backend == target
            assert read_note(index, "prompt.json") == '{"é": 1}'
            report = index.check()
            assert (report.passages, report.problems) == (32, ())
        again = copy_index(*places)
        assert again.complete
        assert (again.written, again.unchanged) == (0, 32)


def test_the_checksum_does_not_depend_on_the_engine(tmp_path, loopback):
    source = fill(tmp_path / "a", "edge")
    checksums = {copy_index(source, tmp_path / "b", backend="exact").target}
    with collection("cluster", loopback) as address:
        checksums.add(copy_index(source, address).target)
    assert len(checksums) == 1


def test_an_interrupted_copy_goes_on(tmp_path, server, monkeypatch):
    source, target = fill(tmp_path / "a", "edge"), server.url("c")
    carry_out, writes = server._carry_out, []

    def failing(method, path, body):
        if method == "PUT" and path.endswith("/points"):
            writes.append(body)
            if len(writes) == 3:
                return 400, {"status": {"error": "no"}}
        return carry_out(method, path, body)

    monkeypatch.setattr(server, "_carry_out", failing)
    with pytest.raises(ServerError, match="400, no"):
        copy_index(source, target)
    with Index.open(target) as index:
        held = len(index)
    assert 0 < held < 32
    done = copy_index(source, target)
    assert done.complete
    assert (done.written, done.unchanged) == (32 - held, held)
    assert contents(target) == contents(source)


def test_a_killed_copy_goes_on(tmp_path, server, monkeypatch):
    source, target = fill(tmp_path / "a", "edge"), server.url("c")
    code = (
        "from diffretriever.index import transfer\n"
        "transfer._PASSAGES = 3\n"
        f"transfer.copy_index({str(source)!r}, {target!r})\n"
    )
    carry_out, writes, killed = server._carry_out, [], threading.Event()

    def stalling(method, path, body):
        writes.append(path) if method == "PUT" else None
        if len(writes) <= 4:  # the collection and three batches
            return carry_out(method, path, body)
        reached.set()
        killed.wait(300)
        return 503, {"status": {"error": "too late"}}

    reached = threading.Event()
    monkeypatch.setattr(server, "_carry_out", stalling)
    process = subprocess.Popen([sys.executable, "-c", code])
    assert reached.wait(300)
    process.kill()
    process.wait()
    killed.set()
    monkeypatch.setattr(server, "_carry_out", carry_out)
    with Index.open(target) as index:
        held = len(index)
    assert 0 < held < 32
    done = copy_index(source, target)
    assert done.complete
    assert (done.written, done.unchanged) == (32 - held, held)
    assert contents(target) == contents(source)


def test_what_differs_is_replaced_and_what_is_extra_is_said(tmp_path, server):
    source, target = fill(tmp_path / "a", "exact"), server.url("c")
    copy_index(source, target)
    with Index.open(target, HashEncoder()) as index:
        index.set_metadata({"p11": {"i": 11.0}})  # a float in place of an int
        index.add([Passage("p12", "word12 shared", "new title", {"i": 12})])
        index.add([Passage("stranger", "shared"), Passage("another", "shared")])
        index.delete(["p13"])
    done = copy_index(source, target)
    assert (done.written, done.unchanged, done.removed, done.extra) == (3, 29, 0, 2)
    assert done.source == done.target
    assert not done.complete
    with Index.open(target) as index:
        assert "stranger" in index
    done = copy_index(source, target, delete=True)
    assert (done.written, done.removed, done.extra, done.complete) == (0, 2, 0, True)
    assert contents(target) == contents(source)


def test_what_was_damaged_there_is_mended(tmp_path, server):
    source, target = fill(tmp_path / "a", "edge"), server.url("c")
    copy_index(source, target)
    whole = contents(target)
    points = server.engine.scroll("c", limit=3, with_vectors=True)[0]
    vectors = [{"multi": [[0.5] * 16, [0.0] * 16]} for _ in points]
    server.engine.update_vectors("c", [PointVectors(id=p.id, vector=v) for p, v in zip(points, vectors, strict=True)])
    assert contents(target) != whole
    done = copy_index(source, target)
    assert (done.written, done.unchanged, done.mended, done.complete) == (0, 32, 3, True)
    assert contents(target) == whole


@pytest.mark.parametrize("damage", ["vector", "weight", "text", "loss"])
def test_what_arrives_otherwise_is_noticed(tmp_path, server, monkeypatch, damage):
    source, target = fill(tmp_path / "a", "edge"), server.url("c")
    upsert = server.engine.upsert

    def damaged(name, points):
        for point in points:
            if point.payload["id"] == "p15":
                if damage == "vector":
                    point.vector["multi"][0][0] = float(np.float16(point.vector["multi"][0][0]) + np.float16(0.25))
                elif damage == "weight":
                    point.vector["sparse"].values[0] += 1
                elif damage == "text":
                    point.payload["text"] += " "
        kept = [p for p in points if damage != "loss" or p.payload["id"] != "p15"]
        return upsert(name, kept) if kept else UpdateResult(operation_id=0, status="completed")

    monkeypatch.setattr(server.engine, "upsert", damaged)
    done = copy_index(source, target)
    assert not done.complete
    assert done.mended == 1
    assert done.source != done.target
    assert (done.source.passages == done.target.passages) == (damage != "loss")


def test_another_model_or_precision_is_refused_before_anything_is_written(tmp_path, server):
    source = fill(tmp_path / "a", "edge")
    with Index.create(server.url("c"), HashEncoder(fingerprint="other")) as index:
        pass
    with pytest.raises(IndexMismatchError, match=r"'other' against 'hash'"):
        copy_index(source, server.url("c"))
    with Index.create(tmp_path / "b", HashEncoder(), storage="float32") as index:
        pass
    with pytest.raises(IndexMismatchError, match=r"stores vectors as float16 and the target as float32"):
        copy_index(source, tmp_path / "b")
    with Index.open(server.url("c")) as index:
        assert len(index) == 0


def test_places_that_cannot_be_copied_to_or_from(tmp_path, server):
    source = fill(tmp_path / "a", "edge")
    with pytest.raises(InputError, match="source and target at once"):
        copy_index(source, source)
    with pytest.raises(IndexFormatError, match="does not exist"):
        copy_index(tmp_path / "nothing", server.url("c"))
    assert not server.engine.collection_exists("c")
    server.engine.create_collection("foreign")
    with pytest.raises(IndexFormatError, match="did not make"):
        copy_index(source, server.url("foreign"))
    with pytest.raises(IndexFormatError, match="holds no collection of that name"):
        copy_index(server.url("nothing"), tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(InputError, match="backend 'cluster', not 'exact'"):
        copy_index(source, server.url("c"), backend="exact")
    with pytest.raises(InputError, match="only an index on a server has shards"):
        copy_index(source, tmp_path / "c", shards=2)


def test_codes_stay_with_the_embedded_engine(tmp_path, server):
    source = fill(tmp_path / "a", "edge", storage=Storage(codes="int8"))
    for target, codes in ((server.url("c"), None), (tmp_path / "exact", None), (tmp_path / "edge", "int8")):
        backend = "exact" if target == tmp_path / "exact" else None
        assert copy_index(source, target, backend=backend).complete
        assert contents(target) == contents(source)
        with Index.open(target) as index:
            assert index.manifest.storage == Storage(codes=codes)
    assert copy_index(server.url("c"), tmp_path / "edge").unchanged == 32
    with pytest.raises(InputError, match="codes need the edge backend; cluster has none"):
        Index.create(server.url("d"), HashEncoder(), storage=Storage(codes="int8"))


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_coarse_vectors_are_copied_where_they_can_be_kept(tmp_path, server, dtype):
    source = fill(tmp_path / "a", "exact", storage=dtype)
    assert copy_index(source, tmp_path / "b").complete
    assert contents(tmp_path / "b") == contents(source)
    with Index.open(tmp_path / "b") as index:
        assert (index.manifest.backend, index.manifest.storage) == ("exact", Storage(dtype))
        assert index.check().is_whole
    for target, backend in ((server.url("c"), None), (tmp_path / "c", "edge")):
        with pytest.raises(InputError, match=f"storage '{dtype}' needs the exact backend"):
            copy_index(source, target, backend=backend)
    assert not server.engine.collection_exists("c")


def test_projections_and_dropped_slots_go_along(tmp_path, server, monkeypatch):
    monkeypatch.setattr("diffretriever.index.cluster.projection._NUMBERS", 50)
    encoder, storage = HashEncoder(), Storage("float32", pca=6, drop=0.9)
    sample = encoder.encode_passages([f"sample {i} text{i}" for i in range(20)])
    source, target = server.url("c"), tmp_path / "pulled"
    with Index.create(source, encoder, storage=storage, sample=sample) as index:
        index.add([Passage(f"p{i}", f"word{i} shared") for i in range(20)])
        expected = [[(hit.passage_id, hit.score) for hit in index.search("word3 shared", mode=mode)] for mode in MODES]
        assert expected[1][0][0] == "p3"
    assert copy_index(source, target).complete
    assert copy_index(target, server.url("back")).complete
    for place in (target, server.url("back")):
        with Index.open(place, encoder) as index:
            assert index.manifest.storage == storage
            for mode, theirs in zip(MODES, expected, strict=True):
                ours = {hit.passage_id: hit.score for hit in index.search("word3 shared", mode=mode)}
                assert ours == pytest.approx(dict(theirs), abs=1e-4)
    with Index.create(
        tmp_path / "other", encoder, storage=storage, sample=encoder.encode_passages(["a b c d e f"] * 9)
    ):
        pass
    with pytest.raises(IndexMismatchError, match="and the target by another projection"):
        copy_index(source, tmp_path / "other")


def test_a_lost_or_changed_projection_is_noticed(server):
    encoder, storage = HashEncoder(), Storage(pca=4)
    sample = encoder.encode_passages([f"text{i}" for i in range(20)])
    engine = server.engine
    for overwrite in (False, True):
        Index.create(server.url("c"), encoder, storage=storage, sample=sample, overwrite=overwrite).close()
    engine.upsert("c.projection", [PointStruct(id=2, vector=[0.5] * 16)])
    with pytest.raises(IndexFormatError, match="is not as it was written"):
        Index.open(server.url("c"))
    engine.delete("c.projection", [2])
    with pytest.raises(IndexFormatError, match=r"'c.projection'.*is missing or damaged"):
        Index.open(server.url("c"))
    engine.delete_collection("c.projection")
    with pytest.raises(IndexFormatError, match=r"'c.projection'.*is missing or damaged"):
        Index.open(server.url("c"))
    engine.create_collection("d.projection", metadata={"some": "body"})
    with pytest.raises(IndexFormatError, match=r"'d.projection' is in the way"):
        Index.create(server.url("d"), encoder, storage=storage, sample=sample)


def test_an_index_in_memory_keeps_no_notes():
    with Index.create(None, HashEncoder(), backend="exact") as index, pytest.raises(InputError, match="in memory"):
        write_note(index, "prompt.json", "x")
