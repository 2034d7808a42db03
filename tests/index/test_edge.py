"""What only the edge store does: approximate search, reorganising, writes in parts."""

from __future__ import annotations

import numpy as np
import pytest
import qdrant_edge as qe

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError, InputError
from diffretriever.index import Calibration, Index, Recall
from diffretriever.index.edge.store import EdgeStore
from tests.index.hashing import HashEncoder, random_representations

COUNT = 1500


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    representations = random_representations(COUNT, seed=5, slots=(1, 4), terms=3)
    with Index.create(tmp_path_factory.mktemp("edge"), representations) as made:
        passages = [Passage(f"p{i:04d}", "", metadata={"half": i % 2}) for i in range(COUNT)]
        made.add_representations(passages, representations)
        yield made


def ids(hits):
    return [hit.passage_id for hit in hits]


def test_an_approximate_search_says_so_and_finds_most(index):
    queries = random_representations(20, seed=6, slots=(3, 4))
    for mode in ("multi", "single", "hybrid"):
        exact = index.search_batch(queries, 10, mode, depth=100, exact=True)
        fast = index.search_batch(queries, 10, mode, depth=100, exact=False, recall=0.8)
        assert all(hit.exact for hits in exact for hit in hits)
        assert not any(hit.exact for hits in fast for hit in hits)
        found = np.mean([len(set(ids(a)) & set(ids(b))) / 10 for a, b in zip(exact, fast, strict=True)])
        assert found > 0.8
        scores = [{hit.passage_id: hit.dense for hit in hits} for hits in exact]
        for hits, known in zip(fast, scores, strict=True):
            for hit in hits:
                if known.get(hit.passage_id) is not None:
                    assert hit.dense == pytest.approx(known[hit.passage_id], abs=1e-6)
    assert all(hit.exact for hit in index.search(queries.select([0]), mode="sparse", exact=False))


def test_an_approximate_search_keeps_to_its_filter(index):
    query = random_representations(1, seed=7, slots=(4, 4))
    hits = index.search(query, 50, "multi", exact=False, recall=0.5, where="half=1")
    assert len(hits) == 50
    assert {hit.metadata["half"] for hit in hits} == {1}


def test_the_size_decides_when_nobody_else_does(index, monkeypatch):
    query = random_representations(1, seed=8, slots=(4, 4))
    assert index.search(query, 1, "multi")[0].exact
    monkeypatch.setattr("diffretriever.index.edge.store.EXACT_MULTI_WORK", COUNT * 16)
    monkeypatch.setattr("diffretriever.index.edge.store.EXACT_SINGLE_WORK", COUNT * 16 - 1)
    assert not index.search(query, 1, "multi", recall=0.8)[0].exact
    assert not index.search(query, 1, "single")[0].exact
    monkeypatch.setattr("diffretriever.index.edge.store.EXACT_SINGLE_WORK", COUNT * 16)
    assert index.search(query, 1, "single")[0].exact


def test_ties_beyond_the_cut_are_all_seen(tmp_path):
    with Index.create(tmp_path, HashEncoder()) as index:
        index.add([Passage(f"p{i:03d}", "same") for i in range(300)])
        for mode in ("multi", "single", "sparse", "hybrid"):
            assert ids(index.search("same", 5, mode)) == [f"p{i:03d}" for i in range(5)]


def test_a_large_write_is_split(tmp_path, monkeypatch):
    monkeypatch.setattr("diffretriever.index.edge.store._WRITE_NUMBERS", 100)
    sizes = []
    upsert = qe.UpdateOperation.upsert_points

    class Counting:
        delete_points = qe.UpdateOperation.delete_points

        @staticmethod
        def upsert_points(points):
            sizes.append(len(points))
            return upsert(points)

    monkeypatch.setattr("diffretriever.index.edge.store.qe.UpdateOperation", Counting)
    with Index.create(tmp_path, HashEncoder()) as index:
        index.add([Passage(f"p{i}", "one two three") for i in range(10)])
        assert sizes == [2] * 5
        assert len(index) == 10


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_write_is_flushed_before_it_returns(tmp_path, monkeypatch, durable):
    done = []

    def noting(name):
        real = getattr(EdgeStore, name)
        return lambda store, *given: (done.append(name), real(store, *given))[1]

    for name in ("_write", "flush"):
        monkeypatch.setattr(EdgeStore, name, noting(name))
    with Index.create(tmp_path, HashEncoder(), durable=durable) as index:
        for write in (
            lambda: index.add([Passage("a", "moon"), Passage("b", "sun")]),
            lambda: index.set_metadata({"a": {"n": 1}}),
            lambda: index.delete("b"),
        ):
            done.clear()
            write()
            assert "_write" in done
            assert (done[-1] == "flush") is durable


