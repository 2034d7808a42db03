from __future__ import annotations

import json

from cli_samples import PASSAGES, write_jsonl

ROWS = [
    {"query_id": f"q{i}", "query": f"the history of the {p['title'][4:]}", "positive_passages": [
        {"docid": p["_id"], "title": p["title"], "text": p["text"]}]}
    for i, p in enumerate(PASSAGES[:4])
]  # fmt: skip


def test_an_index_and_bm25_give_negatives(cli, tmp_path, finished_index, corpus):
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    for source in (("--index", finished_index, "--mode", "single"), ("--corpus", corpus)):
        out = tmp_path / f"{source[0][2:]}.jsonl"
        done = cli("mine", rows, "--out", out, *source, "-n", 3, "--margin", 0, "--to", 9)
        assert done.code == 0, done.err
        mined = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert [row["query_id"] for row in mined] == ["q0", "q1", "q2", "q3"]
        for row in mined:
            negatives = {p["docid"] for p in row["negative_passages"]}
            assert len(negatives) == 3
            assert row["positive_passages"][0]["docid"] not in negatives
        assert "4 rows; 12 negatives" in done.err
        assert "BM25S" not in done.err  # whose bars are for terminals
    again = cli("mine", rows, "--out", out, "--corpus", corpus, "-n", 2)
    assert again.code == 1
    assert "made otherwise (settings.last was 9, now 100; settings.negatives was 3, now 2; " in again.err
    other = cli("mine", rows, "--out", out, "--corpus", corpus, "-n", 3, "--margin", 0, "--to", 9, "--k1", 1.5)
    assert "made otherwise (ranker.k1 was 0.9, now 1.5); remove it" in other.err
    out.with_name(out.name + ".mining.json").unlink()
    assert (
        "corpus.jsonl is there without corpus.jsonl.mining.json"
        in cli("mine", rows, "--out", out, "--corpus", corpus).err
    )


def test_one_source_is_asked_for(cli, tmp_path, finished_index, corpus):
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert cli("mine", rows, "--out", tmp_path / "o.jsonl").code == 2
    assert cli("mine", rows, "--out", tmp_path / "o.jsonl", "--index", finished_index, "--corpus", corpus).code == 2
