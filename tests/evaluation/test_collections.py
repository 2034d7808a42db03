from __future__ import annotations

import pytest

from diffretriever.errors import CorpusError
from diffretriever.evaluation import Collection, Qrel, read_qrels

EXPECTED = [Qrel("q1", "d 1", 2), Qrel("q1", "d2", 0)]


def test_beir_and_trec_qrels(tmp_path):
    beir, trec = tmp_path / "test.tsv", tmp_path / "qrels.txt"
    beir.write_text("query-id\tcorpus-id\tscore\nq1\td 1\t2\nq1\td2\t0\n")
    trec.write_text("q1 0 d1 2\nq1\t0\td2\t-1\n")
    assert read_qrels(beir) == EXPECTED
    assert read_qrels(trec) == [Qrel("q1", "d1", 2), Qrel("q1", "d2", -1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1 0 d1 1\nq1 d1\n", r":2: 2 columns"),
        ("q1\td1\t1\nq1\td2\tyes\n", r":2: relevance 'yes' is no whole number"),
        ("q1 0 d1 1\nq1 0 d1 0\n", r":2: .*already judged in line 1"),
        ("query-id\tcorpus-id\tscore\n", "holds no judgement"),
        (b"q1 0 d\xe9 1\n", r":1: byte 0xe9"),
    ],
)
def test_bad_qrels_name_the_line(tmp_path, content, message):
    path = tmp_path / "q.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorpusError, match=message):
        read_qrels(path)


def test_a_collection_keeps_only_judged_queries(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n2\ta\t1\n")
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "x"}\n{"_id": "2", "text": "y"}\n')
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "t"}\n')
    collection = Collection.load(tmp_path)
    assert [q.query_id for q in collection.queries] == ["2"]
    assert [p.passage_id for p in collection.passages] == ["a"]
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n3\ta\t1\n")
    with pytest.raises(CorpusError, match="judges none of the queries"):
        Collection.load(tmp_path)
