from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import torch

from diffretriever.corpus import Passage, Query
from diffretriever.errors import CorpusError, InputError
from diffretriever.evaluation import Collection, Qrel, Run, ScoredPassage, read_run
from diffretriever.evaluation.encodings import Encodings
from diffretriever.evaluation.exhaustive import EncodedSearcher
from diffretriever.evaluation.experiment import Experiment
from diffretriever.evaluation.facts import CorpusFacts
from diffretriever.evaluation.plan import Plan, Rerank
from diffretriever.evaluation.results import Results
from diffretriever.folder_lock import FolderLock
from diffretriever.fusion import fuse
from diffretriever.index import Index
from diffretriever.retriever import DiffRetriever
from diffretriever.systems.bm25 import BM25
from diffretriever.systems.opening import open_system

DATA = Path(__file__).parents[1] / "golden" / "data"
MODES = ("single", "multi", "sparse", "hybrid", "hybrid-single")


class Counting:
    """An encoder that counts the passages it encodes."""

    def __init__(self, encoder):
        self._encoder = encoder
        self.encoded = []

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode_passages(self, passages, **options):
        self.encoded += [p.passage_id for p in passages]
        return self._encoder.encode_passages(passages, **options)


@pytest.fixture(scope="module")
def encoder(checkpoints):
    return DiffRetriever.from_pretrained(checkpoints / "tiny-dream", device="cpu", dtype="float32")


@pytest.fixture
def collection():
    return Collection.load(DATA, qrels=DATA / "qrels.tsv")


def experiment(encoder, collection, root, plan=None, label="tiny"):
    return Experiment(label, label, encoder, collection, plan or Plan(), root / "encodings")


def pairs(ranking):
    return [(p, pytest.approx(s, abs=1e-6)) for p, s in zip(ranking.passage_ids, ranking.scores.tolist(), strict=True)]


def test_runs_measures_and_stamp_agree(encoder, collection, tmp_path):
    e = experiment(encoder, collection, tmp_path, Plan(modes=MODES, measures=("nDCG@10", "AP(rel=1)", "RR@10")))
    results = e.run(tmp_path / "r", command="the command")
    assert Results.read(tmp_path / "r") == results
    assert [m.mode for m in results.modes] == list(MODES)
    qrels = [ir_measures.Qrel(q.query_id, q.passage_id, q.relevance) for q in collection.qrels]
    for mode in results.modes:
        scored = list(ir_measures.read_trec_run(str(tmp_path / "r" / mode.run)))
        wanted = [ir_measures.parse_measure(m) for m in results.task.measures]
        theirs = ir_measures.calc_aggregate(wanted, qrels, scored)
        for name, measure in zip(results.task.measures, wanted, strict=True):
            assert mode.measures[name] == pytest.approx(theirs[measure])
            assert np.mean(list(mode.per_query[name].values())) == pytest.approx(mode.measures[name])
            assert set(mode.per_query[name]) == {q.query_id for q in collection.queries}
    assert results.system.provenance == encoder.provenance
    assert (results.collection.passages, results.collection.queries, results.command) == (20, 8, "the command")
    assert results.times.encoded_passages == 20
    assert results.times.encodings_bytes > 0
    assert results.mode("hybrid").fusion.dense == "multi"
    assert results.mode("hybrid-single").fusion.dense == "single"
    assert results.versions["torch"]


@pytest.mark.parametrize("protocol", ["default", "paper"])
def test_rankings_are_those_of_the_exact_index(checkpoints, collection, tmp_path, protocol):
    encoder = DiffRetriever.from_pretrained(checkpoints / "tiny-llada", protocol=protocol, dtype="float32")
    facts = CorpusFacts.of(collection.passages)
    encodings = Encodings.open(tmp_path, encoder, facts, shard_size=6)
    encodings.fill(encoder, collection.passages)
    searcher = EncodedSearcher(encoder, encodings, facts)
    encoded = encoder.encode_queries([q.text for q in collection.queries])
    # The index scores in fp32 whatever the protocol: its scores are near those rounded to bf16, not equal.
    tolerance = 1e-5 if protocol == "default" else 2e-2
    with Index.create(None, encoder, backend="exact", storage="float32") as index:
        index.add(list(collection.passages))
        for mode in ("single", "multi", "sparse"):
            found = searcher.search(collection.queries, 5, mode)
            expected = index.search_batch(encoded, 5, mode)
            for ranking, hits in zip(found, expected, strict=True):
                assert ranking.scores.tolist() == pytest.approx([h.score for h in hits], rel=tolerance, abs=1e-6)
                if protocol == "default":
                    assert list(ranking.passage_ids) == [h.passage_id for h in hits]