def test_more_numbers_than_the_engine_holds_are_refused(tmp_path):
    encoder = HashEncoder(dim=4096, passage_slots=300)
    with Index.create(tmp_path, encoder) as index:
        with pytest.raises(InputError, match=r"'big' has 260 vectors of 4096 dimensions.*use backend='exact'"):
            index.add([Passage("big", " ".join(f"w{i}" for i in range(260)))], words=0)
        index.add([Passage("fits", "moon")])
        assert index.search("moon", 1)[0].passage_id == "fits"


def test_damage_is_reported(tmp_path, encoder):
    with Index.create(tmp_path, encoder) as index:
        index.add([Passage("a", "moon")])
    (tmp_path / "store" / "edge_config.json").write_text("{")
    with pytest.raises(IndexFormatError, match=r"edge_config.json is not as it was since the index was closed"):
        Index.open(tmp_path, encoder)
    (tmp_path / "seal.json").unlink()
    with pytest.raises(IndexFormatError, match="cannot be opened by the engine"):
        Index.open(tmp_path, encoder)


def test_names_are_read_once_and_forgotten_when_many(index, monkeypatch):
    query = random_representations(1, seed=9, slots=(4, 4))
    first = index.search(query, 20, "multi")
    monkeypatch.setattr("diffretriever.index.edge.store._KNOWN_NAMES", 5)
    assert index.search(query, 20, "multi") == first


def test_what_the_terms_find_gets_its_dense_score_though_the_graph_overlooked_it(index, monkeypatch):
    shallow = Calibration(COUNT, 1, (Recall(20, 20, 0.5, 0.0, 1.0),))
    monkeypatch.setattr(index, "current_calibration", lambda: shallow)
    queries = random_representations(10, seed=11, slots=(3, 4), terms=6)
    exact = index.search_batch(queries, COUNT, "multi", exact=True)
    known = [{hit.passage_id: hit.score for hit in hits} for hits in exact]
    lists = index.search_batch(queries, 20, depth=20, exact=False, recall=0.5)
    multi = index.search_batch(queries, 20, "multi", exact=False, recall=0.5)
    sparse = index.search_batch(queries, 20, "sparse")
    completed = 0
    for hits, scores, dense, terms in zip(lists, known, multi, sparse, strict=True):
        # The dense ranking is that of everything either search has found.
        found = {*ids(dense), *ids(terms)} & scores.keys()
        listed = sorted(found, key=scores.__getitem__, reverse=True)[:20]
        for hit in hits:
            assert (hit.dense is not None) == (hit.passage_id in listed)
            assert hit.dense is None or hit.dense == pytest.approx(scores[hit.passage_id], abs=1e-6)
            completed += hit.dense is not None and hit.passage_id not in ids(dense)
    assert completed > 0


def test_hybrid_asks_the_engine_once_for_both_lists(index, monkeypatch):
    query = random_representations(1, seed=12, slots=(4, 4), terms=6)
    asked = []
    ask_best = EdgeStore._ask_best
    monkeypatch.setattr(EdgeStore, "_ask_best", lambda self, r: asked.append(len(r)) or ask_best(self, r))
    [(dense, sparse)] = index.rankings(query, depth=20)
    assert asked == [2]
    assert list(dense.passage_ids) == ids(index.search(query, 20, "multi"))
    assert list(sparse.passage_ids) == ids(index.search(query, 20, "sparse"))
