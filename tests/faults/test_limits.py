"""Much of everything: one id many times, many passages, a long passage, many fields, many writers."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from diffretriever.corpus import Passage
from diffretriever.errors import IndexLockedError
from diffretriever.index import Equals, Index, Range
from tests.faults.children import ROOT, finish, run, start
from tests.faults.inspection import WORDS, held_passages, make_encoder
from tests.index.hashing import HashEncoder

TAKE_TURNS = """
folder, name = Path(sys.argv[1]), sys.argv[2]
added = refused = 0
while added < 3:
    try:
        with Index.open(folder, make_encoder()) as index:
            index.add([Passage(f"{name}-{added}", f"w{added} {name}")])
            added += 1
    except IndexLockedError:
        refused += 1
print(refused)
"""


def test_writers_that_run_at_once_take_turns(tmp_path, backend):
    Index.create(tmp_path / "index", make_encoder(), backend=backend).close()
    processes = [start(TAKE_TURNS, tmp_path / "index", name) for name in ("a", "b")]
    for process in processes:
        finish(process)
    with Index.open(tmp_path / "index") as index:
        assert set(index) == {f"{name}-{i}" for name in "ab" for i in range(3)}
        with pytest.raises(IndexLockedError, match="close it there"):
            Index.open(tmp_path / "index")


READ_SNAPSHOT = """
with Index.open(Path(sys.argv[1]), make_encoder()) as index:
    held, wrong = held_passages(index)
    assert not wrong, wrong
    print(len(held), {p.text for p in held.values()})
"""


def test_a_snapshot_is_read_while_the_index_is_written(tmp_path, backend):
    with Index.create(tmp_path / "index", make_encoder(), backend=backend) as index:
        index.add([Passage(f"p{i}", "w1") for i in range(60)], words=1)
        index.snapshot(tmp_path / "copy")
        reader = start(READ_SNAPSHOT, tmp_path / "copy")
        reading = True
        while reading:  # this process writes for as long as the other reads, and once if that is done already
            reading = reader.poll() is None
            index.add([Passage(f"p{i}", "w2") for i in range(60)], words=1)
            index.delete(["p0"])
        assert finish(reader) == ["60 {'w1'}"]
        assert {index.get(i).passage.text for i in index} == {"w2"}


def add_one_id(folder, backend, times):
    with Index.create(folder, make_encoder(), backend=backend) as index:
        most = 0
        for i in range(times):
            index.add([Passage("same", f"w{i % 40}", metadata={"n": i})], words=1)
            most = max(most, sum(1 for _ in folder.rglob("*")))
        assert len(index) == 1
        assert [hit.passage_id for hit in index.search(f"w{(times - 1) % 40}", mode="sparse")] == ["same"]
        assert index.search(f"w{times % 40}", mode="sparse") == []
        size = index.stats().disk_bytes
    with Index.open(folder) as index:
        assert list(index) == ["same"]
        assert index.get("same").passage.metadata == {"n": times - 1}
        assert index.check().problems == ()
    return most, size


def test_adding_one_id_again_and_again_keeps_the_index_small(tmp_path, backend):
    files, size = add_one_id(tmp_path / "index", backend, 40)
    assert files < 200
    assert size < 5e6


@pytest.mark.slow
def test_ten_thousand_adds_of_one_id(tmp_path, backend):
    files, size = add_one_id(tmp_path / "index", backend, 10_000)
    assert files < 200
    assert size < 50e6


FEW_DESCRIPTORS = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
with Index.create(Path(sys.argv[1]), make_encoder(), backend=sys.argv[2]) as index:
    print(index.add([Passage(f"p{i}", f"w{i % 40}") for i in range(60)], batch_size=1, words=1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits are set as on Linux")
def test_an_add_of_many_batches_keeps_few_files_open(tmp_path, backend):
    assert run(FEW_DESCRIPTORS, tmp_path / "index", backend) == ["60"]
    with Index.open(tmp_path / "index") as index:
        assert held_passages(index)[1] == []
        assert len(index) == 60


TOO_FEW_DESCRIPTORS = """
import os, resource
folder = Path(sys.argv[1])
with Index.create(folder, make_encoder(), backend="exact") as index:
    for i in range(6):
        index.add([Passage(f"p{i}", f"w{i}")], words=1)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
