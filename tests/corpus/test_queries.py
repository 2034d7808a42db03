from __future__ import annotations

import gzip

import pytest

from diffretriever.corpus import Query, read_queries
from diffretriever.errors import CorpusError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_beir_jsonl_and_folder(tmp_path):
    raw = b'{"_id": "q1", "text": "what?", "metadata": {}}\n{"query_id": 2, "query": ""}\n'
    write(tmp_path / "queries.jsonl.gz", gzip.compress(raw))
    expected = [Query("q1", "what?"), Query("2", "")]
    assert read_queries(tmp_path) == read_queries(tmp_path / "queries.jsonl.gz") == expected


def test_tsv_splits_at_the_first_tab(tmp_path):
    assert read_queries(write(tmp_path / "q.tsv", "7\ta\tb\r\n8\t\n")) == [Query("7", "a\tb"), Query("8", "")]


def test_plain_lines_carry_their_line_numbers(tmp_path):
    assert read_queries(write(tmp_path / "q.txt", "one\n\nthree\n")) == [Query("1", "one"), Query("3", "three")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.tsv", "1\ta\nno tab\n", r"q\.tsv:2: .*no id, tab, text"),
        ("q.tsv", "1\ta\n1\tb\n", r"q\.tsv:2: query id '1' was already given in line 1"),
        ("q.txt", b"ok\ncaf\xe9\n", r"q\.txt:2: the query holds byte 0xe9"),
        ("q.jsonl", '{"_id": "1", "text": "a"}\n{"_id": "2"}\n', r"q\.jsonl:2: lacks a text"),
        ("q.jsonl", "{oops\n", r"q\.jsonl:1: no JSON"),
        ("q.txt", "", "holds no query"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, content, message):
    with pytest.raises(CorpusError, match=message):
        read_queries(write(tmp_path / name, content))


def test_absent_file_and_folder_without_queries(tmp_path):
    with pytest.raises(CorpusError, match="cannot be opened"):
        read_queries(tmp_path / "absent.tsv")
    with pytest.raises(CorpusError, match=r"no queries\.jsonl"):
        read_queries(tmp_path)
