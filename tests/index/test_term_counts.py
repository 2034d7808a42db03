"""How rare terms are in an index: counted, kept, and used in searches."""

from __future__ import annotations

import numpy as np
import pytest

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError, InputError, WriteError
from diffretriever.idf import document_frequencies, idf_factors, weigh
from diffretriever.index import Index, transfer
from diffretriever.index.exact.store import ExactStore
from diffretriever.index.sampling import sample_passages
from diffretriever.index.term_counts import TERM_COUNTS_NOTE, TermCounts
from diffretriever.index.transfer import copy_index
from tests.index.hashing import VOCABULARY, HashEncoder
from tests.index.places import backend_of

MODEL_IDF = np.linspace(0.5, 8, VOCABULARY, dtype=np.float32)
TEXTS = [f"flow word{i % 40} word{i % 7} number{i}" for i in range(200)]
PASSAGES = [Passage(f"p{i:03d}", text) for i, text in enumerate(TEXTS)]
QUERIES = ["flow word3 word5", "number17 flow", "word39"]


@pytest.fixture
def encoder():
    return HashEncoder(term_idf=MODEL_IDF)


def expected(encoder, texts, query):
    passages = encoder.encode_passages(texts)
    factors = idf_factors(*document_frequencies([passages], VOCABULARY), MODEL_IDF)
    return (weigh(encoder.encode_queries([query]), factors).sparse @ passages.sparse.T).toarray()[0]


def found(index, query, count=200):
    scores = {hit.passage_id: hit.score for hit in index.search(query, count, "sparse")}
    return np.array([scores.get(p.passage_id, 0.0) for p in PASSAGES[:count]], np.float32)


def test_sparse_scores_know_the_collection(place, kind, encoder):
    with Index.create(place, encoder, backend=backend_of(kind)) as index:
        index.add(PASSAGES)
        if kind not in ("edge", "exact"):
            plain = (encoder.encode_queries(QUERIES[:1]).sparse @ encoder.encode_passages(TEXTS).sparse.T).toarray()[0]
            assert found(index, QUERIES[0]) == pytest.approx(plain, rel=1e-5)
            index.count_terms()
        for query in QUERIES:
            assert found(index, query) == pytest.approx(expected(encoder, TEXTS, query), rel=1e-5)
            comparable = index.comparable(encoder.encode_queries([query]))
            products = [(comparable.sparse @ index.get(p).representations.sparse.T).toarray().item() for p in index]
            assert sorted(products) == pytest.approx(sorted(found(index, query)), rel=1e-5)


def test_counts_are_kept_and_need_no_encoder_later(place, kind, encoder):
    with Index.create(place, encoder, backend=backend_of(kind)) as index:
        index.add(PASSAGES)
        index.count_terms()
        before = found(index, QUERIES[0])
    with Index.open(place) as index:
        hits = index.search(encoder.encode_queries(QUERIES[:1]), 200, "sparse")
        assert {h.passage_id: h.score for h in hits} == pytest.approx(
            {p.passage_id: s for p, s in zip(PASSAGES, before.tolist(), strict=True) if s}
        )


def test_they_are_counted_again_when_the_index_has_grown(tmp_path, encoder):
    with Index.create(tmp_path / "i", encoder) as index:
        assert index.search(QUERIES[0], mode="sparse") == []
        index.add(PASSAGES[:100])
        assert found(index, QUERIES[0], 100) == pytest.approx(expected(encoder, TEXTS[:100], QUERIES[0]), rel=1e-5)
        index.add(PASSAGES[100:140])
        assert index.current_terms().passages == 100
        index.add(PASSAGES[140:])
        assert index.current_terms().passages == 200
        assert found(index, QUERIES[0]) == pytest.approx(expected(encoder, TEXTS, QUERIES[0]), rel=1e-5)
        index.delete([p.passage_id for p in PASSAGES[90:]])
        assert index.current_terms().passages == 90


def test_an_index_of_the_models_idf_leaves_queries_as_they_are(tmp_path, encoder):
    with Index.create(tmp_path / "i", encoder, idf="model") as index:
        index.add(PASSAGES)
        plain = (encoder.encode_queries(QUERIES[:1]).sparse @ encoder.encode_passages(TEXTS).sparse.T).toarray()[0]
        assert found(index, QUERIES[0]) == pytest.approx(plain, rel=1e-5)
        index.count_terms()
        assert index.current_terms() is None
    assert not (tmp_path / "i" / TERM_COUNTS_NOTE).exists()
    with pytest.raises(InputError, match="idf must be 'collection' or 'model', got 'bm25'"):
        Index.create(tmp_path / "j", encoder, idf="bm25")


