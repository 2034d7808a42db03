"""A server ranks like the exact store and fuses like the embedded one; here it is the client's own local engine."""

from __future__ import annotations

import pytest
from qdrant_client import QdrantClient

from diffretriever.corpus import Passage
from diffretriever.index import Index
from diffretriever.index.cluster.collection import find, make
from diffretriever.index.cluster.location import ClusterLocation
from diffretriever.index.cluster.server import ClusterServer
from diffretriever.index.manifest import Manifest
from diffretriever.index.storage.storage import Storage
from tests.index.hashing import random_representations
from tests.index.test_agreement import assert_same

COUNT, QUERIES = 120, 8
LOCATION = ClusterLocation.parse("qdrant://memory/passages")
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")


@pytest.fixture(scope="module", params=["float16", "float32"])
def three(request, tmp_path_factory):
    """A cluster, an edge and an exact index of the same ragged passages, some replaced, some deleted."""
    passages = [Passage(f"p{i:04d}", "", metadata={"third": i % 3 == 0, "i": i}) for i in range(COUNT)]
    first, second = random_representations(COUNT, seed=1), random_representations(COUNT, seed=2)
    manifest = Manifest("cluster", Storage(request.param), first.dim, first.sparse.shape[1], first.provenance)
    server = ClusterServer(QdrantClient(":memory:"), "memory")
    home = make(server, LOCATION, manifest)
    home.store._uploads = 1  # the local engine is not made for threads
    made = [Index(manifest, home.store, home, None)]
    made += [
        Index.create(tmp_path_factory.mktemp(backend), first, backend=backend, storage=request.param)
        for backend in ("edge", "exact")
    ]
    for index in made:
        index.add_representations(passages, first)
        index.add_representations(passages[40:70], second.select(slice(40, 70)))
        index.delete([p.passage_id for p in passages[:10]])
    yield made
    for index in made:
        index.close()


@pytest.mark.parametrize("where", [None, "third=true and i>50"])
@pytest.mark.parametrize("k", [1, 10, 1000])
@pytest.mark.parametrize("mode", ["multi", "single", "sparse", "hybrid"])
def test_a_server_agrees_with_the_oracle(three, mode, k, where):
    queries = random_representations(QUERIES, seed=3, slots=(0, 4))
    cluster, edge, exact = (index.search_batch(queries, k, mode, where=where) for index in three)
    for ours, embedded, oracle in zip(cluster, edge, exact, strict=True):
        assert_same(ours, oracle, k)
        assert_same(ours, embedded, k)
        assert all(hit.exact for hit in ours)


def test_an_approximate_search_says_so_and_finds_the_same_here(three):
    queries = random_representations(QUERIES, seed=4, slots=(1, 4))
    for mode in ("multi", "single", "hybrid"):
        exact = three[2].search_batch(queries, 5, mode, where="i>30")
        fast = three[0].search_batch(queries, 5, mode, where="i>30", exact=False)
        for ours, oracle in zip(fast, exact, strict=True):
            assert_same(ours, oracle, 5)
            assert not any(hit.exact for hit in ours)


def test_passages_come_back_bit_by_bit(three):
    cluster, _, exact = three
    ids = [f"p{i:04d}" for i in range(10, COUNT)]
    pairs = zip(cluster._store.get_many(ids), exact._store.get_many(ids), strict=True)
    for ours, theirs in pairs:
        assert ours.passage == theirs.passage
        a, b = ours.representations, theirs.representations
        assert a.dense.tobytes() == b.dense.tobytes()
        assert a.pooled.tobytes() == b.pooled.tobytes()
        assert (a.sparse != b.sparse).nnz == 0
    assert cluster._store.get_many(["p0000", "nothing"]) == [None, None]


def test_the_manifest_is_found_again(three):
    store = three[0]._store
    assert find(store._server, LOCATION).manifest == three[0].manifest
