from __future__ import annotations

import json
import re

import pytest
from cli_samples import MODEL, PASSAGES, held, write_jsonl

from diffretriever.index import Index
from diffretriever.representations import Representations


class TestIndex:
    def test_messages_go_to_stderr_and_say_count_size_and_time(self, cli, corpus, tmp_path):
        done = cli("index", corpus, "--out", tmp_path / "i", "--model", MODEL, "--backend", "exact")
        assert (done.code, done.out) == (0, "")
        assert f"10 passages in {corpus}" in done.err
        assert re.search(r"^about [\d.]+ .?B of index data$", done.err, re.MULTILINE)  # all is done: no time is left
        assert held(tmp_path / "i") == {p["_id"] for p in PASSAGES}

    def test_several_devices_give_the_index_of_one(self, cli, corpus, tmp_path):
        options = ["--model", MODEL, "--backend", "exact", "--dtype", "float32", "--batch-size", 3]
        assert cli("index", corpus, "--out", tmp_path / "one", *options).code == 0
        assert cli("index", corpus, "--out", tmp_path / "two", *options, "--devices", "cpu,cpu").code == 0
        with Index.open(tmp_path / "one") as one, Index.open(tmp_path / "two") as two:
            assert list(one) == list(two)
            assert one.manifest.provenance == two.manifest.provenance
            for passage_id in one:
                first, second = (index.get(passage_id).representations for index in (one, two))
                assert first.dense.tolist() == second.dense.tolist()
        both = cli("index", corpus, "--out", tmp_path / "i", *options, "--devices", "cpu,cpu", "--device", "cpu")
        assert both.code == 1
        assert "say different things" in both.err

    def test_terms_are_counted_unless_their_rarity_is_the_models(self, cli, corpus, tmp_path):
        assert cli("index", corpus, "--out", tmp_path / "own", "--backend", "exact").code == 0
        assert cli("index", corpus, "--out", tmp_path / "model", "--backend", "exact", "--idf", "model").code == 0
        with Index.open(tmp_path / "own") as own, Index.open(tmp_path / "model") as plain:
            assert own._terms.passages == 10
            assert plain.current_terms() is None

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
            (["CORPUS", "--model", MODEL, "--device", "gpu"], "device is 'gpu'; give cpu"),
            (["CORPUS", "--model", MODEL, "--device", "cuda:99"], "device is 'cuda:99'; there is no CUDA GPU"),
            (["CORPUS", "--model", MODEL, "--devices", "cuda:98,cuda:99"], "device is 'cuda:98'; there is no CUDA GPU"),
            (["CORPUS", "--model", "bm25"], "no representations to keep; `evaluate` takes it"),
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

    def test_info(self, cli, finished_index, monkeypatch):
        monkeypatch.setenv("COLUMNS", "300")  # however long the path of the model
        shown = cli("info", finished_index)
        assert shown.code == 0
        assert "tiny-dream" in shown.out
        about = cli("info", finished_index, "--json").json
        assert about["passages"] == 10
        assert about["provenance"]["passage_slots"] == 16

    def test_what_is_not_there_is_answered_in_commands(self, cli, tmp_path, finished_index):
        missing = cli("search", tmp_path / "nothing", "x")
        assert "does not exist; create one with `diffretriever index INPUT --out DIR`" in missing.err
        unknown = cli("explain", finished_index, "x", "absent")
        assert "'absent'; `diffretriever search DIR QUESTION` shows ids" in unknown.err

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
        parts = sorted(out.glob("part-*"))
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
        assert sorted(p.name for p in out.iterdir()) == ["build.json", "part-00000"]

    def test_it_goes_on_where_it_was_killed(self, cli, corpus, tmp_path, monkeypatch):
        from diffretriever.cli import encoding

        command = ("encode", corpus, "--model", MODEL, "--batch-size", 3, "--dtype", "float32")
        assert cli(*command, "--out", tmp_path / "whole").code == 0
        real, out = encoding._write_part, tmp_path / "cut"

        def write(folder, number, ids, representations):
            if number == 2:
                raise OSError(28, "No space left on device")
            real(folder, number, ids, representations)

        monkeypatch.setattr(encoding, "_write_part", write)
        assert "No space left" in cli(*command, "--out", out).err
        monkeypatch.undo()
        (out / ".part-00002").mkdir()  # what a process that was killed while it wrote leaves
        refused = cli(*command, "--out", out, "--words", 2)
        assert (refused.code, "words: 0 against 2" in refused.err) == (1, True)
        done = cli(*command, "--out", out)
        assert done.code == 0
        assert "going on: 6 are there already" in done.err
        for part in sorted((tmp_path / "whole").glob("part-*")):
            for file in part.iterdir():
                assert (out / part.name / file.name).read_bytes() == file.read_bytes()
        assert len([*out.glob("part-*")]) == 4
        assert "exists already" in cli(*command, "--out", out).err

    def test_another_input_of_the_same_name_is_refused(self, cli, tmp_path):
        corpus, out = write_jsonl(tmp_path / "c.jsonl", PASSAGES), tmp_path / "o"
        command = ("encode", corpus, "--out", out, "--model", MODEL, "--batch-size", 4)
        assert cli(*command).code == 0
        note = out / "build.json"
        note.write_text(note.read_text().replace('"finished": true', '"finished": false'))
        write_jsonl(corpus, PASSAGES[1:])
        refused = cli(*command)
        assert (refused.code, "begun with another input" in refused.err) == (1, True)

    def test_queries(self, cli, tmp_path):
        (tmp_path / "q.tsv").write_text("q1\twhat is a planet?\nq2\t\n")
        assert cli("encode", tmp_path / "q.tsv", "--queries", "--out", tmp_path / "o", "--model", MODEL).code == 0
        part = tmp_path / "o" / "part-00000"
        assert json.loads((part / "ids.json").read_text()) == ["q1", "q2"]
        assert Representations.load(part).provenance.query_slots == 4


