from __future__ import annotations

import json
import shutil

import pytest
from cli_samples import MODEL, PASSAGES, write_jsonl

QUESTION = "the history of the violin"


def ids(outcome):
    return [hit["passage_id"] for hit in outcome.json["hits"]]


class TestOneQuestion:
    def test_table_shows_title_snippet_and_slot_words(self, cli, finished_index, monkeypatch):
        monkeypatch.setenv("COLUMNS", "160")
        done = cli("search", finished_index, QUESTION, "-k", 10)
        assert done.code == 0
        assert "The violin" in done.out
        assert "Every violin has a history" in done.out
        assert "slot words" in done.out
        assert "query slots: " in done.err

    def test_json_says_everything(self, cli, finished_index):
        answer = cli("search", finished_index, QUESTION, "--json", "--k", 4).json
        assert answer["query"] == QUESTION
        assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3, 4]
        scores = [hit["score"] for hit in answer["hits"]]
        assert scores == sorted(scores, reverse=True)
        first = answer["hits"][0]
        assert first["metadata"]["year"] in range(2000, 2010)
        assert len(first["slot_words"]) > 0
        assert set(first["slot_words"][0][0]) == {"word", "probability"}

    @pytest.mark.parametrize("mode", ["hybrid", "multi", "single", "sparse"])
    def test_modes_rank_as_the_library_does(self, cli, finished_index, mode):
        from diffretriever import DiffRetriever, Index

        found = ids(cli("search", finished_index, QUESTION, "--json", "--mode", mode, "--alpha", 0.3))
        with Index.open(finished_index) as index:
            hits = index.search(DiffRetriever.from_pretrained(MODEL).encode_queries(QUESTION), mode=mode, alpha=0.3)
        assert found == [hit.passage_id for hit in hits]

    def test_conditions_narrow_the_search(self, cli, finished_index):
        found = ids(cli("search", finished_index, QUESTION, "--json", "--where", "year>=2004", "--where", "lang=en"))
        assert sorted(found) == ["p5", "p7", "p9"]

    def test_fusion_is_taken(self, cli, finished_index):
        done = cli("search", finished_index, QUESTION, "--json", "--fusion", "rrf")
        assert max(hit["score"] for hit in done.json["hits"]) <= 2 / 61 + 1e-6

    def test_bad_condition_is_explained(self, cli, finished_index):
        done = cli("search", finished_index, QUESTION, "--where", "year>>2")
        assert done.code == 1
        assert "year>>2" in done.err

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["x", "--queries", "q.tsv"],
            ["--queries", "q.tsv"],
            ["x", "--run", "r"],
            ["x", "--k", "0"],
            ["x", "--mode", "y"],
        ],
    )
    def test_wrong_usage_is_exit_code_two(self, cli, finished_index, arguments):
        done = cli("search", finished_index, *arguments)
        assert (done.code, done.out) == (2, "")


class TestManyQueries:
    def test_a_run_has_six_columns_and_the_order_of_the_search(self, cli, finished_index, tmp_path):
        queries = [{"_id": f"q{i}", "text": f"history of {p['title']}"} for i, p in enumerate(PASSAGES)]
        path = write_jsonl(tmp_path / "queries.jsonl", queries)
        done = cli("search", finished_index, "--queries", path, "--run", tmp_path / "r", "--tag", "mine", "--k", 5)
        assert (done.code, done.out) == (0, "")
        rows = [line.split() for line in (tmp_path / "r").read_text().splitlines()]
        assert {(len(row), row[1], row[5]) for row in rows} == {(6, "Q0", "mine")}
        assert [(row[0], int(row[3])) for row in rows] == [(f"q{i}", rank) for i in range(10) for rank in range(1, 6)]
        alone = cli("search", finished_index, queries[3]["text"], "--json", "--k", 5)
        assert [row[2] for row in rows if row[0] == "q3"] == ids(alone)

    def test_json_lines(self, cli, finished_index, tmp_path):
        (tmp_path / "q.tsv").write_text("a\tviolin\nb\tocean\n")
        done = cli("search", finished_index, "--queries", tmp_path / "q.tsv", "--json", "--k", 1)
        answers = [json.loads(line) for line in done.out.splitlines()]
        assert [(a["query_id"], a["query"], len(a["hits"])) for a in answers] == [("a", "violin", 1), ("b", "ocean", 1)]

    def test_bad_queries_name_the_line(self, cli, finished_index, tmp_path):
        (tmp_path / "q.tsv").write_text("a\tviolin\nocean\n")
        done = cli("search", finished_index, "--queries", tmp_path / "q.tsv", "--run", tmp_path / "r")
        assert done.code == 1
        assert "q.tsv:2: " in done.err

    def test_a_run_that_cannot_be_written_is_refused_before_the_search(self, cli, tmp_path):
        (tmp_path / "q.tsv").write_text("q1\twhat is a planet?\n")
        # The index is not looked for: there is none.
        for run, said in (("none/r", "there is no folder"), (".", "is a folder")):
            done = cli("search", tmp_path / "absent", "--queries", tmp_path / "q.tsv", "--run", tmp_path / run)
            assert (done.code, said in done.err) == (1, True), done.err


