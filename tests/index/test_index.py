"""The contract of an index: the same cases for every backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffretriever.corpus import Passage
from diffretriever.errors import IndexMismatchError, InputError, PassageNotFoundError
from diffretriever.index import Equals, Index
from tests.index.hashing import HashEncoder, random_representations
from tests.index.places import backend_of

MODES = ["hybrid", "multi", "single", "sparse"]
PASSAGES = [
    Passage("seasons", "the tilt of the axis causes the seasons", "Earth", {"year": 2019, "lang": "en"}),
    Passage("tides", "the moon causes the tides", "Moon", {"year": 2021, "lang": "en", "tags": ["sea", "moon"]}),
    Passage("hiver", "les saisons de la terre", "Terre", {"year": 2021, "lang": "fr"}),
]


@pytest.fixture
def backend(kind):
    return backend_of(kind)


@pytest.fixture
def index(place, backend, encoder):
    with Index.create(place, encoder, backend=backend) as made:
        yield made


def ids(hits):
    return [hit.passage_id for hit in hits]


@pytest.mark.parametrize("mode", MODES)
def test_the_passage_that_says_it_comes_first(index, mode):
    index.add(PASSAGES)
    hits = index.search("causes tides moon", mode=mode)
    first = hits[0]
    assert first.passage_id == "tides"
    assert (first.text, first.title) == ("the moon causes the tides", "Moon")
    assert first.metadata == {"year": 2021, "lang": "en", "tags": ["sea", "moon"]}
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.exact for hit in hits)


def test_scores_are_what_the_definitions_say(index, encoder):
    index.add(PASSAGES)
    query, passage = encoder.encode_queries(["moon tides"]), encoder.encode_passages([PASSAGES[1]])
    similarities = query.dense @ passage.dense.T
    dense, sparse = np.maximum(similarities.max(1), 0).sum(), (query.sparse @ passage.sparse.T).toarray().item()
    hit = index.search("moon tides", 1, "multi")[0]
    assert hit.score == hit.dense == pytest.approx(dense, abs=2e-3)
    assert hit.sparse is None
    hit = index.search("moon tides", 1, "single")[0]
    assert hit.score == hit.dense == pytest.approx(float(query.pooled[0] @ passage.pooled[0]), abs=1e-3)
    hit = index.search("moon tides", 1, "sparse")[0]
    assert hit.score == hit.sparse == sparse
    assert hit.dense is None
    hit = index.search("moon tides", 1)[0]
    assert (hit.score, hit.dense, hit.sparse) == (1.0, pytest.approx(dense, abs=2e-3), sparse)


def test_slot_words_come_with_hits_and_passages(index, encoder):
    index.add(PASSAGES, words=2)
    words = index.search("tides", 1)[0].slot_words
    stored = index.get("tides")
    assert len(words) == len(stored.representations.vectors(0)) == 4
    assert [tuple(slot) for slot in stored.slot_words] == list(words)
    assert words[0][0].word == encoder.term(int(stored.representations.words.ids[0, 0]))
    index.add(PASSAGES, words=0)
    assert index.search("tides", 1)[0].slot_words == ()
    assert index.get("tides").slot_words == []


def test_get_returns_what_was_encoded(index, encoder):
    index.add(PASSAGES)
    stored, encoded = index.get("seasons"), encoder.encode_passages([PASSAGES[0]])
    assert stored.passage == PASSAGES[0]
    assert type(stored.passage.metadata["year"]) is int
    np.testing.assert_allclose(stored.representations.dense, encoded.dense, atol=1e-3)
    np.testing.assert_allclose(stored.representations.pooled, encoded.pooled, atol=1e-3)
    assert (stored.representations.sparse != encoded.sparse).nnz == 0


@pytest.mark.parametrize("count", [1, 12, 300])
def test_any_number_of_passages_works(index, count):
    index.add(Passage(f"p{i}", f"word{i} shared") for i in range(count))
    assert len(index) == count
    assert set(index) == {f"p{i}" for i in range(count)}
    for mode in MODES:
        assert index.search("word0", 1, mode)[0].passage_id == "p0"
        assert len(index.search("shared", 1000, mode)) == count


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_index_finds_nothing(index, mode):
    assert index.search("anything", mode=mode) == []
    assert len(index) == 0
    assert list(index) == []


def test_an_empty_passage_is_kept_and_never_found(index):
    index.add([Passage("empty", ""), Passage("full", "words")])
    assert len(index) == 2
    assert index.get("empty").representations.vectors(0).shape == (0, 16)
    assert index.get("empty").representations.sparse.nnz == 0
    for mode in MODES:
        assert ids(index.search("words", mode=mode)) == ["full"]
    index.add([Passage("full", "")])
    assert all(index.search("words", mode=mode) == [] for mode in MODES)
    assert index.get("full").representations.pooled.any() == np.False_


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_query_finds_nothing(index, mode):
    index.add(PASSAGES)
    assert index.search("", mode=mode) == []
    assert [bool(hits) for hits in index.search_batch(["", "moon"], mode=mode)] == [False, True]


def test_adding_an_id_again_replaces_it(index):
    index.add(PASSAGES)
    index.add([Passage("tides", "sun and stars")])
    assert len(index) == 3
    assert index.get("tides").passage == Passage("tides", "sun and stars")
    assert index.search("sun stars", 1)[0].passage_id == "tides"
    assert "tides" not in ids(index.search("tides", mode="sparse"))


def test_deleted_passages_are_gone(index):
    index.add(PASSAGES)
    assert index.delete(["tides", "hiver"]) == 2
    assert ids(index.search("moon tides saisons")) == ["seasons"]
    assert list(index) == ["seasons"]
    with pytest.raises(PassageNotFoundError, match="no passage 'tides'"):
        index.get("tides")
    index.add([PASSAGES[1]])
    assert index.search("tides", 1)[0].passage_id == "tides"


def test_deleting_what_is_not_there_changes_nothing_or_passes(index):
    index.add(PASSAGES)
    with pytest.raises(PassageNotFoundError, match="'nothing'"):
        index.delete(["tides", "nothing"])
    assert len(index) == 3
    assert index.delete(["tides", "nothing", "\ud800"], missing_ok=True) == 1
    assert index.delete("hiver") == 1
    assert list(index) == ["seasons"]


def test_membership(index):
    index.add(PASSAGES)
    assert "tides" in index
    assert "nothing" not in index
    assert "" not in index
    assert 7 not in index


def test_new_metadata_need_no_encoding(index, encoder):
    index.add(PASSAGES)
    calls = len(encoder.encoded)
    index.set_metadata({"tides": {"lang": "de"}, "seasons": {}})
    assert len(encoder.encoded) == calls
    assert index.get("tides").passage == replace(PASSAGES[1], metadata={"lang": "de"})
    assert ids(index.search("moon", where=Equals("lang", "de"))) == ["tides"]
    assert index.search("moon", where=Equals("year", 2019)) == []
    with pytest.raises(PassageNotFoundError, match="'nothing'"):
        index.set_metadata({"tides": {}, "nothing": {}})
    assert index.get("tides").passage.metadata == {"lang": "de"}


def test_update_encodes_only_changed_texts(index, encoder):
    index.add(PASSAGES)
    encoder.encoded.clear()
    changed = [replace(PASSAGES[0], metadata={"year": 1}), replace(PASSAGES[1], text="salt water")]
    assert index.update(changed) == 2
    assert encoder.encoded == [1]
    assert index.get("seasons").passage == changed[0]
    assert index.search("salt water", 1)[0].passage_id == "tides"
    with pytest.raises(PassageNotFoundError, match="'nothing'"):
        index.update([replace(PASSAGES[0], text="new"), Passage("nothing", "text")])
    assert index.get("seasons").passage == changed[0]


def test_everything_survives_reopening(place, backend, encoder):
    with Index.create(place, encoder, backend=backend) as index:
        index.add(PASSAGES)
        index.add([Passage("extra", "comet")])
        index.delete(["hiver"])
        index.set_metadata({"tides": {"lang": "de"}})
        before = [index.search("moon seasons comet", mode=mode) for mode in MODES]
    with Index.open(place, encoder) as index:
        assert [index.search("moon seasons comet", mode=mode) for mode in MODES] == before
        assert set(index) == {"seasons", "tides", "extra"}
        index.add([Passage("later", "tail of the comet")])
        assert index.search("tail", 1)[0].passage_id == "later"


def test_any_unicode_string_is_an_id(place, backend, encoder):
    names = ["ü", "日本語/🌙", "a b\tc\n", "\x00", "x" * 5000, "'; drop", '{"a": "b"}', "../up", "e\u0301", "é", " "]
    with Index.create(place, encoder, backend=backend) as index:
        index.add(Passage(name, f"word{i}") for i, name in enumerate(names))
    with Index.open(place, encoder) as index:
        assert set(index) == set(names)
        for i, name in enumerate(names):
            assert index.search(f"word{i}", 1)[0].passage_id == name
            assert index.get(name).passage.text == f"word{i}"
        assert index.delete(names[::2]) == 6
        assert set(index) == set(names[1::2])


def test_awkward_texts_come_back(index):
    texts = {"nul": "a\x00b", "long": "word " * 20000, "lines": "a\nb\r\n\u2028c", "emoji": "👩‍🚀", "quotes": "\"'\\"}
    index.add([Passage(i, text, title=text[:50], metadata={"copy": text[:50]}) for i, text in texts.items()])
    for passage_id, text in texts.items():
        expected = Passage(passage_id, text, text[:50], {"copy": text[:50]})
        assert index.get(passage_id).passage == expected
    index.add([Passage("half", "a \ud83d b", metadata={"\udc00": "\ud800"})])
    assert index.get("half").passage == Passage("half", "a � b", metadata={"�": "�"})


def test_equal_scores_come_in_the_order_of_the_ids(index):
    index.add([Passage(f"p{i:03d}", "same words") for i in reversed(range(40))])
    for mode in MODES:
        assert ids(index.search("same", 15, mode)) == [f"p{i:03d}" for i in range(15)]


def test_a_batch_of_queries_gives_what_each_gives_alone(index):
    index.add(PASSAGES)
    queries = ["moon", "", "axis seasons", "terre"]
    for mode in MODES:
        together = index.search_batch(queries, 2, mode)
        assert [ids(hits) for hits in together] == [ids(index.search(query, 2, mode)) for query in queries]
    assert index.search_batch([]) == []


def test_hybrid_weighs_its_sides(index):
    index.add(PASSAGES)
    query = "causes moon seasons"
    dense_only = index.search(query, alpha=1.0)
    assert ids(dense_only) == ids(index.search(query, mode="multi"))
    assert index.search(query, alpha=0.0)[0].passage_id == index.search(query, 1, "sparse")[0].passage_id
    fused = index.search(query, fusion="rrf")
    assert fused[0].score == pytest.approx(2 / 61)
    assert index.search(query, 1, dense="single")[0].dense == index.search(query, 1, "single")[0].score
    assert len(index.search(query, 3, depth=1)) == 3


def test_representations_can_be_added_and_asked_for(place, backend):
    passages = random_representations(20, slots=(1, 6))
    with Index.create(place, passages, backend=backend) as index:
        names = [Passage(f"p{i:02d}", "") for i in range(20)]
        assert index.add_representations(names, passages) == 20
        hits = index.search(passages.select([7]), 1, "multi")
        assert hits[0].passage_id == "p07"
        assert hits[0].score == pytest.approx(len(passages.vectors(7)), abs=5e-3)
        with pytest.raises(InputError, match="search takes one query, got 20"):
            index.search(passages)
        with pytest.raises(InputError, match="20 passages for 3 representations"):
            index.add_representations(names, passages.select([0, 1, 2]))


def test_without_an_encoder_texts_cannot_be_encoded(place, backend, encoder):
    with Index.create(place, encoder, backend=backend) as index:
        index.add(PASSAGES)
    with Index.open(place) as index:
        assert len(index) == 3
        assert index.get("tides").passage == PASSAGES[1]
        assert index.search(encoder.encode_queries(["moon"]), 1)[0].passage_id == "tides"
        assert index.delete(["tides"]) == 1
        with pytest.raises(InputError, match="searching with text needs an encoder"):
            index.search("moon")
        with pytest.raises(InputError, match=r"made with 'hash'"):
            index.add(PASSAGES)


def test_another_encoder_is_refused_saying_what_differs(place, backend, encoder):
    with Index.create(place, encoder, backend=backend) as index:
        index.add(PASSAGES)
        other = HashEncoder(fingerprint="other", passage_slots=9)
        with pytest.raises(IndexMismatchError, match=r"'hash' against 'other'.*passage_slots: 6 against 9"):
            index.search(other.encode_queries(["moon"]))
        with pytest.raises(IndexMismatchError, match="dimension: 16 against 8"):
            index.add_representations(PASSAGES, HashEncoder(dim=8).encode_passages(PASSAGES))
        index.encoder = other
        with pytest.raises(IndexMismatchError, match="passages were made differently"):
            index.add(PASSAGES)
    with pytest.raises(IndexMismatchError, match=r"encoder were made differently.*'hash' against 'other'"):
        Index.open(place, other)
    with Index.open(place, encoder) as index:  # refusing must not leave the folder locked
        assert len(index) == 3


class Interrupted(HashEncoder):
    """An encoder that is interrupted in its fourth batch of passages."""

    def encode_passages(self, passages, *, words=0, progress=False):
        if len(self.encoded) == 3:
            raise KeyboardInterrupt
        return super().encode_passages(passages, words=words, progress=progress)


def test_an_interruption_leaves_the_finished_batches(place, backend, encoder):
    passages = [Passage(f"p{i}", f"word{i}") for i in range(50)]
    with Index.create(place, Interrupted(), backend=backend) as index:
        with pytest.raises(KeyboardInterrupt):
            index.add(passages, batch_size=10)
        assert len(index) == 30
        assert index.search("word3", 1)[0].passage_id == "p3"
    with Index.open(place, encoder) as index:
        assert len(index) == 30
        assert index.add(passages, batch_size=10) == 50
        assert len(index) == 50


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ([Passage("a", "x"), Passage("", "y")], "passage number 2 has an empty id"),
        ([Passage("a", "x"), Passage("b", "x"), Passage("a", "y")], "passage id 'a' is given twice .again at number 3"),
        ([Passage("\ud800", "x")], "lone surrogate"),
        ([Passage(7, "x")], "has the id 7; an id is a string"),  # type: ignore[arg-type]
        ([Passage("a", None)], "has the text None"),  # type: ignore[arg-type]
        (["text"], "passage number 1 is a str"),
        ([Passage("a", "x", metadata={"m": None})], "metadata 'm': None"),  # type: ignore[dict-item]
        ([Passage("a", "x", metadata={"m": float("nan")})], "finite numbers"),
        ([Passage("a", "x", metadata={"m": 10**400})], "finite numbers"),
        ([Passage("a", "x", metadata={"m": ["a", 1]})], "lists of strings"),  # type: ignore[list-item]
        ([Passage("a", "x", metadata={1: "b"})], "metadata key 1"),  # type: ignore[dict-item]
    ],
)
def test_bad_passages_are_refused_before_anything_is_stored(index, passages, message):
    with pytest.raises(InputError, match=message):
        index.add(passages, batch_size=1)
    assert len(index) == 0


def test_representations_must_be_finite(index, encoder):
    passages = [Passage("a", "one two"), Passage("b", "three"), Passage("c", "four")]
    encoded = encoder.encode_passages(passages)
    for field, row in (("dense", 2), ("pooled", 1)):
        array = getattr(encoded, field).copy()
        array[row] = np.nan
        with pytest.raises(InputError, match="passage 'b' hold NaN"):
            index.add_representations(passages, replace(encoded, **{field: array}))
    sparse = encoded.sparse.copy()
    sparse.data[-1] = np.inf
    with pytest.raises(InputError, match="passage 'c' hold NaN"):
        index.add_representations(passages, replace(encoded, sparse=sparse))
    assert len(index) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k and depth must be at least 1"),
        ({"depth": 0}, "k and depth must be at least 1"),
        ({"mode": "dense"}, "mode must be one of hybrid, multi, single, sparse, got 'dense'"),
        ({"fusion": "max"}, "fusion must be"),
        ({"alpha": 2}, "alpha must lie between"),
        ({"dense": "sparse"}, "dense must be"),
        ({"where": "year"}, "cannot read the filter 'year'"),
    ],
)
def test_bad_searches_are_refused(index, arguments, message):
    with pytest.raises(InputError, match=message):
        index.search("moon", **arguments)
    with pytest.raises(InputError, match="a list of queries"):
        index.search_batch("moon")


def test_a_closed_index_says_so(index):
    index.close()
    index.close()
    with pytest.raises(InputError, match="this index is closed"):
        len(index)
    with pytest.raises(InputError, match="this index is closed"):
        index.search("moon")


def test_stats(index, backend):
    index.add(PASSAGES)
    index.flush()
    stats = index.stats()
    assert (stats.passages, stats.dim, stats.vocabulary_size, str(stats.storage)) == (3, 16, 997, "float16")
    assert stats.backend == backend
    assert stats.path is not None
    assert (stats.disk_bytes > 0) == (backend != "cluster")
    assert stats.provenance.model == "hash"
