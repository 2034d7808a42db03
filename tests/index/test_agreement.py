"""Every backend gives the numbers of the exact one."""

from __future__ import annotations

import numpy as np
import pytest

from diffretriever.corpus import Passage
from diffretriever.index import Hit, Index
from diffretriever.scoring import maxsim, single_dense, sparse_dot
from tests.index.hashing import random_representations

COUNT, QUERIES = 400, 25
ROUNDING = 2e-6


@pytest.fixture(scope="module", params=["float16", "float32"])
def pair(request, tmp_path_factory):
    """Both backends holding the same random passages of 0 to 6 vectors, some replaced, some deleted."""
    passages = [Passage(f"p{i:04d}", "", metadata={"third": i % 3 == 0, "i": i}) for i in range(COUNT)]
    first, second = random_representations(COUNT, seed=1), random_representations(COUNT, seed=2)
    made = []
    for backend in ("edge", "exact"):
        folder = tmp_path_factory.mktemp(backend)
        index = Index.create(folder, first, backend=backend, storage=request.param)
        index.add_representations(passages, first)
        index.add_representations(passages[100:180], second.select(slice(100, 180)))
        index.delete([p.passage_id for p in passages[:20]])
        made.append(index)
    yield made
    for index in made:
        index.close()


def assert_same(ours: list[Hit], oracle: list[Hit], k: int) -> None:
    """Assert equal scores at every rank and for every passage; only what ties within rounding may change places."""
    assert len(ours) == len(oracle)
    np.testing.assert_allclose([h.score for h in ours], [h.score for h in oracle], atol=ROUNDING)
    expected = {hit.passage_id: hit.score for hit in oracle}
    for hit in ours:
        if hit.passage_id in expected or len(oracle) < k:
            assert hit.score == pytest.approx(expected[hit.passage_id], abs=ROUNDING)
        else:
            assert hit.score == pytest.approx(oracle[-1].score, abs=ROUNDING)


@pytest.mark.parametrize("where", [None, "third=true and i>50"])
@pytest.mark.parametrize("k", [1, 10, 1000])
@pytest.mark.parametrize("mode", ["multi", "single", "sparse", "hybrid"])
def test_edge_agrees_with_the_oracle(pair, mode, k, where):
    queries = random_representations(QUERIES, seed=3, slots=(0, 4))
    edge, exact = (index.search_batch(queries, k, mode, where=where) for index in pair)
    for ours, oracle in zip(edge, exact, strict=True):
        assert_same(ours, oracle, k)
        assert all(hit.exact for hit in ours)


def test_the_oracle_agrees_with_the_scores_by_definition(tmp_path):
    queries, passages = random_representations(QUERIES, seed=3), random_representations(COUNT, seed=1)
    ids = [f"p{i:04d}" for i in range(COUNT)]
    scores = {
        "multi": maxsim(queries, passages).numpy(),
        "single": single_dense(queries, passages).numpy(),
        "sparse": sparse_dot(queries, passages).toarray(),
    }
    with Index.create(None, passages, backend="exact", storage="float32") as index:
        index.add_representations([Passage(i, "") for i in ids], passages)
        for mode, expected in scores.items():
            found = index.search_batch(queries, COUNT, mode)
            for q, hits in enumerate(found):
                listed = np.diff(passages.offsets) > 0 if mode != "sparse" else expected[q] > 0
                asks = mode == "sparse" or len(queries.vectors(q)) > 0
                assert len(hits) == (listed.sum() if asks else 0)
                for hit in hits:
                    assert hit.score == pytest.approx(expected[q, int(hit.passage_id[1:])], abs=1e-5)