def test_term_weights_are_fitted_to_the_collection_as_an_index_does(checkpoints, collection, tmp_path):
    encoder = DiffRetriever.from_pretrained(checkpoints / "tiny-llada", dtype="float32")
    bias = torch.rand(encoder.vocabulary_size, generator=torch.Generator().manual_seed(0))
    encoder.backbone.term_bias = torch.nn.Parameter(bias, requires_grad=False)
    passages, queries = list(collection.passages), collection.queries
    plain = encoder.encode_queries([q.text for q in queries])
    with Index.create(None, encoder, backend="exact", storage="float32") as index:
        index.add(passages)
        fitted = index.comparable(plain)
        expected = index.search_batch(plain, 20, "sparse")
    assert not np.allclose(fitted.sparse.toarray(), plain.sparse.toarray(), rtol=1e-3)
    results = experiment(encoder, collection, tmp_path, Plan(modes=("sparse",))).run(tmp_path / "r")
    assert results.system.settings["idf"] == "collection"
    written = read_run(tmp_path / "r" / "sparse.trec").rankings
    for query, hits in zip(queries, expected, strict=True):
        found = {p.passage_id: p.score for p in written.get(query.query_id, ())}
        assert found == pytest.approx({h.passage_id: h.score for h in hits}, rel=1e-4)
    for name, plan in (
        ("model", Plan(modes=("sparse",), idf="model")),
        ("rerank", Plan(modes=("sparse",), rerank=Rerank(read_run(tmp_path / "r" / "sparse.trec"), "own", 20))),
    ):
        results = experiment(encoder, collection, tmp_path / name, plan).run(tmp_path / name / "r")
        assert "idf" not in results.system.settings
        written = read_run(tmp_path / name / "r" / "sparse.trec").rankings
        products = (plain.sparse @ encoder.encode_passages(passages).sparse.T).toarray()
        for row, query in enumerate(queries):
            for scored in written.get(query.query_id, ()):
                column = [p.passage_id for p in passages].index(scored.passage_id)
                assert scored.score == pytest.approx(products[row, column], rel=1e-4, abs=1e-5), name


def test_encodings_are_sampled_from_all_over_the_corpus(encoder, tmp_path):
    passages = [Passage(str(i), f"text number {i}") for i in range(23)]
    encodings = Encodings.open(tmp_path, encoder, CorpusFacts.of(passages), shard_size=3)
    encodings.fill(encoder, passages)
    rows = [rows for rows, _ in encodings.shards()]
    for wanted, shards in ((1, [0]), (6, [0, 4]), (12, [0, 2, 4, 6]), (20, range(8)), (1000, range(8))):
        sizes = [len(part) for part in encodings.sample(wanted)]
        assert sizes == [rows[s].stop - rows[s].start for s in shards], wanted


def test_equal_scores_are_ordered_by_id_across_shards(encoder, tmp_path):
    texts = ["the same words", "the same words", "other words", "the same words", "the same words"]
    passages = [Passage(name, text) for name, text in zip("ebadc", texts, strict=True)]
    facts = CorpusFacts.of(passages)
    encodings = Encodings.open(tmp_path, encoder, facts, shard_size=1)
    encodings.fill(encoder, passages)
    for mode in ("single", "multi", "sparse"):
        (ranking,) = EncodedSearcher(encoder, encodings, facts).search([Query("q", "the same words")], 4, mode)
        assert [i for i in ranking.passage_ids if i != "a"] == list("bcde")[: 4 - ("a" in ranking.passage_ids)], mode