class TestModel:
    def test_an_index_finds_its_model_and_prompt_again_from_anywhere(self, cli, corpus, tmp_path, monkeypatch):
        shutil.copytree(MODEL, tmp_path / "models" / "mine")
        prompt = {
            "name": "mine",
            "system": "",
            "query": {"user": "find {text}", "assistant": "words:"},
            "passage": {"user": "keep {text}", "assistant": "words:"},
            "tail": [],
        }
        (tmp_path / "prompt.json").write_text(json.dumps(prompt))
        monkeypatch.chdir(tmp_path / "models")
        made = cli("index", corpus, "--out", tmp_path / "i", "--model", "mine", "--prompt", tmp_path / "prompt.json")
        assert made.code == 0, made.err
        (tmp_path / "prompt.json").unlink()
        monkeypatch.chdir(tmp_path)
        assert len(ids(cli("search", "i", QUESTION, "--json"))) == 10
        (tmp_path / "models").rename(tmp_path / "moved")
        lost = cli("search", "i", QUESTION)
        assert lost.code == 1
        assert "--model" in lost.err
        assert cli("search", "i", QUESTION, "--model", tmp_path / "moved" / "mine").code == 0

    def test_an_index_made_by_the_library_is_searched_with_its_prompt(self, cli, tmp_path):
        from diffretriever import DiffRetriever, Index, Passage

        with Index.create(tmp_path / "i", DiffRetriever.from_pretrained(MODEL, prompt="three")) as index:
            index.add([Passage("a", "a violin")])
        assert ids(cli("search", tmp_path / "i", QUESTION, "--json")) == ["a"]
        refused = cli("search", tmp_path / "i", QUESTION, "--prompt", "few")
        assert refused.code == 1
        assert "prompt_hash" in refused.err

    def test_another_model_is_refused(self, cli, finished_index):
        done = cli("search", finished_index, QUESTION, "--model", MODEL.with_name("tiny-llada"))
        assert done.code == 1
        assert "fingerprint" in done.err


class TestApproximate:
    def test_results_say_whether_everything_was_compared(self, cli, finished_index):
        for options, exact in (([], True), (["--exact"], True), (["--mode", "single", "--approximate"], False)):
            hits = cli("search", finished_index, QUESTION, "--json", *options).json["hits"]
            assert {hit["exact"] for hit in hits} == {exact}
        shown = cli("search", finished_index, QUESTION, "--mode", "single", "--approximate")
        assert "approximate: not every passage was compared" in shown.err
        assert "approximate" not in cli("search", finished_index, QUESTION).err

    def test_an_index_too_small_for_depths_has_no_table_of_them(self, cli, index_folder):
        done = cli("recall", index_folder)
        assert (done.code, done.out) == (0, "")
        assert "too few passages for a search that compares with less than all of them" in done.err

    def test_the_report_asks_the_queries_given(self, cli, index_folder, tmp_path):
        (tmp_path / "queries.tsv").write_text("q1\twhat is a planet?\nq2\tviolins\n")
        done = cli("recall", index_folder, "--queries", tmp_path / "queries.tsv")
        assert done.code == 0
        assert "the 2 queries given" in done.err
        assert "all" in done.out
        assert (index_folder / "calibration.json").is_file()
        assert cli("check", index_folder).code == 0


class TestExplain:
    def test_single_and_reciprocal_ranks_too(self, cli, finished_index):
        hits = cli("search", finished_index, QUESTION, "--json", "--mode", "single").json["hits"]
        assert hits
        for hit in hits:
            about = cli("explain", finished_index, QUESTION, hit["passage_id"], "--json").json
            assert sum(part["contribution"] for part in about["pooled"]) == pytest.approx(hit["score"], abs=1e-5)
            assert about["single"] == pytest.approx(hit["score"], abs=1e-5)
        for hit in cli("search", finished_index, QUESTION, "--json", "--fusion", "rrf").json["hits"]:
            about = cli("explain", finished_index, QUESTION, hit["passage_id"], "--fusion", "rrf", "--json").json
            assert sum(part["contribution"] for part in about["fused"]) == pytest.approx(hit["score"], abs=1e-5)

    def test_contributions_add_up_to_the_scores_of_the_search(self, cli, finished_index):
        for hit in cli("search", finished_index, QUESTION, "--json").json["hits"]:
            about = cli("explain", finished_index, QUESTION, hit["passage_id"], "--json").json
            assert sum(slot["contribution"] for slot in about["slots"]) == pytest.approx(hit["dense"], abs=1e-5)
            assert about["maxsim"] == pytest.approx(sum(slot["contribution"] for slot in about["slots"]), abs=1e-5)
            assert sum(t["contribution"] for t in about["terms"]) == pytest.approx(hit["sparse"] or 0.0, abs=1e-5)
            assert sum(part["contribution"] for part in about["fused"]) == pytest.approx(hit["score"], abs=1e-5)

    def test_table_and_page(self, cli, finished_index, tmp_path):
        shown = cli("explain", finished_index, QUESTION, "p4")
        assert shown.code == 0
        assert "MaxSim" in shown.out
        page = tmp_path / "page.html"
        done = cli("explain", finished_index, "<b>", "p4", "--html", page)
        assert (done.code, done.out) == (0, "")
        assert "&lt;b&gt;" in page.read_text(encoding="utf-8")

    def test_unknown_passage(self, cli, finished_index):
        done = cli("explain", finished_index, QUESTION, "absent")
        assert done.code == 1
        assert "absent" in done.err
