from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from cli_samples import MODEL, PASSAGES, write_jsonl

from diffretriever.index import Index
from diffretriever.representations import Representations


def held(folder):
    with Index.open(folder) as index:
        return set(index)


class TestIndex:
    def test_messages_go_to_stderr_and_say_count_size_and_time(self, cli, corpus, tmp_path):
        done = cli("index", corpus, "--out", tmp_path / "i", "--model", MODEL, "--backend", "exact")
        assert (done.code, done.out) == (0, "")
        assert f"10 passages in {corpus}" in done.err
        assert "of index data, about" in done.err
        assert held(tmp_path / "i") == {p["_id"] for p in PASSAGES}

    def test_an_existing_index_is_kept_unless_overwritten(self, cli, tmp_path, index_folder):
        one = write_jsonl(tmp_path / "one.jsonl", PASSAGES[:1])
        refused = cli("index", one, "--out", index_folder, "--model", MODEL)
        assert refused.code == 1
        assert "--overwrite" in refused.err
        assert len(held(index_folder)) == 10
        assert cli("index", one, "--out", index_folder, "--model", MODEL, "--overwrite").code == 0
        assert held(index_folder) == {"p0"}

    def test_a_bad_line_stops_before_anything_is_made(self, cli, tmp_path):
        bad = write_jsonl(tmp_path / "bad.jsonl", [*PASSAGES[:2], {"_id": "x"}])
        done = cli("index", bad, "--out", tmp_path / "i", "--model", MODEL)
        assert done.code == 1
        assert f"{bad}:3: lacks a text" in done.err
        assert not (tmp_path / "i").exists()

    def test_bad_lines_can_be_reported_at_the_end(self, cli, tmp_path):
        bad = write_jsonl(tmp_path / "bad.jsonl", [{"_id": "x"}, *PASSAGES[:2], PASSAGES[0]])
        done = cli("index", bad, "--out", tmp_path / "i", "--model", MODEL, "--on-error", "report")
        assert done.code == 1
        assert "2 bad lines were left out" in done.err
        assert f"{bad}:1: " in done.err
        assert f"{bad}:4: id 'p0' was already given in line 2" in done.err
        assert held(tmp_path / "i") == {"p0", "p1"}

    def test_model_options_are_recorded(self, cli, corpus, tmp_path):
        options = ["--query-slots", 2, "--passage-slots", 3, "--prompt", "three", "--protocol", "paper", "--steps", 2]
        done = cli("index", corpus, "--out", tmp_path / "i", "--model", MODEL, "--readout", "aligned", *options)
        assert done.code == 0
        made = cli("info", tmp_path / "i", "--json").json["provenance"]
        expected = {"query_slots": 2, "passage_slots": 3, "prompt": "three", "protocol": "paper", "steps": 2}
        assert {name: made[name] for name in expected} == expected
        assert made["readout"] == "aligned"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["absent.jsonl", "--model", MODEL], "no such file"),
            (["CORPUS", "--model", "no-such-model"], "no-such-model"),
            (["CORPUS", "--model", MODEL, "--prompt", "no-such-prompt"], "no-such-prompt"),
            (["CORPUS", "--model", MODEL, "--readout", "no-such-readout"], "no-such-readout"),
        ],
    )
    def test_errors_are_one_message(self, cli, corpus, tmp_path, arguments, message):
        arguments = [corpus if a == "CORPUS" else a for a in arguments]
        done = cli("index", *arguments, "--out", tmp_path / "i")
        assert done.code == 1
        assert message in done.err
        assert done.out == ""


