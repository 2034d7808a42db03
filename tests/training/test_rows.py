from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffretriever.errors import CorpusError
from diffretriever.training.rows import TrainingRow, open_rows

TEVATRON = {
    "query_id": "1",
    "query": "tilt",
    "positive_passages": [{"docid": "7", "title": "Seasons", "text": "The axis."}],
    "negative_passages": [{"docid": "8", "title": "", "text": "Bread."}, {"docid": "9", "text": "Music."}],
}
READ = TrainingRow("tilt", ("Seasons. The axis.",), ("Bread.", "Music."))


def write(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    data = gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_of_all_layouts_are_found_by_number(tmp_path, name):
    rows = open_rows(
        write(
            tmp_path / name,
            TEVATRON,
            "",
            {"query": "é", "positive": "ü", "negative": "x"},
            {"query": "b", "positives": ["c", {"title": "T", "text": "d"}], "negatives": None},
            {"text": "alone"},
        )
    )
    assert [rows[i] for i in (3, 0, 2, 1)] == [
        TrainingRow(None, ("alone",), ()),
        READ,
        TrainingRow("b", ("c", "T. d"), ()),
        TrainingRow("é", ("ü",), ("x",)),
    ]
    assert len(rows) == 4
    assert len(rows.sha256) == 64


def test_parquet_holds_the_same_layouts(tmp_path):
    pq.write_table(pa.Table.from_pylist([TEVATRON]), tmp_path / "rows.parquet")
    assert open_rows(tmp_path / "rows.parquet")[0] == READ
    pairs = {"query": ["a"], "positive": ["b"], "negative": [["c", "d"]], "other": [1]}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    assert open_rows(tmp_path / "pairs.parquet")[0] == TrainingRow("a", ("b",), ("c", "d"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "no JSON"),
        ("[1]", "a JSON list, no object"),
        ({"question": "a"}, "give query and positive"),
        ({"query": " ", "positive": "a"}, "query is ' '"),
        ({"positive": "a"}, "query is None"),
        ({"query": "a", "positive": []}, "at least one passage"),
        ({"query": "a", "positive": ["b", 3]}, "positive is 3"),
        ({"query": "a", "positive_passages": [{"title": "t"}]}, "positive_passages is None"),
        ({"text": ""}, "text is ''"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, row, words):
    path = write(tmp_path / "rows.jsonl", {"text": "good"}, "", row)
    with pytest.raises(CorpusError, match=rf"rows\.jsonl:3: .*{words}"):
        open_rows(path)


def test_many_bad_rows_are_counted(tmp_path):
    with pytest.raises(CorpusError, match="and 15 more rows"):
        open_rows(write(tmp_path / "rows.jsonl", *(["no"] * 25)))
    pq.write_table(pa.table({"query": ["a", ""], "positive": ["b", "c"]}), tmp_path / "rows.parquet")
    with pytest.raises(CorpusError, match=r"rows\.parquet:2: query is ''"):
        open_rows(tmp_path / "rows.parquet")


def test_files_that_cannot_be_used_say_why(tmp_path):
    with pytest.raises(CorpusError, match=r"data\.folder"):
        open_rows(tmp_path / "none.parquet")
    with pytest.raises(CorpusError, match="holds no row"):
        open_rows(write(tmp_path / "empty.jsonl"))
    with pytest.raises(CorpusError, match="JSONL or Parquet, not tsv"):
        open_rows(write(tmp_path / "rows.tsv", "a\tb"))
    (tmp_path / "odd.parquet").write_bytes(b"PAR?")
    with pytest.raises(CorpusError, match="cannot be read as Parquet"):
        open_rows(tmp_path / "odd.parquet")
    whole = write(tmp_path / "cut.jsonl.gz", *[{"text": f"text {i} {i * 7919}"} for i in range(999)])
    whole.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(CorpusError, match="cannot be read any further"):
        open_rows(whole)


def test_a_query_without_its_positive_is_no_plain_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"query": "what is tea", "text": "Tea is a drink."}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a.jsonl:1: has the fields .*give query and positive"):
        open_rows(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"query": null, "text": "Tea is a drink."}\n', encoding="utf-8")
    assert open_rows(tmp_path / "b.jsonl")[0].positives == ("Tea is a drink.",)


def test_a_damaged_packed_file_is_named_with_its_line(tmp_path):
    packed = bytearray(gzip.compress(b'{"text": "Tea is a drink."}\n' * 1000, compresslevel=0))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CorpusError, match=r"a.jsonl.gz: cannot be read any further after line \d+"):
        open_rows(path)
    path.write_bytes(gzip.compress(b'{"text": "Tea is a drink."}\n' * 1000)[:40] + b"\xff" * 40)
    with pytest.raises(CorpusError, match=r"a.jsonl.gz: cannot be read any further after line"):
        open_rows(path)
