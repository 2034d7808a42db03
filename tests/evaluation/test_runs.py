from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffretriever.errors import CorpusError, InputError
from diffretriever.evaluation import Run, ScoredPassage, read_run, write_run


def ranking(*scores):
    return [ScoredPassage(f"d{i}", s) for i, s in enumerate(scores)]


def test_six_columns_ranks_from_one(tmp_path):
    write_run(Run.of(["q"], [ranking(2.5, 1.0)], "mine"), tmp_path / "r")
    assert (tmp_path / "r").read_text() == "q Q0 d0 1 2.5 mine\nq Q0 d1 2 1 mine\n"


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path):
    (tmp_path / "runs").mkdir()
    for name, text in (("old", "old"), ("none yet", None)):
        file, link = tmp_path / "runs" / name, tmp_path / f"link to {name}"
        if text is not None:
            file.write_text(text)
        link.symlink_to(file)
        write_run(Run.of(["q"], [ranking(1.0)], "mine"), link)
        assert link.is_symlink()
        assert file.read_text() == "q Q0 d0 1 1 mine\n"
    assert {p.name for p in tmp_path.rglob("*")} == {"runs", "old", "none yet", "link to old", "link to none yet"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)) as reader:
        write_run(Run.of(["q"], [ranking(1.0)], "mine"), tmp_path / "pipe")
        assert reader.read() == "q Q0 d0 1 1 mine\n"
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="open files have no names here")
def test_an_open_pipe_is_written_to_by_its_name():
    reader, writer = os.pipe()
    write_run(Run.of(["q"], [ranking(1.0)], "mine"), f"/dev/fd/{writer}")
    os.close(writer)
    with open(reader) as file:
        assert file.read() == "q Q0 d0 1 1 mine\n"


FLOATS = st.floats(-1e30, 1e30) | st.sampled_from([0.0, -0.0, 1.0, 1 + 1e-9, 1e-45])


@given(scores=st.lists(FLOATS, max_size=30))
def test_written_scores_keep_the_order_through_single_precision(tmp_path_factory, scores):
    import numpy as np

    path = tmp_path_factory.mktemp("run") / "r"
    run = Run.of(["q"], [ranking(*sorted(scores, reverse=True))])
    write_run(run, path)
    written = [np.float32(line.split()[4]) for line in path.read_text().splitlines()]
    assert all(a > b for a, b in pairwise(written))
    assert [p.passage_id for p in read_run(path).rankings.get("q", [])] == [f"d{i}" for i in range(len(scores))]


def test_reading_sorts_by_score(tmp_path):
    (tmp_path / "r").write_text("q Q0 a 1 1.0 t\nq Q0 b 2 3.0 t\n")
    assert [p.passage_id for p in read_run(tmp_path / "r").rankings["q"]] == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q Q0 a 1 1.0 t\nq Q0 a\n", r"r:2: 3 columns, expected 6"),
        ("q Q0 a 1 high t\n", r"r:1: score 'high'"),
        ("q Q0 a 1 2 t\nq Q0 a 2 1 t\n", "holds a passage twice"),
        ("q Q0 a 1 nan t\n", "nan"),
    ],
)
def test_bad_runs(tmp_path, content, message):
    (tmp_path / "r").write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_run(tmp_path / "r")


@pytest.mark.parametrize("bad", ["", "a b", "a\tb", " a"])
def test_ids_with_white_space_cannot_be_written(tmp_path, bad):
    (tmp_path / "r").write_text("old")
    with pytest.raises(InputError, match="white space"):
        write_run(Run.of(["q"], [[ScoredPassage(bad, 1.0)]]), tmp_path / "r")
    assert (tmp_path / "r").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "r"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", r" is a folder; give the file of the run, such as .*run\.trec"),
        ("none/r", r"r: there is no folder .*none; make it"),
    ],
)
def test_a_place_where_no_run_can_be_is_named(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        write_run(Run.of(["q"], [ranking(1.0)]), tmp_path / name)


def test_unsorted_double_and_mismatched_rankings_are_refused():
    with pytest.raises(InputError, match="not sorted"):
        Run.of(["q"], [ranking(1.0, 2.0)])
    with pytest.raises(InputError, match="one ranking per query"):
        Run.of(["q"], [])
    with pytest.raises(InputError, match="twice"):
        Run.of(["q", "q"], [[], []])