class TestChange:
    def test_add_replaces_and_adds(self, cli, tmp_path, index_folder):
        records = [{**PASSAGES[0], "text": "rewritten"}, {"_id": "new", "text": "a new one"}]
        done = cli("add", index_folder, write_jsonl(tmp_path / "more.jsonl", records))
        assert done.code == 0
        with Index.open(index_folder) as index:
            assert len(index) == 11
            assert index.get("p0").passage.text == "rewritten"

    def test_add_can_skip_what_is_there(self, cli, tmp_path, index_folder):
        records = [{**PASSAGES[0], "text": "rewritten"}, {"_id": "new", "text": "a new one"}]
        more = write_jsonl(tmp_path / "more.jsonl", records)
        assert cli("add", index_folder, more, "--skip-existing").code == 0
        with Index.open(index_folder) as index:
            assert len(index) == 11
            assert index.get("p0").passage.text == PASSAGES[0]["text"]
        again = cli("add", index_folder, more, "--skip-existing")
        assert "0 passages" in again.err
        assert again.code == 0

    def test_delete(self, cli, index_folder):
        assert cli("delete", index_folder, "p1", "p2").code == 0
        assert held(index_folder) == {p["_id"] for p in PASSAGES} - {"p1", "p2"}
        unknown = cli("delete", index_folder, "p3", "absent")
        assert unknown.code == 1
        assert "absent" in unknown.err
        assert "p3" in held(index_folder)

    def test_info(self, cli, finished_index):
        shown = cli("info", finished_index)
        assert shown.code == 0
        assert "tiny-dream" in shown.out.replace("\n", "")
        about = cli("info", finished_index, "--json").json
        assert about["passages"] == 10
        assert about["provenance"]["passage_slots"] == 16

    @pytest.mark.parametrize("command", [["info"], ["delete", "x"], ["search", "x"], ["explain", "x", "y"]])
    def test_a_folder_that_is_no_index(self, cli, tmp_path, command):
        done = cli(command[0], tmp_path, *command[1:])
        assert done.code == 1
        assert done.err.startswith("error: ")


class TestEncode:
    def test_parts_hold_ids_and_representations(self, cli, corpus, tmp_path):
        from diffretriever import DiffRetriever

        out = tmp_path / "reps"
        assert cli("encode", corpus, "--out", out, "--model", MODEL, "--batch-size", 4, "--words", 2).code == 0
        parts = sorted(out.iterdir())
        assert [p.name for p in parts] == ["part-00000", "part-00001", "part-00002"]
        ids = [i for part in parts for i in json.loads((part / "ids.json").read_text())]
        assert ids == [p["_id"] for p in PASSAGES]
        written = Representations.concatenate([Representations.load(part) for part in parts])
        expected = DiffRetriever.from_pretrained(MODEL).encode_passages(PASSAGES, words=2)
        assert abs(written.dense - expected.dense).max() < 1e-5
        assert [[w.word for w in slot] for slot in written.slot_words(3)] == [
            [w.word for w in slot] for slot in expected.slot_words(3)
        ]
        assert cli("encode", corpus, "--out", out, "--model", MODEL).code == 1
        assert cli("encode", corpus, "--out", out, "--model", MODEL, "--overwrite").code == 0
        assert [p.name for p in out.iterdir()] == ["part-00000"]

    def test_queries(self, cli, tmp_path):
        (tmp_path / "q.tsv").write_text("q1\twhat is a planet?\nq2\t\n")
        assert cli("encode", tmp_path / "q.tsv", "--queries", "--out", tmp_path / "o", "--model", MODEL).code == 0
        part = tmp_path / "o" / "part-00000"
        assert json.loads((part / "ids.json").read_text()) == ["q1", "q2"]
        assert Representations.load(part).provenance.query_slots == 4


def start(*args, **options):
    command = [sys.executable, "-m", "diffretriever.cli.main", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_standard_input(tmp_path, corpus):
    process = start("index", "-", "--out", tmp_path / "i", "--model", MODEL, stdin=subprocess.PIPE)
    out, err = process.communicate(corpus.read_bytes(), timeout=120)
    assert (process.returncode, out) == (0, b""), err
    assert b"10 passages in <stdin>" in err
    assert len(held(tmp_path / "i")) == 10


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_leaves_an_index_that_opens_and_can_be_gone_on_with(cli, tmp_path):
    total = 300
    many = write_jsonl(
        tmp_path / "many.jsonl", [{"id": i, "text": f"{PASSAGES[i % 10]['text']} {i}"} for i in range(total)]
    )
    folder = tmp_path / "i"
    process = start("index", many, "--out", folder, "--model", MODEL, "--batch-size", 2)
    try:
        for line in process.stderr:  # the estimate comes once the first batch is stored
            if b"of index data" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (130, b""), err
    assert b"Traceback" not in err
    there = held(folder)
    assert f"{folder} holds {len(there)} passages".encode() in err
    assert 0 < len(there) < total
    assert there == {str(i) for i in range(len(there))}
    assert f"diffretriever add {folder} {many} --skip-existing".encode() in err
    done = cli("add", folder, many, "--skip-existing")
    assert f"{total - len(there)} passages" in done.err
    assert held(folder) == {str(i) for i in range(total)}
