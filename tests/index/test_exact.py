"""What only the exact store does: its log, its segments, memory."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError
from diffretriever.index import Index
from diffretriever.index.exact.best import Best
from diffretriever.index.exact.log import _line
from diffretriever.index.exact.store import MAX_SEGMENTS


@pytest.fixture
def index(tmp_path, encoder):
    with Index.create(tmp_path, encoder, backend="exact") as made:
        yield made


def segments(folder):
    return sorted(path.name for path in (folder / "store").iterdir() if path.is_dir())


def reopened(index, tmp_path, encoder):
    index.close()
    return Index.open(tmp_path, encoder)


def test_an_index_in_memory_is_the_same(tmp_path, encoder, index):
    passages = [Passage(f"p{i}", f"word{i % 9} text{i % 4}", metadata={"i": i}) for i in range(30)]
    with Index.create(None, encoder, backend="exact") as memory:
        for made in (index, memory):
            for start in range(0, 30, 2):
                made.add(passages[start : start + 2])
            made.delete(["p3", "p4"])
        assert memory.search_batch(["word1 text2", "text3"]) == index.search_batch(["word1 text2", "text3"])
        assert memory.stats().path is None
        assert memory.get("p5").passage == passages[5]


def test_many_small_writes_leave_few_segments(index, tmp_path, encoder):
    for i in range(60):
        index.add([Passage(f"p{i}", f"word{i}")])
    assert len(segments(tmp_path)) <= MAX_SEGMENTS
    with reopened(index, tmp_path, encoder) as again:
        assert len(again) == 60
        assert all(again.search(f"word{i}", 1)[0].passage_id == f"p{i}" for i in range(60))


def test_much_deletion_gives_the_space_back(index, tmp_path, encoder):
    index.add([Passage(f"p{i}", f"word{i}") for i in range(1000)])
    before = index.stats().disk_bytes
    index.delete([f"p{i}" for i in range(900)])
    assert index.stats().disk_bytes < before / 4
    with reopened(index, tmp_path, encoder) as again:
        assert set(again) == {f"p{i}" for i in range(900, 1000)}
        again.delete(list(again))
        assert len(again) == 0
        again.add([Passage("new", "word")])
    with Index.open(tmp_path, encoder) as again:
        assert list(again) == ["new"]


def test_a_long_log_is_shortened(index, tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("diffretriever.index.exact.store.MAX_LOG_LINES", 5)
    index.add([Passage("a", "moon"), Passage("b", "sun")])
    index.delete("b")
    for i in range(20):
        index.set_metadata({"a": {"i": i}})
    assert len((tmp_path / "store" / "log.jsonl").read_text().splitlines()) <= 6
    with reopened(index, tmp_path, encoder) as again:
        assert list(again) == ["a"]
        assert again.get("a").passage.metadata == {"i": 19}


def test_a_torn_last_line_of_the_log_is_dropped(index, tmp_path, encoder):
    index.add([Passage("a", "moon")])
    index.flush()
    shutil.copytree(tmp_path, tmp_path / "killed")
    tmp_path = tmp_path / "killed"
    index.add([Passage("b", "sun")])
    shutil.copytree(index._home.path / "store", tmp_path / "store", dirs_exist_ok=True)
    log = tmp_path / "store" / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-4])
    with Index.open(tmp_path, encoder) as again:
        assert list(again) == ["a"]
        again.add([Passage("c", "star")])
        assert segments(tmp_path) == ["000001", "000003"]
    with Index.open(tmp_path, encoder) as again:
        assert list(again) == ["a", "c"]


def test_damage_is_reported(index, tmp_path, encoder):
    index.add([Passage("a", "moon")])
    index.close()
    log = tmp_path / "store" / "log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(b"{nothing}\n" + whole)
    with pytest.raises(IndexFormatError, match=r"log.jsonl does not begin as a log does"):
        Index.open(tmp_path, encoder)
    for damaged in (whole + b"{}\n", whole[:-20] + b"x" + whole[-19:], whole + b"\0" * 9, whole + b"no line"):
        log.write_bytes(damaged)
        with pytest.raises(IndexFormatError, match=r"log.jsonl:\d cannot be read"):
            Index.open(tmp_path, encoder)
    log.write_bytes(whole + _line('{"delete": ["unheard"]}').encode())
    with pytest.raises(IndexFormatError, match=r"log.jsonl is damaged .'unheard'"):
        Index.open(tmp_path, encoder)
    log.write_bytes(whole)
    array = tmp_path / "store" / "000001" / "dense.npy"
    array.write_bytes(array.read_bytes()[:60])
    with pytest.raises(IndexFormatError, match="000001 is damaged"):
        Index.open(tmp_path, encoder)
    shutil.rmtree(tmp_path / "store" / "000001")
    with pytest.raises(IndexFormatError, match="000001 is damaged"):
        Index.open(tmp_path, encoder)


def test_a_failed_write_is_not_met_again(index, tmp_path, encoder, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("diffretriever.index.exact.segment.os.fsync", fail)
        with pytest.raises(OSError, match="no space"):
            index.add([Passage("a", "moon")])
    assert len(index) == 0
    index.add([Passage("a", "sun")])
    with reopened(index, tmp_path, encoder) as again:
        assert again.get("a").passage.text == "sun"
        assert len(segments(tmp_path)) == 1


def test_files_hold_no_code(index, tmp_path):
    index.add([Passage("a", "moon")])
    for path in (tmp_path / "store" / "000001").iterdir():
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        else:
            json.loads(path.read_text())


def test_best_keeps_what_ties_with_the_last():
    best = Best(2)
    for start in range(0, 40, 4):
        best.add(np.array([1, 2, 0, 1], np.float32), np.arange(start, start + 4))
    ranking = best.ranking(lambda p: f"{99 - p}", floor=None)
    assert list(ranking.passage_ids) == ["62", "66"]
    assert ranking.scores.tolist() == [2.0, 2.0]