def test_many_passages_are_sampled(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("diffretriever.index.term_counts.SAMPLE", 50)
    with Index.create(None, encoder, backend="exact") as index:
        index.add(PASSAGES)
        factors = index.current_terms().factors
        sample = [s.representations for s in sample_passages(index._store, 50, np.random.default_rng(200))]
    counted = document_frequencies(sample, VOCABULARY)
    assert counted[1] == 50
    np.testing.assert_array_equal(factors, idf_factors(*counted, MODEL_IDF))
    assert factors[encoder.encode_queries(["flow"]).sparse.indices] < 0.8


def test_a_copy_and_a_snapshot_search_alike(tmp_path, encoder, loopback):
    with Index.create(tmp_path / "i", encoder) as index:
        index.add(PASSAGES)
        before = found(index, QUERIES[1])
        index.snapshot(tmp_path / "snapshot")
    targets = [tmp_path / "copy", loopback.url("counted-copy")]
    for target in targets:
        copy_index(tmp_path / "i", target)
    for place in [*targets, tmp_path / "snapshot"]:
        with Index.open(place, encoder) as index:
            assert found(index, QUERIES[1]).tolist() == before.tolist()


def test_a_copy_that_was_cut_short_ranks_by_the_collection_too(tmp_path, encoder, monkeypatch):
    with Index.create(tmp_path / "i", encoder) as index:
        index.add(PASSAGES)
    upsert, calls = ExactStore.upsert, []

    def fails_the_third_time(store, passages, representations):
        calls.append(len(passages))
        if len(calls) == 3:
            raise WriteError("the disk is full")
        upsert(store, passages, representations)

    monkeypatch.setattr(transfer, "_PASSAGES", 40)
    monkeypatch.setattr(ExactStore, "upsert", fails_the_third_time)
    with pytest.raises(WriteError, match="the disk is full"):
        copy_index(tmp_path / "i", tmp_path / "copy", backend="exact")
    monkeypatch.undo()
    with Index.open(tmp_path / "copy", encoder) as index:
        assert len(index) == 80
        held = [p.text for p in PASSAGES if p.passage_id in set(index)]
        scores = {hit.text: hit.score for hit in index.search(QUERIES[0], 80, "sparse")}
    assert [scores.get(text, 0.0) for text in held] == pytest.approx(expected(encoder, held, QUERIES[0]), rel=1e-5)


def test_a_damaged_note_is_an_error_and_another_index_loses_it(tmp_path, encoder):
    with Index.create(tmp_path / "i", encoder) as index:
        index.add(PASSAGES[:10])
        index.search(QUERIES[0])
    (tmp_path / "i" / TERM_COUNTS_NOTE).write_text('{"model_idf": "?"}')
    with pytest.raises(IndexFormatError, match=r"term_counts\.json of the index is damaged"):
        Index.open(tmp_path / "i", encoder)
    Index.open(tmp_path / "i", encoder, salvage=True).close()
    Index.create(tmp_path / "i", HashEncoder(), overwrite=True).close()
    assert not (tmp_path / "i" / TERM_COUNTS_NOTE).exists()


def test_a_note_that_is_no_utf8_is_a_damaged_note(tmp_path, encoder):
    with Index.create(tmp_path / "i", encoder) as index:
        index.add(PASSAGES[:10])
    path = tmp_path / "i" / TERM_COUNTS_NOTE
    whole = path.read_bytes()
    for at in (3, whole.index(b"model_idf") + 20):  # in a name, and in the numbers
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :])
        with pytest.raises(IndexFormatError, match=r"term_counts\.json of the index is damaged"):
            Index.open(tmp_path / "i", encoder)


def test_json_brings_back_what_was_written():
    counts = TermCounts(MODEL_IDF, 7, MODEL_IDF[::-1].copy())
    back = TermCounts.from_json(counts.to_json())
    np.testing.assert_array_equal(back.model_idf, counts.model_idf)
    np.testing.assert_array_equal(back.factors, counts.factors)
    assert (back.passages, back.fits(10), back.fits(11), back.fits(4)) == (7, True, False, False)
    assert TermCounts.from_json(TermCounts(MODEL_IDF).to_json()).factors is None