def test_hybrid_is_the_fusion_of_both_rankings(encoder, collection, tmp_path):
    e = experiment(encoder, collection, tmp_path, Plan(modes=("hybrid",), alpha=0.3))
    e.run(tmp_path / "r")
    searcher = EncodedSearcher(encoder, e.encodings, e.corpus)
    dense, sparse = (searcher.search(collection.queries, 1000, mode) for mode in ("multi", "sparse"))
    written = read_run(tmp_path / "r" / "hybrid.trec").rankings
    for query, d, s in zip(collection.queries, dense, sparse, strict=True):
        expected = fuse(d, s, alpha=0.3)
        assert [p.passage_id for p in written[query.query_id]] == list(expected.passage_ids)


def test_encodings_are_reused_by_what_made_them(encoder, collection, checkpoints, tmp_path):
    first, second = Counting(encoder), Counting(encoder)
    experiment(first, collection, tmp_path, Plan(modes=("single",))).run(tmp_path / "a")
    results = experiment(second, collection, tmp_path, Plan(modes=("sparse",))).run(tmp_path / "b")
    assert (len(first.encoded), len(second.encoded)) == (20, 0)
    assert (results.times.encoded_passages, results.times.reused_passages) == (0, 20)
    other = Counting(DiffRetriever.from_pretrained(checkpoints / "tiny-dream", passage_slots=2, dtype="float32"))
    experiment(other, collection, tmp_path, Plan(modes=("single",))).run(tmp_path / "c")
    assert len(other.encoded) == 20
    changed = replace(collection, passages=[replace(p, text=p.text + "!") for p in collection.passages])
    experiment(third := Counting(encoder), changed, tmp_path, Plan(modes=("single",))).run(tmp_path / "d")
    assert len(third.encoded) == 20


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from diffretriever.evaluation.encodings import Encodings
    from diffretriever.evaluation.facts import CorpusFacts
    from diffretriever.corpus import read_passages
    from diffretriever.representations import Representations
    from diffretriever.retriever import DiffRetriever

    checkpoint, corpus, root = sys.argv[1:]
    save, saved = Representations.save, []

    def dying(self, path):
        save(self, path)
        saved.append(path)
        if len(saved) == 3:  # the third shard is written and has not got its name
            os.kill(os.getpid(), signal.SIGKILL)

    Representations.save = dying
    encoder = DiffRetriever.from_pretrained(checkpoint, device="cpu", dtype="float32")
    passages = read_passages(corpus)
    facts = CorpusFacts.of(passages)
    Encodings.open(Path(root), encoder, facts, shard_size=4).fill(encoder, passages)
