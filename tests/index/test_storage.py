"""Storage options: what each loses, and what none may lose."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError, InputError
from diffretriever.index import Index, Manifest, Storage
from diffretriever.index.manifest import MANIFEST_FILE
from diffretriever.index.storage.coarse import coarse_width, pack, unpack
from diffretriever.index.storage.codec import PROJECTION_FILE
from diffretriever.index.storage.compression import drop_redundant, fit_projection
from tests.index.hashing import HashEncoder, random_representations

COUNT = 1200
STORAGES = [
    ("edge", Storage(codes="int8")),
    ("edge", Storage(codes="binary")),
    ("edge", Storage(codes="int8", pca=8)),
    ("exact", Storage("int8")),
    ("exact", Storage("binary")),
    ("exact", Storage("int8", pca=8, drop=0.5)),
    ("edge", Storage("float16", pca=8)),
    ("exact", Storage("float32", pca=8)),
    ("edge", Storage(codes="int8", drop=0.5)),
    ("exact", Storage("float16", drop=0.5)),
]


@pytest.fixture(scope="module")
def passages():
    return random_representations(COUNT, seed=1, slots=(0, 5), terms=4)


@pytest.fixture(scope="module", params=STORAGES, ids=lambda given: f"{given[0]} {given[1]}")
def index(request, passages, tmp_path_factory):
    backend, storage = request.param
    folder = tmp_path_factory.mktemp("stored")
    with Index.create(folder, passages, backend=backend, storage=storage, sample=passages) as made:
        made.add_representations([Passage(f"p{i}", "") for i in range(COUNT)], passages)
        made.delete("p7")
    with Index.open(folder) as opened:
        assert opened.manifest.storage == storage
        yield opened


def best(passages, queries, k):
    """Return the exact MaxSim of every passage for each query, and the best k ids, from the definition."""
    scores = np.zeros((len(queries), COUNT))
    for n in range(COUNT):
        vectors = passages.vectors(n)
        if len(vectors):
            similarities = np.maximum((queries.dense @ vectors.T).max(axis=1), 0)
            scores[:, n] = np.add.reduceat(similarities, queries.offsets[:-1])
    scores[:, 7] = -1
    return scores, [{f"p{i}" for i in np.argsort(-row)[:k]} for row in scores]


def test_exact_search_is_that_of_the_stored_vectors(index, passages):
    queries = random_representations(8, seed=2, slots=(4, 4))
    compared = index.comparable(queries)
    for q, hits in enumerate(index.search_batch(queries, 20, "multi", exact=True)):
        for hit in hits:
            assert hit.exact
            vectors = index.get(hit.passage_id).representations.vectors(0)
            score = np.maximum((compared.vectors(q) @ vectors.T).max(axis=1), 0).sum()
            assert hit.score == pytest.approx(score, abs=1e-5)


def test_what_is_lost_is_bounded(index, passages):
    queries = random_representations(8, seed=2, slots=(4, 4))
    storage = index.manifest.storage
    scores, tops = best(passages, queries, 20)
    bound = 4 * np.sqrt(2 - 2 * storage.drop) if storage.drop else 2e-3
    if storage.is_coarse:  # a product with a unit vector changes by no more than the vector does
        bound += 4 * np.linalg.norm(unpack(pack(passages.dense, storage.dtype), 16) - passages.dense, axis=1).max()
    hits = index.search_batch(queries, COUNT, "multi", exact=True)
    if storage.pca is None:
        for q, found in enumerate(hits):
            assert max(abs(hit.score - scores[q, int(hit.passage_id[1:])]) for hit in found) <= bound
    if storage == Storage(codes=storage.codes):  # ranked by the float16 vectors: as without codes
        for found, top in zip(hits, tops, strict=True):
            assert len({hit.passage_id for hit in found[:20]} & top) >= 19


def test_codes_choose_and_vectors_score(index, passages):
    if index.manifest.storage.codes is None:
        pytest.skip("no codes")
    queries = random_representations(20, seed=3, slots=(4, 4))
    exact = index.search_batch(queries, 10, "multi", exact=True)
    fast = index.search_batch(queries, 10, "multi", recall=0.7)
    known = [
        {hit.passage_id: hit.score for hit in hits} for hits in index.search_batch(queries, 300, "multi", exact=True)
    ]
    shared = 0
    for a, b, scores in zip(exact, fast, known, strict=True):
        shared += len({hit.passage_id for hit in a} & {hit.passage_id for hit in b})
        for hit in b:
            assert not hit.exact
            assert hit.score == pytest.approx(scores.get(hit.passage_id, hit.score), abs=1e-6)
    # Of 16 random signs binary codes say little; scores must be right whatever they choose.
    assert shared / 200 > (0.6 if index.manifest.storage.codes == "binary" else 0.9)


def test_everything_else_is_kept(index, passages):
    assert len(index) == COUNT - 1
    assert index.check().is_whole
    stored = index.get("p9").representations
    assert stored.dim == 16
    assert (stored.sparse != passages.sparse[9]).nnz == 0
    query = random_representations(1, seed=4, slots=(4, 4))
    for mode in ("single", "sparse", "hybrid"):
        assert index.search(query, 5, mode, exact=True)


def test_a_projection_keeps_the_products_of_what_it_was_fitted_on():
    rng = np.random.default_rng(0)
    flat = (rng.standard_normal((300, 5)) @ rng.standard_normal((5, 16))).astype(np.float32)
    projection = fit_projection(flat, 5)
    np.testing.assert_allclose(projection.T @ projection, np.eye(5), atol=1e-5)
    np.testing.assert_allclose((flat @ projection) @ (flat @ projection).T, flat @ flat.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(projection, fit_projection(flat, 5))
    with pytest.raises(InputError, match="4 vectors are too few to find 5 principal components"):
        fit_projection(flat[:4], 5)


@pytest.mark.parametrize("form", ["int8", "binary"])
def test_coarse_vectors_are_fixed_points(form):
    rng = np.random.default_rng(3)
    vectors = np.concatenate([random_representations(200, dim=19).dense, rng.standard_normal((50, 19)) * 1e-3])
    vectors = np.concatenate([vectors, np.zeros((1, 19))]).astype(np.float32)
    packed = pack(vectors, form)
    assert packed.codes.shape == (len(vectors), coarse_width(form, 19))
    once = unpack(packed, 19)
    again = pack(once, form)
    np.testing.assert_array_equal(again.codes, packed.codes)
    np.testing.assert_array_equal(
        again.scales, packed.scales if form == "binary" else np.where(once.any(1), packed.scales, 1)
    )
    np.testing.assert_array_equal(unpack(again, 19), once)
    if form == "int8":
        assert (abs(once - vectors) <= packed.scales[:, None] * 0.5001).all()
    else:
        np.testing.assert_allclose((once * vectors).sum(1), np.square(vectors).sum(1), rtol=1e-5)


def test_coarse_vectors_take_the_space_they_say(tmp_path):
    passages = random_representations(300, dim=256, slots=(6, 6), terms=2)
    sizes = {}
    for dtype in ("float16", "int8", "binary"):
        with Index.create(tmp_path / dtype, passages, backend="exact", storage=dtype) as index:
            index.add_representations([Passage(f"p{i}", "") for i in range(300)], passages)
            index.delete("p3")
            index.add_representations([Passage("p4", "new")], passages.select([4]))
            assert index.check().is_whole
            sizes[dtype] = sum(
                f.stat().st_size for f in (tmp_path / dtype).rglob("*.npy") if f.stem in ("dense", "scales")
            )
    vectors = 301 * 6
    assert sizes["float16"] == pytest.approx(vectors * 512, abs=300)
    assert sizes["int8"] == pytest.approx(vectors * 260, abs=600)
    assert sizes["binary"] == pytest.approx(vectors * 36, abs=600)


def test_a_manifest_of_the_first_version_is_read(tmp_path):
    passages = random_representations(3)
    with Index.create(tmp_path, passages, storage=Storage(codes="binary")) as index:
        about = index.manifest.to_mapping()
    storage = {"dtype": "binary", "pca": None, "drop": None}
    old = Manifest.from_mapping({**about, "format_version": 1, "storage": storage}, "old")
    assert old.storage == Storage(codes="binary")
    storage["dtype"] = "float32"
    assert Manifest.from_mapping({**about, "format_version": 1, "storage": storage}, "old").storage == Storage(
        "float32"
    )


def test_redundant_slots_are_those_close_to_an_earlier_kept_one():
    made = random_representations(1, slots=(4, 4))
    rng = np.random.default_rng(1)
    a, b = np.linalg.qr(rng.standard_normal((16, 2)))[0].T
    near = 0.95 * a + np.sqrt(1 - 0.95**2) * b
    dense = np.stack([a, near, b, a]).astype(np.float32)
    made = replace(made, dense=dense)
    for threshold, kept in ((0.9, [0, 2]), (0.96, [0, 1, 2]), (1.0, [0, 1, 2, 3])):
        dropped = drop_redundant(made, threshold)
        np.testing.assert_array_equal(dropped.dense, dense[kept])
        assert dropped.offsets.tolist() == [0, len(kept)]
        np.testing.assert_array_equal(dropped.pooled, made.pooled)


def test_slot_words_go_with_their_slots(tmp_path, encoder):
    with Index.create(tmp_path, encoder, storage=Storage(drop=0.01), backend="exact") as index:
        index.add([Passage("a", " ".join(f"w{i}" for i in range(6)))], words=2)
        stored = index.get("a")
        kept = len(stored.representations.vectors(0))
        assert 1 <= kept < 6
        assert len(stored.slot_words) == kept


def test_a_projection_belongs_to_its_index(tmp_path, passages):
    with Index.create(tmp_path / "i", passages, storage=Storage(pca=4), sample=passages, backend="exact") as index:
        index.snapshot(tmp_path / "s")
    with Index.open(tmp_path / "s") as index:
        assert index.check().is_whole
    path = tmp_path / "i" / "projection.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 64
    path.write_bytes(raw)
    for damage, message in ((raw, "is not as it was written"), (b"", "cannot be read")):
        path.write_bytes(damage)
        with pytest.raises(IndexFormatError, match=message):
            Index.open(tmp_path / "i")


def test_a_projection_is_on_disk_before_the_manifest_is(tmp_path, passages, monkeypatch):
    synchronised, real = [], os.fsync

    def note(handle):
        real(handle)
        synchronised.append(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    Index.create(tmp_path / "i", passages, storage=Storage(pca=4), sample=passages, backend="exact").close()
    projection, manifest = ((tmp_path / "i" / name).stat().st_ino for name in (PROJECTION_FILE, MANIFEST_FILE))
    assert projection in synchronised
    # Their last turns: the numbers may have belonged to files that are gone.
    last = {number: turn for turn, number in enumerate(synchronised)}
    assert (tmp_path / "i").stat().st_ino in synchronised[last[projection] : last[manifest]]


@pytest.mark.parametrize(
    ("storage", "backend", "message"),
    [
        ("int4", "edge", "storage must be one of float32, float16, int8, binary, got 'int4'"),
        ("int8", "edge", "needs the exact backend; edge keeps"),
        (Storage(codes="int8"), "exact", "codes need the edge backend"),
        (Storage(codes="int4"), "edge", "codes must be one of int8, binary, got 'int4'"),
        (Storage(pca=16), "edge", "pca must be 1 to 15"),
        (Storage(pca=8), "edge", "0 vectors are too few"),
        (Storage(drop=1.5), "edge", "drop is a cosine"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, storage, backend, message):
    with pytest.raises(InputError, match=message):
        Index.create(tmp_path / "i", HashEncoder(), backend=backend, storage=storage)
    assert not (tmp_path / "i").exists()