def test_the_first_message_says_how_long_the_rest_takes(cli, corpus, tmp_path):
    done = cli("index", corpus, "--out", tmp_path / "i", "--model", MODEL, "--backend", "exact", "--batch-size", 4)
    assert re.search(r"^about [\d.]+ .?B of index data, about \d+ s left$", done.err, re.MULTILINE)


class TestCheck:
    def test_a_sound_index(self, cli, index_folder):
        done = cli("check", index_folder)
        assert (done.code, done.out) == (0, "")
        assert "is whole: 10 passages, checksum 10-" in done.err
        assert cli("check", index_folder, "--json").json["problems"] == []

    def test_damage_is_said_and_repaired(self, cli, tmp_path, corpus):
        folder = tmp_path / "i"
        assert cli("index", corpus, "--out", folder, "--model", MODEL, "--backend", "exact").code == 0
        blob = folder / "store" / "000001" / "blob.npy"
        raw = bytearray(blob.read_bytes())
        raw[raw.index(b"\n", 128) + 5] ^= 1  # in the title or text of the second passage
        blob.write_bytes(raw)
        found = cli("check", folder)
        assert found.code == 1
        assert "passage 'p1'" in found.out
        assert "is damaged" in found.err
        mended = cli("check", folder, "--repair")
        assert mended.code == 0
        assert "given up: p1" in mended.out
        assert cli("check", folder).code == 0
        assert cli("add", folder, corpus, "--skip-existing").code == 0
        assert len(held(folder)) == 10

    def test_what_does_not_open_is_saved_in_part(self, cli, tmp_path, corpus):
        folder = tmp_path / "i"
        assert cli("index", corpus, "--out", folder, "--model", MODEL, "--backend", "exact").code == 0
        log = folder / "store" / "log.jsonl"
        log.write_bytes(log.read_bytes() + b"nonsense\n")
        assert cli("check", folder).code == 1
        mended = cli("check", folder, "--repair")
        assert mended.code == 0
        assert "log.jsonl:3 cannot be read" in mended.out
        assert "is repaired: 10 passages" in mended.err
        assert cli("check", folder).code == 0


class TestEstimate:
    def test_nothing_is_written(self, cli, corpus, tmp_path):
        done = cli("index", corpus, "--out", tmp_path / "i", "--model", MODEL, "--estimate")
        assert done.code == 0
        assert not (tmp_path / "i").exists()
        assert all(name in done.out for name in ("float32", "float16", "int8", "binary", "pca", "drop"))
        assert "10 passages, about" in done.err
        assert cli("index", corpus, "--model", MODEL, "--estimate").code == 0

    def test_a_folder_or_an_estimate_is_needed(self, cli, corpus):
        assert cli("index", corpus, "--model", MODEL).code == 2

    def test_estimates_are_near_what_an_index_takes(self, tmp_path):
        from tests.index.hashing import random_representations

        from diffretriever.cli.estimating import estimates
        from diffretriever.corpus import Passage

        count = 3000
        encoded = random_representations(count, dim=256, slots=(4, 4))
        passages = [Passage(f"p{i}", f"text {i} " * 20) for i in range(count)]
        expected = {
            (e.backend, e.storage): e.disk_bytes
            for e in estimates(passages[:128], encoded.select(slice(0, 128)), count)
        }
        for backend, storage in expected:
            folder = tmp_path / f"{backend} {storage}"
            with Index.create(folder, encoded, backend=backend, storage=storage, sample=encoded) as index:
                index.add_representations(passages, encoded)
            with Index.open(folder) as index:
                assert 0.75 < index.stats().disk_bytes / expected[backend, storage] < 1.33, folder.name