taken, errors = len(os.listdir("/proc/self/fd")), set()
for spare in range(30):  # none for the manifest, none for the seal, none for a segment
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + spare, hard))
    for salvage in (False, True):
        try:
            Index.open(folder, salvage=salvage)
        except Exception as error:
            errors.add(error.errno if type(error) is OSError else repr(error))
print(errors)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
with Index.open(folder) as index:
    print(len(index), index.check().problems)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits are set as on Linux")
def test_too_few_descriptors_are_no_damage(tmp_path):
    assert run(TOO_FEW_DESCRIPTORS, tmp_path / "index") == [str({errno.EMFILE}), "6 ()"]


@pytest.mark.parametrize("file", ["manifest.json", "seal.json"])
def test_a_file_that_may_not_be_read_is_no_damage(tmp_path, file, monkeypatch):
    with Index.create(tmp_path / "index", HashEncoder(), backend="exact") as index:
        index.add([Passage("p", "moon")])
    read = Path.read_text

    def forbidden(path, *arguments, **options):  # the rights of a file do not keep the administrator out
        if path.name == file:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(PermissionError, match=file):
        Index.open(tmp_path / "index")
    monkeypatch.undo()
    with Index.open(tmp_path / "index") as index:
        assert index.check().problems == ()


@pytest.mark.parametrize("salvage", [False, True])
def test_a_segment_that_memory_does_not_suffice_for_is_not_given_up(tmp_path, salvage, monkeypatch):
    with Index.create(tmp_path / "index", make_encoder(), backend="exact") as index:
        for i in range(3):
            index.add([Passage(f"p{i}", f"w{i}")], words=1)

    def fail(*arguments, **options):
        raise MemoryError("Unable to allocate 4.00 GiB for an array")

    with monkeypatch.context() as patch:
        patch.setattr("diffretriever.index.exact.segment.np.load", fail)
        with pytest.raises(MemoryError):
            Index.open(tmp_path / "index", salvage=salvage)
    with Index.open(tmp_path / "index") as index:
        assert len(index) == 3
        assert index.check().problems == ()


def test_a_passage_of_ten_megabytes(tmp_path, backend):
    text = " ".join(WORDS) + " " + "word🌙 \x00\n" * (10_000_000 // 10)
    passages = [Passage("long", text, "title " * 1000), Passage("short", "moon")]
    with Index.create(tmp_path / "index", HashEncoder(), backend=backend) as index:
        index.add(passages)
    with Index.open(tmp_path / "index", HashEncoder()) as index:
        assert index.get("long").passage == passages[0]
        assert index.search("w3", 1)[0].text == text
        index.set_metadata({"long": {"n": 1}})
        assert index.search("w3", 1, where=Equals("n", 1))[0].passage_id == "long"
        assert index.check().problems == ()
        assert index.delete("long") == 1
    with Index.open(tmp_path / "index") as index:
        assert list(index) == ["short"]


def test_five_thousand_fields_of_metadata(tmp_path, backend):
    values = ["x", 1, 2.5, True, ["a", "b"], ""]
    metadata = {f"field {i} é.[]": values[i % 6] if i % 6 != 1 else i for i in range(5000)}
    with Index.create(tmp_path / "index", HashEncoder(), backend=backend) as index:
        index.add([Passage("many", "moon", metadata=metadata), Passage("few", "moon", metadata={"field 1 é.[]": 0})])
        index.set_metadata({"few": {**metadata, "field 4999 é.[]": 0}})
        index.set_metadata({"few": {"field 1 é.[]": 0}})
    with Index.open(tmp_path / "index", HashEncoder()) as index:
        assert index.get("many").passage.metadata == metadata
        for where in (
            Equals("field 4996 é.[]", "b"),
            Range("field 4999 é.[]", gte=4999),
            Equals("field 4995 é.[]", True),
        ):
            assert [hit.passage_id for hit in index.search("moon", where=where)] == ["many"]
        assert index.check().problems == ()


@pytest.mark.slow
def test_a_million_tiny_passages_in_bounded_memory(tmp_path, backend):
    command = [sys.executable, "-m", "tests.faults.million", "--backend", backend, "--folder", str(tmp_path / "index")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
