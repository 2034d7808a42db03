"""A disk that is full or cannot be written, and a clock that goes back."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import diffretriever.index
from diffretriever.cli.main import app
from diffretriever.corpus import Passage
from diffretriever.errors import FolderAccessError, WriteError
from diffretriever.index import Index
from tests.faults.children import run
from tests.faults.inspection import held_passages, make_encoder

TINY = Path(__file__).parents[1] / "golden" / "checkpoints" / "tiny-dream"
Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Give a function that mounts a disk with some options; skipped where only root may mount and we are not root."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no disk can be mounted here; run as root to test this")
        return place

    yield mounted
    # Lazily: arrays that map its files may live until the garbage is collected.
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True, capture_output=True)


FILL = """
from diffretriever.errors import PassageNotFoundError, WriteError
folder, backend = Path(sys.argv[1]), sys.argv[2]
index = Index.create(folder, make_encoder(), backend=backend)
batch = 0
while True:
    try:
        index.add([Passage(f"{batch}-{i}", f"w{batch % 30} " * 12000) for i in range(20)], words=0)
    except (DiffRetrieverError, OSError) as error:
        print("refused", type(error).__name__, error)
        break
    print("added", batch, flush=True)
    batch += 1
if batch:
    print("still readable", len(index), index.get("0-0").passage.passage_id, len(index.search("w1", 3, "sparse")))
try:
    index.delete(["0-0"])
    print("deleted")
except (WriteError, PassageNotFoundError):
    print("delete refused")
try:
    index.close()
except (DiffRetrieverError, OSError) as error:
    print("close refused", type(error).__name__)
"""


@pytest.mark.parametrize(("backend", "size"), [("exact", "4m"), ("edge", "4m"), ("edge", "100m")])
def test_a_full_disk_is_said_and_loses_nothing(mount, backend, size):
    disk = mount(f"size={size}")
    said = run(FILL, disk / "index", backend)
    assert any(line.startswith("refused") for line in said)
    added = {f"{line.split()[1]}-{i}" for line in said if line.startswith("added") for i in range(20)}
    assert bool(added) == (size != "4m" or backend == "exact")
    assert any(line.startswith("still readable") for line in said) or not added
    gone = {"0-0"} if "deleted" in said else set()
    remount(disk, "size=400m")
    with Index.open(disk / "index", make_encoder()) as index:
        held, wrong = held_passages(index, words=False)
        assert wrong == []
        # A deletion that was refused may have happened, like any write that did not return.
        assert added - held.keys() <= {"0-0"}
        assert gone.isdisjoint(held)
        assert index.check().problems == ()
        index.add([Passage("new", "w1")])
        assert "new" in index


NO_ROOM_FOR_A_LINE = """
import resource
from diffretriever.errors import WriteError
folder = Path(sys.argv[1])
index = Index.create(folder, make_encoder(), backend="exact")
index.add([Passage(f"p{i}", f"w{i}") for i in range(20)], words=1)
log = folder / "store" / "log.jsonl"
size, (soft, hard) = log.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
for room in (0, 1, 20):  # bytes of the line that the disk takes
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
    for change in (lambda: index.delete(["p1"]), lambda: index.set_metadata({"p1": {"n": 1}})):
        try:
            change()
        except WriteError as error:
            print("refused", error.__cause__.errno, log.stat().st_size - size)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
index.delete(["p2"])
index.set_metadata({"p3": {"n": 3}})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits are set as on Linux")
def test_a_line_that_the_disk_takes_in_part_is_not_in_the_way_of_the_next(tmp_path):
    """A limit on the size of a file cuts a write short just as a full disk does."""
    assert run(NO_ROOM_FOR_A_LINE, tmp_path / "index") == [f"refused {errno.EFBIG} 0"] * 6
    with Index.open(tmp_path / "index", make_encoder()) as index:
        held, wrong = held_passages(index)
        assert wrong == []
        assert held.keys() == {f"p{i}" for i in range(20)} - {"p2"}
        assert {i: p.metadata for i, p in held.items() if p.metadata} == {"p3": {"n": 3}}
        assert index.check().problems == ()