"""


def test_an_evaluation_that_was_killed_goes_on_without_encoding_again(encoder, collection, checkpoints, tmp_path):
    arguments = [checkpoints / "tiny-dream", DATA / "corpus.jsonl", tmp_path / "k" / "encodings"]
    died = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert died.returncode == -signal.SIGKILL
    counting = Counting(encoder)
    results = experiment(counting, collection, tmp_path / "k").run(tmp_path / "k" / "r")
    assert counting.encoded == [p.passage_id for p in collection.passages][8:]
    assert (results.times.encoded_passages, results.times.reused_passages) == (12, 8)
    encodings = Encodings.open(tmp_path / "whole", encoder, CorpusFacts.of(collection.passages), shard_size=4)
    encodings.fill(encoder, collection.passages)
    (killed,) = (tmp_path / "k" / "encodings").iterdir()
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in encodings.folder.iterdir())
    for shard in encodings.folder.glob("shard-*"):
        name = "representations.safetensors"
        assert (killed / shard.name / name).read_bytes() == (shard / name).read_bytes()


def test_two_processes_do_not_encode_one_collection_into_one_folder(encoder, collection, tmp_path):
    e = experiment(encoder, collection, tmp_path, Plan(modes=("single",)))
    other = FolderLock(e.encodings.folder)
    with pytest.raises(InputError, match=f"process {os.getpid()} is encoding this collection; run the command again"):
        e.run(tmp_path / "r")
    other.release()
    results = e.run(tmp_path / "r")
    # What is whole may be read while somebody holds the folder.
    other = FolderLock(e.encodings.folder)
    again = experiment(encoder, collection, tmp_path, Plan(modes=("single",))).run(tmp_path / "s")
    other.release()
    assert (results.times.encoded_passages, again.times.reused_passages) == (20, 20)


def test_a_damaged_shard_is_named(encoder, collection, tmp_path):
    e = experiment(encoder, collection, tmp_path, Plan(modes=("single",)))
    e.run(tmp_path / "r")
    shard = e.encodings.folder / "shard-00000" / "representations.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CorpusError, match=r"shard-00000: cannot be read .*delete this folder and run again"):
        e.run(tmp_path / "r")


class TestReranking:
    RUN = Run.of(
        ["q1", "q2"], [[ScoredPassage(p, 1.0) for p in ids] for ids in (["d07", "d01", "gone", "d02"], ["d05"])]
    )

    def test_only_what_the_run_lists_is_encoded_and_ranked(self, encoder, collection, tmp_path):
        counting = Counting(encoder)
        plan = Plan(modes=("multi", "sparse", "hybrid"), rerank=Rerank(self.RUN, "first.trec", 3))
        e = experiment(counting, collection, tmp_path, plan)
        results = e.run(tmp_path / "r")
        assert sorted(counting.encoded) == ["d01", "d05", "d07"]
        for mode in results.modes:
            rankings = read_run(tmp_path / "r" / mode.run).rankings
            assert {p.passage_id for p in rankings["q1"]} == {"d01", "d07"}, "the third is not in the corpus"
            assert {p.passage_id for p in rankings["q2"]} == {"d05"}
            assert set(rankings) == {"q1", "q2"}
            assert mode.unanswered == 6
        assert results.task.first_stage.passages == 3
        assert (results.coverage.listed_passages_missing, results.coverage.queries_without_candidates) == (1, 6)
        assert e.task_name == "data.given.rerank-3"

    def test_scores_are_those_of_a_search_of_everything(self, encoder, collection, tmp_path):
        plan = Plan(modes=("multi",), rerank=Rerank(self.RUN, "first.trec", 4))
        experiment(encoder, collection, tmp_path, plan).run(tmp_path / "r")
        experiment(encoder, collection, tmp_path, Plan(modes=("multi",))).run(tmp_path / "s")
        whole = dict(read_run(tmp_path / "s" / "multi.trec").rankings["q1"])
        for passage in read_run(tmp_path / "r" / "multi.trec").rankings["q1"]:
            assert passage.score == pytest.approx(whole[passage.passage_id], abs=1e-5)

    def test_a_lexical_system_and_a_foreign_run_are_refused(self, encoder, collection, tmp_path):
        with pytest.raises(InputError, match="bm25 cannot re-rank"):
            experiment(BM25(), collection, tmp_path, Plan(rerank=Rerank(self.RUN, "f")), "bm25")
        foreign = Run.of(["q1"], [[ScoredPassage("gone", 1.0)]])
        with pytest.raises(InputError, match="no passage takes part"):
            experiment(encoder, collection, tmp_path, Plan(rerank=Rerank(foreign, "f"))).run(tmp_path / "r")


def test_the_own_passage_is_dropped_where_beir_does(encoder, tmp_path):
    passages = [Passage(f"q{i}", t) for i, t in enumerate(["cats sleep", "cats run", "dogs sleep", "birds fly"])]
    queries = [Query("q0", "cats sleep"), Query("q1", "cats run")]
    qrels = [Qrel("q0", "q1", 1), Qrel("q1", "q0", 1)]
    for name, own, dropped in (
        ("arguana", "auto", True),
        ("c", "auto", False),
        ("quora", "kept", False),
        ("c", "dropped", True),
    ):
        e = experiment(
            encoder,
            Collection(name, passages, queries, qrels),
            tmp_path,
            Plan(modes=("single", "sparse", "hybrid"), own_ids=own, depth=3),
        )
        results = e.run(tmp_path / "r")
        assert results.task.own_ids == ("dropped" if dropped else "kept")
        for mode in results.modes:
            rankings = read_run(tmp_path / "r" / mode.run).rankings
            assert all((q in [p.passage_id for p in rankings[q]]) is not dropped for q in ("q0", "q1")), mode.mode
        assert len(read_run(tmp_path / "r" / "single.trec").rankings["q0"]) == 3, "as deep as asked for all the same"


def test_what_does_not_fit_together_is_counted(encoder, tmp_path):
    collection = Collection(
        "c",
        [Passage("a", "cats"), Passage("b", "dogs")],
        [Query("1", "cats"), Query("2", "the of"), Query("3", "dogs")],
        [Qrel("1", "a", 1), Qrel("1", "gone", 2), Qrel("2", "b", 1), Qrel("3", "lost", 0), Qrel("4", "a", 1)],
        unjudged_queries=5,
    )
    results = experiment(encoder, collection, tmp_path, Plan(modes=("sparse",))).run(tmp_path / "r")
    c = results.coverage
    assert (c.unjudged_queries, c.queries_without_text, c.queries_without_relevant) == (5, 1, 1)
    assert (c.judged_passages_missing, c.relevant_passages_missing) == (2, 1)
    assert results.mode("sparse").unanswered == 2, "a query of stop words, and one without a text"
    assert set(results.mode("sparse").per_query["nDCG@10"]) == {"1", "2", "3", "4"}


def test_systems_offer_what_they_have(encoder, checkpoints, collection, tmp_path):
    assert experiment(encoder, collection, tmp_path).modes == ("single", "multi", "sparse", "hybrid")
    embed = open_system(checkpoints / "tiny-dream", "diffembed", dtype="float32")
    assert experiment(embed, collection, tmp_path, Plan(modes=MODES)).modes == ("single",)
    assert experiment(BM25(), collection, tmp_path, Plan(modes=MODES)).modes == ("lexical",)
    with pytest.raises(InputError, match="tiny offers single, and of these none is among sparse"):
        experiment(embed, collection, tmp_path, Plan(modes=("sparse",)))
    results = experiment(BM25(), collection, tmp_path, label="bm25").run(tmp_path / "r")
    assert results.system.kind == "lexical"
    assert results.system.settings["k1"] == 0.9
    assert not list(tmp_path.glob("encodings/*"))


def test_the_layout_documented_is_the_one_written(encoder, collection, tmp_path):
    experiment(encoder, collection, tmp_path, Plan(modes=("hybrid",))).run(tmp_path / "r")
    written = json.loads((tmp_path / "r" / "results.json").read_text())
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z_]+)`", page))
    names = {*written, *(n for part in written.values() if isinstance(part, dict) for n in part), *written["modes"][0]}
    assert names - set(written["versions"]) <= documented


def test_a_collection_that_moved_is_the_same_question(encoder, collection, tmp_path):
    moved = replace(collection, source="elsewhere", qrels_source="there")
    plan, other = Plan(modes=("single",)), Plan(modes=("multi",))
    one, two = (experiment(encoder, c, tmp_path, plan).question for c in (collection, moved))
    assert one != two
    assert one.is_that_of(two)
    assert not one.is_that_of(experiment(encoder, moved, tmp_path, other).question)


def test_rankings_of_an_earlier_question_are_removed(encoder, collection, tmp_path):
    experiment(encoder, collection, tmp_path, Plan(modes=("multi", "sparse", "hybrid"))).run(tmp_path / "r")
    (tmp_path / "r" / "own.trec").write_text("", encoding="utf-8")
    experiment(encoder, collection, tmp_path, Plan(modes=("multi",))).run(tmp_path / "r")
    assert sorted(p.name for p in (tmp_path / "r").glob("*.trec")) == ["multi.trec", "own.trec"]


@pytest.mark.parametrize("part", ["queries", "passages"])
def test_an_id_that_no_run_can_hold_is_refused_before_anything_is_encoded(encoder, collection, tmp_path, part):
    if part == "queries":
        bad = replace(collection, queries=[Query("query one", "seasons"), *collection.queries])
    else:
        bad = replace(collection, passages=[Passage("passage one", "The axis."), *collection.passages])
    counting = Counting(encoder)
    with pytest.raises(InputError, match="white space separates columns"):
        experiment(counting, bad, tmp_path).run(tmp_path / "r")
    assert not counting.encoded
    assert not (tmp_path / "r").exists()
