from __future__ import annotations

import os
import subprocess
import sys

import pytest

from diffretriever.corpus import Query
from diffretriever.errors import CorpusError, MissingExtraError
from diffretriever.evaluation import Collection, Qrel, open_collection, read_qrels

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


def beir(folder, splits, *, queries=("1", "2")):
    (folder / "qrels").mkdir(parents=True)
    for split in splits:
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n2\ta\t1\n")
    lines = "".join(f'{{"_id": "{q}", "text": "x"}}\n' for q in queries)
    (folder / "queries.jsonl").write_text(lines)
    (folder / "corpus.jsonl").write_text('{"_id": "a", "title": "h", "text": "t"}\n')
    return folder


@pytest.mark.parametrize(
    ("splits", "asked", "chosen"),
    [(["test", "train"], None, "test"), (["dev"], None, "dev"), (["dev", "train"], "train", "train")],
)
def test_the_split_is_test_or_the_only_one_or_the_one_asked_for(tmp_path, splits, asked, chosen):
    collection = Collection.load(beir(tmp_path / "c", splits), asked)
    assert (collection.name, collection.split, collection.unjudged_queries) == ("c", chosen, 1)
    assert collection.qrels_source.endswith(f"{chosen}.tsv")


@pytest.mark.parametrize(
    ("splits", "asked", "message"),
    [
        (["dev", "train"], None, "has the splits dev, train; choose one"),
        (["dev"], "test", "no split 'test'; there are dev"),
        ([], None, r"holds no \.tsv"),
    ],
)
def test_a_split_that_cannot_be_chosen(tmp_path, splits, asked, message):
    with pytest.raises(CorpusError, match=message):
        Collection.load(beir(tmp_path / "c", splits), asked)


def test_other_queries_and_judgements_than_the_folders(tmp_path):
    folder = beir(tmp_path / "c", ["test"])
    (tmp_path / "topics.tsv").write_text("9\tnine\n8\teight\n")
    (tmp_path / "qrels.trec").write_text("9 0 a 2\n")
    files = {"topics": tmp_path / "topics.tsv", "qrels": tmp_path / "qrels.trec"}
    for source in (folder, folder / "corpus.jsonl"):
        collection = open_collection(str(source), **files)
        assert collection.queries == [Query("9", "nine")]
        assert collection.qrels == [Qrel("9", "a", 2)]
        assert collection.split == "given"
        assert [(p.title, p.text) for p in collection.passages] == [("h", "t")]


def test_what_is_no_collection(tmp_path):
    with pytest.raises(CorpusError, match="no such collection"):
        open_collection(str(tmp_path / "nothing"))
    with pytest.raises(CorpusError, match=r"no corpus\.jsonl in this folder"):
        open_collection(str(tmp_path))
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "t"}\n')
    with pytest.raises(CorpusError, match="is a file: give its queries and judgements too"):
        open_collection(str(tmp_path / "corpus.jsonl"))


def test_the_bundled_collection_by_name():
    collection = open_collection("scifact")
    assert (len(collection.queries), len(collection.qrels)) == (300, 339)


class TestIrDatasets:
    @pytest.fixture
    def dataset(self, tmp_path):
        import ir_datasets

        (tmp_path / "docs.tsv").write_text("d1\tfirst text\nd2\tsecond text\n")
        (tmp_path / "queries.tsv").write_text("q1\tone\nq2\ttwo\n")
        (tmp_path / "qrels").write_text("q2 0 d2 3\n")
        made = ir_datasets.create_dataset(
            docs_tsv=str(tmp_path / "docs.tsv"),
            queries_tsv=str(tmp_path / "queries.tsv"),
            qrels_trec=str(tmp_path / "qrels"),
        )
        ir_datasets.registry.register("diffretriever-sample", made)
        yield "ir_datasets:diffretriever-sample"
        del ir_datasets.registry._registered["diffretriever-sample"]

    def test_a_dataset_by_its_id(self, dataset):
        collection = open_collection(dataset)
        assert [(p.passage_id, p.text) for p in collection.passages] == [("d1", "first text"), ("d2", "second text")]
        assert list(collection.passages) == list(collection.passages)
        assert collection.queries == [Query("q2", "two")]
        assert collection.qrels == [Qrel("q2", "d2", 3)]
        assert (collection.name, collection.source, collection.unjudged_queries) == ("diffretriever-sample", dataset, 1)

    def test_an_unknown_id(self):
        with pytest.raises(CorpusError, match="knows no dataset 'no/such/thing'"):
            open_collection("ir_datasets:no/such/thing")

    def test_a_part_that_a_dataset_lacks(self):
        with pytest.raises(CorpusError, match="has no queries and no qrels"):
            open_collection("ir_datasets:msmarco-passage")

    def test_a_download_that_fails_is_passed_on(self, tmp_path):
        # A process of its own: the folder of downloads is chosen when ir_datasets is imported.
        code = (
            "from diffretriever.evaluation import open_collection\n"
            "from diffretriever.errors import CorpusError\n"
            "try:\n    list(open_collection('ir_datasets:vaswani').passages)\n"
            "except CorpusError as error:\n    print(error)\n"
        )
        nowhere = "http://127.0.0.1:9"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                "IR_DATASETS_HOME": str(tmp_path),
                "IR_DATASETS_DL_TRIES": "1",
                **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere),
            },
        )
        assert done.stdout.startswith("ir_datasets:vaswani: ir_datasets could not provide it (")
        assert "127.0.0.1" in done.stdout

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ir_datasets", None)
        with pytest.raises(MissingExtraError, match=r"diffretriever\[eval\]"):
            open_collection("ir_datasets:vaswani")


def test_the_highest_of_repeated_judgements_can_be_taken(tmp_path):
    path = tmp_path / "qrels.tsv"
    path.write_text("q1 0 d1 1\nq1 0 d2 0\nq1 0 d1 3\nq1 0 d1 2\n", encoding="utf-8")
    assert read_qrels(path, repeats="highest") == [Qrel("q1", "d1", 3), Qrel("q1", "d2", 0)]