def fill(disk: Path) -> None:
    """Write a file until nothing more fits on a disk."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))


def test_every_kind_of_write_says_that_the_disk_is_full(mount, backend):
    disk = mount("size=400m")
    passages = [Passage(f"p{i}", f"w{i}", metadata={"n": i}) for i in range(5)]
    changed = {p.passage_id: {"n": -1, "note": "x" * 20_000} for p in passages}
    with Index.create(disk / "index", make_encoder(), backend=backend) as index:
        index.add(passages, words=1)
        fill(disk)
        # The exact backend still finds the few bytes of a deletion in the last block of its log.
        deletion = [lambda: index.delete(["p0", "p1"])] if backend == "edge" else []
        for write in (
            *deletion,
            lambda: index.set_metadata(changed),
            lambda: index.update([Passage(p.passage_id, p.text, metadata=changed[p.passage_id]) for p in passages]),
            lambda: index.update([Passage("p0", "w9")]),
            lambda: index.add([Passage("new", "w9")]),
        ):
            with pytest.raises(WriteError, match=r"(?i)no space left.*0 (are stored|have|are gone)") as refused:
                write()
            assert refused.value.stored == ()
            assert {i: index.get(i).passage for i in index} == {p.passage_id: p for p in passages}
        if backend == "edge":
            with pytest.raises(OSError, match=r"(?i)no space left"):
                index.flush()
        (disk / "filler").unlink()
        assert index.delete(["p0", "p1"]) == 2
        index.set_metadata({"p2": changed["p2"]})
        assert index.check().problems == ()
    with Index.open(disk / "index") as index:
        assert set(index) == {"p2", "p3", "p4"}
        assert index.get("p2").passage.metadata == changed["p2"]


def index_command(*arguments: object) -> int:
    """Run `diffretriever index` here, as the console script would; returns its exit code."""
    with pytest.raises(SystemExit) as stop:
        app(["index", *map(str, arguments), "--model", str(TINY), "--batch-size", "4", "--words", "1"])
    return int(stop.value.code or 0)


@pytest.mark.parametrize(("backend", "size"), [("exact", "4m"), ("edge", "90m")])
def test_after_a_full_disk_the_same_command_goes_on(mount, tmp_path, capfd, backend, size):
    disk, corpus = mount(f"size={size}"), tmp_path / "corpus.jsonl"
    lines = [{"id": str(i), "text": f"moon {i}", "note": "x" * 400_000} for i in range(60)]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert index_command(corpus, "--out", tmp_path / "whole", "--backend", backend) == 0
    assert index_command(corpus, "--out", disk / "index", "--backend", backend) == 1
    said = capfd.readouterr().err
    assert "no space left" in said.lower()
    assert "Traceback" not in said
    remount(disk, "size=400m")
    with Index.open(disk / "index") as index:
        assert 0 < len(index) < 60
    assert index_command(corpus, "--out", disk / "index", "--backend", backend) == 0
    assert "going on: " in capfd.readouterr().err
    with Index.open(disk / "index") as resumed, Index.open(tmp_path / "whole") as whole:
        assert resumed.check().is_whole
        assert resumed.checksum() == whole.checksum()


def test_a_disk_that_cannot_be_written_is_said(mount, backend):
    disk = mount("size=400m")
    with Index.create(disk / "index", make_encoder(), backend=backend) as index:
        index.add([Passage("a", "w1")])
    remount(disk, "ro")
    for work in (
        lambda: Index.open(disk / "index", make_encoder()),
        lambda: Index.create(disk / "index", make_encoder(), backend=backend, overwrite=True),
        lambda: Index.create(disk / "new", make_encoder(), backend=backend),
    ):
        with pytest.raises(FolderAccessError, match=f"{disk}.* (opening an index locks its folder|cannot be made)"):
            work()
    remount(disk, "rw")
    with Index.open(disk / "index", make_encoder()) as index:
        assert list(index) == ["a"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said(tmp_path, backend):
    with Index.create(tmp_path / "index", make_encoder(), backend=backend) as index:
        index.add([Passage("a", "w1")])
    for path in [*(tmp_path / "index").rglob("*"), tmp_path / "index"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with pytest.raises(FolderAccessError, match="opening an index locks its folder"):
            Index.open(tmp_path / "index", make_encoder())
        with pytest.raises(FolderAccessError, match=r"new cannot be made: .*; choose another folder"):
            Index.create(tmp_path / "index" / "new", make_encoder(), backend=backend)
    finally:
        for path in [tmp_path / "index", *(tmp_path / "index").rglob("*")]:
            path.chmod(0o777)


CHANGE = """
from tests.faults.test_disk import change
change(Path(sys.argv[1]), int(sys.argv[2]))
"""


def change(folder: Path, year: int) -> None:
    with Index.open(folder, make_encoder()) as index:
        index.add([Passage(f"p{i}", f"w{i % 7} w{year}") for i in range(40)], words=1)
        index.delete([f"p{i}" for i in range(year, 40, 5)])


def expect(folder: Path, year: int) -> None:
    with Index.open(folder, make_encoder()) as index:
        held, wrong = held_passages(index)
        assert wrong == []
        assert held.keys() == {f"p{i}" for i in range(40) if i < year or (i - year) % 5}
        assert all(p.text.endswith(f" w{year}") for p in held.values())
        assert index.check().problems == ()


@pytest.mark.skipif(shutil.which("faketime") is None, reason="the command faketime (libfaketime) is not installed")
def test_a_clock_that_goes_back_changes_nothing(tmp_path, backend):
    folder = tmp_path / "index"
    Index.create(folder, make_encoder(), backend=backend).close()
    for year, clock in enumerate(["2040-06-01 00:00:00", "2004-02-29 23:59:59"]):
        run(CHANGE, folder, year, before=("faketime", clock))
        expect(folder, year)


def test_files_from_the_future_are_files(tmp_path, backend):
    folder = tmp_path / "index"
    Index.create(folder, make_encoder(), backend=backend).close()
    for year, stamp in enumerate([4_000_000_000, 86_400, 4_100_000_000]):
        change(folder, year)
        for path in folder.rglob("*"):
            os.utime(path, (stamp, stamp))
        expect(folder, year)


def test_no_index_code_asks_for_the_date():
    package = Path(diffretriever.index.__file__).parent
    dates = {"datetime", "time", "time_ns", "localtime", "gmtime", "st_mtime", "st_ctime", "getmtime", "getctime"}
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # Spans between two readings of a clock that never goes back are no dates.
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names |= {alias.name for node in imported if node.module in ("time", "os", "os.path") for alias in node.names}
        names |= {node.module or "" for node in imported} & {"datetime"}
        assert dates.isdisjoint(names), f"{path.relative_to(package)}: {dates & names}"
