"""Checking an index, what damage it finds, and what a repair leaves."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import qdrant_edge as qe

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError, WriteError
from diffretriever.index import Index
from diffretriever.index.integrity.checking import CheckReport
from diffretriever.index.points.points import point_id
from tests.index.hashing import HashEncoder
from tests.index.places import backend_of


@pytest.fixture
def backend(kind):
    return backend_of(kind)


PASSAGES = [Passage(f"p{i}", f"word{i} shared text", f"title {i}", {"i": i, "ö": ["a", "b"]}) for i in range(40)]


def build(place, backend, **options):
    with Index.create(place, HashEncoder(), backend=backend, **options) as index:
        index.add(PASSAGES[:30], words=2)
        index.add(PASSAGES[20:], words=2)
        index.delete(["p3", "p33"])
        index.set_metadata({"p5": {"new": 2.5}, "p35": {}})


def test_a_sound_index_is_whole(place, backend):
    build(place, backend)
    with Index.open(place) as index:
        report = index.check()
        assert report == CheckReport(38, index.checksum(), ())
        assert report.is_whole
        assert index.check(repair=True) == report


def test_equal_indexes_have_equal_checksums(tmp_path):
    sums = set()
    for backend in ("edge", "exact"):
        build(tmp_path / backend, backend)
        with Index.create(tmp_path / f"{backend}2", HashEncoder(), backend=backend) as other:
            held = [p for p in reversed(PASSAGES) if p.passage_id not in ("p3", "p33")]
            other.add(held, words=2, batch_size=7)
            first = other.checksum()
            other.set_metadata({"p5": {"new": 2.5}, "p35": {}})
            sums.add(other.checksum())
            assert first not in sums
        with Index.open(tmp_path / backend) as index:
            sums.add(index.checksum())
    assert len(sums) == 1
    assert sums.pop().startswith("38-")


@pytest.mark.parametrize("name", ["dense", "pooled", "weights", "indices", "blob", "digests"])
def test_one_changed_byte_is_found_and_its_passage_given_up(tmp_path, name):
    build(tmp_path, "exact")
    path = next(p for p in sorted((tmp_path / "store" / "000001").iterdir()) if p.stem == name)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with Index.open(tmp_path, HashEncoder()) as index:
        report = index.check()
        assert any(f"000001/{path.name} is not as it was written" in problem for problem in report.problems)
        assert len(index) == 38
        mended = index.check(repair=True)
        assert mended.repaired
        assert mended.problems == report.problems
        assert mended.passages == 38 - len(mended.lost)
        assert index.check().is_whole
        index.add(PASSAGES, words=2)
        assert index.check() == CheckReport(40, index.checksum(), ())


def test_a_point_that_changed_is_found(tmp_path):
    build(tmp_path, "edge")
    with Index.open(tmp_path, HashEncoder()) as index:
        engine = index._store._engine
        vectors = np.ones((2, 16)) / 4
        vectors[-1] = 0
        changes = [
            qe.UpdateOperation.update_vectors([qe.PointVectors(point_id("p1"), {"multi": vectors.tolist()})]),
            qe.UpdateOperation.set_payload([point_id("p2")], {"text": "other"}),
            qe.UpdateOperation.set_payload([point_id("p4")], {"metadata": "{}"}),
            qe.UpdateOperation.set_payload([point_id("p6")], {"words": "["}),
            qe.UpdateOperation.clear_payload([point_id("p7")]),
            qe.UpdateOperation.set_payload([point_id("p8")], {"id": "p9"}),
        ]
        for change in changes:
            engine.ask("write", lambda shard, change=change: shard.update(change))
        with pytest.raises(IndexFormatError, match=r"payload of .* is damaged"):
            list(index)
        mended = index.check(repair=True)
        assert len(mended.problems) >= 6
        assert index.check() == CheckReport(32, mended.checksum, ())
        assert {f"p{i}" for i in range(40) if f"p{i}" not in index} == {
            "p1", "p2", "p3", "p4", "p6", "p7", "p8", "p33"
        }  # fmt: skip
        index.add(PASSAGES, words=2)
        assert index.check().is_whole


def test_numbers_that_cannot_be_are_found(place, backend, encoder):
    with Index.create(place, encoder, backend=backend) as index:
        good = encoder.encode_passages(["one two", "three four"])
        wrong = good.select([0, 1])
        wrong.dense.flags.writeable = True
        wrong.dense[0] *= 2
        wrong.pooled.flags.writeable = True
        wrong.pooled[1] += 0.01
        index.add_representations([Passage("norm", "one two"), Passage("mean", "three four")], wrong)
        problems = index.check().problems
        assert any("'norm'" in p and "norm is 1 away from 1" in p for p in problems)
        assert any("'mean'" in p and "away from the mean" in p for p in problems)


@pytest.mark.parametrize("backend", ["exact"])
def test_a_shortened_log_is_refused_and_can_be_repaired(tmp_path, backend, encoder):
    build(tmp_path, backend)
    log = tmp_path / "store" / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]))
    with pytest.raises(IndexFormatError, match="was closed with 38 passages and holds 30"):
        Index.open(tmp_path)
    assert len(list((tmp_path / "store").iterdir())) == 3  # nothing was removed
    log.write_bytes(b"")
    with pytest.raises(IndexFormatError, match="does not begin as a log does"):
        Index.open(tmp_path)
    log.unlink()
    with pytest.raises(IndexFormatError, match=r"log.jsonl is missing"):
        Index.open(tmp_path)
    with Index.open(tmp_path, encoder, salvage=True) as index:
        report = index.check(repair=True)
        assert any("is missing" in problem for problem in report.problems)
        assert set(index) == {p.passage_id for p in PASSAGES}  # deletions went with the log
    with Index.open(tmp_path) as index:
        assert index.check().is_whole


def test_a_lost_segment_can_be_given_up(tmp_path, encoder):
    build(tmp_path, "exact")
    (tmp_path / "store" / "000001" / "dense.npy").write_bytes(b"")
    with pytest.raises(IndexFormatError, match="000001 is damaged"):
        Index.open(tmp_path)
    with Index.open(tmp_path, encoder, salvage=True) as index:
        report = index.check(repair=True)
        assert any("000001 is damaged" in problem for problem in report.problems)
    with Index.open(tmp_path) as index:
        assert set(index) == {f"p{i}" for i in range(20, 40) if i != 33}
        assert index.check().is_whole
    assert (tmp_path / "store" / "damaged-000001").is_dir()


def test_an_emptied_engine_is_refused(tmp_path):
    build(tmp_path, "edge")
    for path in (tmp_path / "store" / "segments").rglob("mutable_id_tracker.*"):
        os.truncate(path, 0)
    with pytest.raises(IndexFormatError):
        Index.open(tmp_path)


def test_an_engine_that_panics_is_named(tmp_path):
    build(tmp_path, "edge")
    for path in (tmp_path / "store" / "segments").rglob("chunk_0.mmap"):
        path.unlink()
    with pytest.raises(IndexFormatError, match="diffretriever check DIR --repair"):
        _read_all(tmp_path)


def test_a_file_that_would_end_the_process_is_set_aside(tmp_path, encoder):
    build(tmp_path, "edge")
    with Index.open(tmp_path) as index:
        before = index.checksum()
    for path in (tmp_path / "store" / "segments").rglob("deleted/status.dat"):
        raw = bytearray(path.read_bytes())
        raw[5] ^= 64
        path.write_bytes(raw)
    with pytest.raises(IndexFormatError, match="is not as it was since the index was closed"):
        Index.open(tmp_path)
    with Index.open(tmp_path, encoder, salvage=True) as index:
        assert index.check(repair=True).checksum == before
    with Index.open(tmp_path) as index:
        assert index.check().is_whole


def _read_all(folder):
    with Index.open(folder) as index:
        return [index.get(i) for i in index]


def test_an_older_state_of_one_file_is_found(tmp_path, encoder):
    build(tmp_path, "exact")
    log = tmp_path / "store" / "log.jsonl"
    before = log.read_bytes()
    with Index.open(tmp_path, encoder) as index:
        index.set_metadata({"p1": {"late": 1}})
    log.write_bytes(before)
    with Index.open(tmp_path) as index:
        assert [p for p in index.check().problems if "it was closed with 38 passages" in p]


@pytest.mark.parametrize("backend", ["edge", "exact"])
def test_a_failed_write_says_what_is_stored(tmp_path, backend, encoder, monkeypatch):
    with Index.create(tmp_path / "i", encoder, backend=backend) as index:
        monkeypatch.setattr("diffretriever.index.edge.store._WRITE_NUMBERS", 100)
        index.add(PASSAGES[:1])
        if backend == "edge":
            write, calls = index._store._write, []

            def fail(operation, size=0):
                calls.append(operation)
                if len(calls) == 3:
                    raise OSError(28, "no space left")
                write(operation)

            monkeypatch.setattr(index._store, "_write", fail)
            stored = ("p0", "p1")
        else:

            def fail(handle):
                raise OSError(28, "no space left")

            monkeypatch.setattr(os, "fsync", fail)
            stored = ("p0",)
        with pytest.raises(WriteError, match=f"Of the 40 passages of this batch {len(stored)} are stored") as failed:
            index.add(PASSAGES)
        assert failed.value.stored == stored
        assert isinstance(failed.value, OSError)
        monkeypatch.undo()
        assert set(index) == set(stored)
        index.add(PASSAGES)
        assert index.check().is_whole


@pytest.mark.parametrize("backend", ["edge", "exact"])
def test_a_snapshot_is_the_index_as_it_was(tmp_path, backend, encoder):
    with Index.create(tmp_path / "i", encoder, backend=backend, durable=True) as index:
        index.add(PASSAGES[:20])
        index.delete("p3")
        index.snapshot(tmp_path / "s" / "copy")
        before, hits = index.checksum(), index.search_batch(["word7", "shared"], 30)
        with Index.open(tmp_path / "s" / "copy", encoder) as copy:
            index.add(PASSAGES[20:])
            index.delete("p7")
            assert copy.checksum() == before
            assert copy.search_batch(["word7", "shared"], 30) == hits
            assert copy.check().is_whole
            assert copy.manifest == index.manifest
        assert len(index) == 38
        with pytest.raises(ValueError, match="exists already; choose a new folder"):
            index.snapshot(tmp_path / "s" / "copy")
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["copy"]
    shutil.rmtree(tmp_path / "i")
    with Index.open(tmp_path / "s" / "copy", encoder) as copy:
        copy.add(PASSAGES)
        assert copy.check() == CheckReport(40, copy.checksum(), ())


def test_what_has_no_files_has_no_snapshot(tmp_path, encoder):
    with Index.create(None, encoder, backend="exact") as index, pytest.raises(ValueError, match="only an index in"):
        index.snapshot(tmp_path / "s")


@pytest.mark.parametrize("backend", ["edge", "exact"])
def test_a_failed_snapshot_leaves_nothing(tmp_path, backend, encoder, monkeypatch):
    with Index.create(tmp_path / "i", encoder, backend=backend) as index:
        index.add(PASSAGES)

        def fail(*arguments):
            raise OSError(28, "no space left")

        monkeypatch.setattr("diffretriever.index.folder.folder.copy_file", fail)
        with pytest.raises(OSError, match="no space"):
            index.snapshot(tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["i"]


@pytest.mark.parametrize("backend", ["edge", "exact"])
def test_a_changed_manifest_is_refused(tmp_path, backend):
    build(tmp_path, backend)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"query_slots": 4', '"query_slots": 5'))
    with pytest.raises(IndexFormatError, match="is not as it was written"):
        Index.open(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(IndexFormatError, match="cannot be read"):
        Index.open(tmp_path)
