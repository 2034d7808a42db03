"""Index folders: what they say of themselves, who may open them, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager

import pytest

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError, IndexLockedError, InputError
from diffretriever.folder_lock import FolderLock, FolderTakenError
from diffretriever.index import Index, Manifest
from diffretriever.index.manifest import FORMAT_VERSION, _checksum
from diffretriever.index.storage.storage import Storage


@pytest.fixture
def folder(tmp_path, backend, encoder):
    with Index.create(tmp_path / "index", encoder, backend=backend) as index:
        index.add([Passage("a", "moon")])
    return tmp_path / "index"


def change(folder, **values):
    path = folder / "manifest.json"
    about = {**json.loads(path.read_text()), **values}
    about.pop("checksum")
    path.write_text(json.dumps({**about, "checksum": _checksum(about)}))


def test_the_manifest_says_what_the_folder_holds(folder, backend, encoder):
    assert Manifest.read(folder) == Manifest(backend, Storage("float16"), 16, 997, encoder.provenance)
    plain = json.loads((folder / "manifest.json").read_text())
    assert (plain["format"], plain["format_version"]) == ("diffretriever-index", FORMAT_VERSION)


def test_fields_of_a_later_release_are_passed_over(folder, encoder):
    change(folder, later=1, provenance={**json.loads((folder / "manifest.json").read_text())["provenance"], "new": 2})
    with Index.open(folder, encoder) as index:
        assert len(index) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "other"}, "not the manifest of an index of this package"),
        (
            {"format_version": FORMAT_VERSION + 1},
            f"index format {FORMAT_VERSION + 1}, this version reads up to {FORMAT_VERSION}; upgrade",
        ),
        ({"format_version": "x"}, "index format 'x'"),
        ({"backend": "faiss"}, "damaged .backend 'faiss'"),
        ({"dim": "16"}, "damaged .dim '16'"),
        ({"provenance": {}}, "damaged"),
        ({"provenance": None}, "damaged"),
    ],
)
def test_a_foreign_newer_or_damaged_manifest_is_refused(folder, values, message):
    change(folder, **values)
    with pytest.raises(IndexFormatError, match=message):
        Index.open(folder)


def test_a_torn_manifest_is_refused(folder):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(IndexFormatError, match=r"cannot be read.*restore it from a copy"):
        Index.open(folder)


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(IndexFormatError, match="does not exist; create one"):
        Index.open(tmp_path / "nothing")
    with pytest.raises(IndexFormatError, match=r"is no index: it holds no manifest.json"):
        Index.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_store_is_refused(folder):
    (folder / "store").rename(folder / "elsewhere")
    with pytest.raises(IndexFormatError, match="lost its folder 'store'"):
        Index.open(folder)


def test_one_opener_at_a_time(folder):
    with Index.open(folder):
        with pytest.raises(IndexLockedError, match=f"is open in process {os.getpid()}; close it there"):
            Index.open(folder)
        code = (
            f"from diffretriever.index import Index\ntry: Index.open({str(folder)!r})\nexcept Exception as e: print(e)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert f"is open in process {os.getpid()}" in done.stdout
    with Index.open(folder) as index:
        assert len(index) == 1


@contextmanager
def forked(work):
    """Fork a process that does something and then stays until the block ends; it does nothing else."""
    ready, go = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 and later warn where threads run, as those of an engine and of a test server may: it depends on
        # which tests came before. The child takes no lock that a thread could have held.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        failed = True
        try:
            work()
            failed = False
            os.write(ready[1], b".")
            os.close(go[1])
            os.read(go[0], 1)
        finally:
            os._exit(int(failed))
    os.close(ready[1])
    try:
        assert os.read(ready[0], 1) == b"."
        yield
    finally:
        os.close(go[1])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.close(ready[0])
        os.close(go[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_closed_index_is_free_though_a_forked_process_lives_on(folder):
    index = Index.open(folder)
    with forked(lambda: None):
        index.close()
        with Index.open(folder) as again:
            assert list(again) == ["a"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_an_index_closed_in_a_forked_process_is_open_in_its_owner(folder, encoder):
    def close() -> None:
        signal.alarm(20)  # ends a process that would wait for ever
        index.close()

    with Index.open(folder, encoder) as index:
        index.add([Passage("b", "sun")])
        with forked(close):
            assert not (folder / "seal.json").exists()
            with pytest.raises(IndexLockedError, match=f"is open in process {os.getpid()}"):
                Index.open(folder)
        index.add([Passage("c", "star")])
    with Index.open(folder) as index:
        assert set(index) == {"a", "b", "c"}
        assert index.check().problems == ()


def test_a_lock_that_cannot_be_given_back_is_no_longer_held(tmp_path, monkeypatch):
    def fail(file):
        raise OSError(errno.ENOLCK, "No locks available")

    lock = FolderLock(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("diffretriever.folder_lock._unlock", fail)
        with pytest.raises(OSError, match="No locks available"):
            lock.release()
    FolderLock(tmp_path).release()
    lock.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_does_not_give_back_the_lock_of_its_parent(tmp_path):
    lock = FolderLock(tmp_path)
    with forked(lock.release), pytest.raises(FolderTakenError, match=f"process {os.getpid()}"):
        FolderLock(tmp_path)
    with pytest.raises(FolderTakenError):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release()


def test_an_index_is_overwritten_only_when_asked(folder, backend, encoder):
    with pytest.raises(IndexFormatError, match="already holds an index; open it, or pass overwrite=True"):
        Index.create(folder, encoder, backend=backend)
    with Index.open(folder), pytest.raises(IndexLockedError):
        Index.create(folder, encoder, backend=backend, overwrite=True)
    with Index.open(folder) as index:
        assert list(index) == ["a"]
    for other in ("exact", "edge", backend):
        with Index.create(folder, encoder, backend=other, overwrite=True) as index:
            assert len(index) == 0
            index.add([Passage("b", "sun")])
            assert list(index) == ["b"]


def test_other_files_are_never_overwritten(tmp_path, backend, encoder):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(IndexFormatError, match=r"not empty and holds no index .it holds thesis.tex"):
            Index.create(tmp_path, encoder, backend=backend, overwrite=overwrite)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(IndexFormatError, match="not the manifest of an index"):
        Index.create(tmp_path, encoder, backend=backend, overwrite=True)
    with pytest.raises(IndexFormatError, match="is a file"):
        Index.create(tmp_path / "thesis.tex", encoder, backend=backend)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_what_an_interrupted_creation_left_can_be_taken_over(folder, backend, encoder):
    (folder / "manifest.json").unlink()
    with pytest.raises(IndexFormatError, match="holds no"):
        Index.open(folder)
    with Index.create(folder, encoder, backend=backend) as index:
        assert len(index) == 0


def test_a_killed_process_loses_nothing_it_added(tmp_path, backend, encoder):
    code = (
        "import os, sys\n"
        "from diffretriever.corpus import Passage\n"
        "from diffretriever.index import Index\n"
        "from tests.index.hashing import HashEncoder\n"
        f"index = Index.create({str(tmp_path / 'index')!r}, HashEncoder(), backend={backend!r})\n"
        "index.add(Passage(f'p{i}', f'word{i}') for i in range(20))\n"
        "index.delete('p3')\n"
        "os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    with Index.open(tmp_path / "index", encoder) as index:
        assert len(index) == 19
        assert index.search("word7", 1)[0].passage_id == "p7"


def test_wrong_options_are_refused(tmp_path, encoder):
    with pytest.raises(InputError, match="backend must be"):
        Index.create(tmp_path, encoder, backend="faiss")
    with pytest.raises(InputError, match="storage must be"):
        Index.create(tmp_path, encoder, storage="int4")
    with pytest.raises(InputError, match="the edge backend needs a folder"):
        Index.create(None, encoder)
