from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffretriever import late_interaction
from diffretriever.errors import InputError
from diffretriever.late_interaction import Slots, maxsim_blocks
from diffretriever.representations import Provenance, Representations
from diffretriever.scoring import best_passages, maxsim, single_dense, sparse_dot, top_k

PROVENANCE = Provenance("m", "f", "p", "h", "default", "slot", 4, 4, 1, 32, 64, "float32", "0")


def make(lengths: list[int], *, dim: int = 8, vocabulary: int = 30, seed: int = 0) -> Representations:
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((sum(lengths), dim)).astype(np.float32)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    pooled = np.zeros((len(lengths), dim), np.float32)
    for i, length in enumerate(lengths):
        if length:
            pooled[i] = dense[offsets[i] : offsets[i + 1]].mean(0)
    sparse = rng.random((len(lengths), vocabulary), np.float32) * (rng.random((len(lengths), vocabulary)) < 0.2)
    return Representations(dense, offsets, pooled, sp.csr_matrix(sparse), None, PROVENANCE)


def maxsim_by_loops(queries: Representations, passages: Representations, floor: bool) -> np.ndarray:
    scores = np.zeros((len(queries), len(passages)))
    for q in range(len(queries)):
        for p in range(len(passages)):
            for vector in queries.vectors(q).astype(np.float64):
                if len(passages.vectors(p)):
                    best = max(float(vector @ other) for other in passages.vectors(p))
                    scores[q, p] += max(0.0, best) if floor else best
    return scores


lengths = st.lists(st.integers(0, 5), min_size=0, max_size=8)


@given(lengths, lengths, st.booleans(), st.integers(1, 60))
def test_maxsim_is_the_sum_of_the_best_matches_whatever_the_block(left, right, floor, block_values):
    queries, passages = make(left, seed=1), make(right, seed=2)
    scores = maxsim(queries, passages, floor=floor, block_values=block_values)
    np.testing.assert_allclose(scores.numpy(), maxsim_by_loops(queries, passages, floor), atol=1e-5)
    assert scores.dtype == torch.float32
    assert scores.shape == (len(left), len(right))


@given(lengths, lengths, st.integers(1, 20))
def test_spans_of_passages_make_up_the_whole(left, right, values):
    queries, passages = make(left, seed=1), make(right, seed=2)
    sides = [Slots(texts.dense, texts.offsets) for texts in (queries, passages)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(late_interaction, "SCORE_VALUES", values)
        blocks = list(maxsim_blocks(*sides, floor=True))
    assert [span.start for span, _ in blocks] == [0, *[span.stop for span, _ in blocks[:-1]]][: len(blocks)]
    assert all(scores.numel() <= max(values, len(left)) for _, scores in blocks)
    found = np.concatenate([np.zeros((len(left), 0)), *(scores.numpy() for _, scores in blocks)], axis=1)
    np.testing.assert_allclose(found, maxsim_by_loops(queries, passages, True), atol=1e-5)


def test_vectors_mapped_from_a_file_score_as_those_in_memory(tmp_path):
    queries, passages = make([4] * 3, seed=12), make([3, 1, 0, 4] * 50, seed=13)
    np.save(tmp_path / "dense.npy", passages.dense.astype(np.float16))
    mapped = np.load(tmp_path / "dense.npy", mmap_mode="r")
    asked = Slots(queries.dense, queries.offsets)
    ((_, found),) = maxsim_blocks(asked, Slots(mapped, passages.offsets), floor=True)
    rounded = passages.dense.astype(np.float16).astype(np.float32)
    ((_, expected),) = maxsim_blocks(asked, Slots(rounded, passages.offsets), floor=True)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("query_lengths", [[1], [4], [3, 0, 2], [4] * 7, [16] * 9])
@pytest.mark.parametrize("dim", [8, 100, 384])
def test_equal_passages_score_equal_to_the_bit_wherever_they_lie(query_lengths, dim):
    queries, others = make(query_lengths, dim=dim, seed=14), make([3, 1, 16, 2, 5] * 31, dim=dim, seed=15)
    twin = make([3], dim=dim, seed=16)
    vectors, counts, twins = [], [], []
    for i in range(len(others)):
        vectors += [twin.dense, others.vectors(i)]
        counts += [3, len(others.vectors(i))]
        twins.append(2 * i)
    passages = Slots(np.concatenate(vectors), np.concatenate([[0], np.cumsum(counts)]))
    for block_values in (1, 1000, 40000, None):
        blocks = maxsim_blocks(Slots(queries.dense, queries.offsets), passages, floor=True, block_values=block_values)
        scores = torch.cat([scores for _, scores in blocks], dim=1)[:, twins]
        assert torch.equal(scores, scores[:, :1].expand_as(scores))


@pytest.mark.parametrize("dim", [8, 384])
@pytest.mark.parametrize("vectors", [1, 63, 64, 65, 700])
def test_fp32_scores_lie_close_to_those_of_double_precision(dim, vectors):
    queries, passages = make([4] * 5, dim=dim, seed=17), make([4] * vectors, dim=dim, seed=18)
    similarities = np.einsum(
        "qid,pjd->qpij",
        queries.dense.reshape(5, 4, dim).astype(np.float64),
        passages.dense.reshape(vectors, 4, dim).astype(np.float64),
    )
    expected = np.maximum(similarities.max(axis=3), 0).sum(axis=2)
    np.testing.assert_allclose(maxsim(queries, passages).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("mode", ["single", "multi", "sparse"])
@given(lengths, lengths, st.integers(1, 9), st.integers(1, 20))
def test_the_best_passages_are_those_of_all_scores(mode, left, right, k, values):
    queries, passages = make(left, seed=1), make(right, seed=2)
    scores = {
        "single": lambda: single_dense(queries, passages),
        "multi": lambda: maxsim(queries, passages),
        "sparse": lambda: torch.from_numpy(sparse_dot(queries, passages).toarray()),
    }[mode]()
    expected = top_k(scores, k)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("late_interaction", "scoring"):
            patch.setattr(f"diffretriever.{module}.SCORE_VALUES", values)
        best = best_passages(queries, passages, k, mode)
    np.testing.assert_allclose(best.scores.numpy(), expected.scores.numpy(), atol=1e-6)
    assert torch.equal(best.positions, expected.positions)


def test_the_floor_counts_a_negative_best_match_as_nothing():
    query, passage = make([1]), make([1])
    opposite = Representations(-passage.dense, passage.offsets, -passage.pooled, passage.sparse, None, PROVENANCE)
    assert maxsim(query, opposite).item() == 0.0
    assert maxsim(query, opposite, floor=False).item() == pytest.approx(-1.0)


def test_a_zero_vector_among_others_matches_nothing():
    query, passages = make([2], seed=3), make([2, 2], seed=4)
    dense = passages.dense.copy()
    dense[1] = 0.0
    zeroed = Representations(dense, passages.offsets, passages.pooled, passages.sparse, None, PROVENANCE)
    alone = make([2, 2], seed=4).select([0])
    only_first = Representations(alone.dense[:1].copy(), np.array([0, 1]), alone.pooled, alone.sparse, None, PROVENANCE)
    assert maxsim(query, zeroed)[0, 0] == pytest.approx(maxsim(query, only_first).item())


def test_single_dense_keeps_the_norm_of_the_mean():
    queries, passages = make([1]), make([4, 0], seed=5)
    scores = single_dense(queries, passages)
    expected = queries.dense[0] @ passages.dense.mean(0)
    assert scores[0, 0].item() == pytest.approx(float(expected), abs=1e-6)
    assert scores[0, 1].item() == 0.0


def test_sparse_dot_is_the_dot_product_of_the_weights():
    queries, passages = make([1] * 4, seed=6), make([1] * 9, seed=7)
    expected = queries.sparse.toarray().astype(np.float64) @ passages.sparse.toarray().astype(np.float64).T
    scores = sparse_dot(queries, passages)
    np.testing.assert_allclose(scores.toarray(), expected, rtol=1e-6)
    assert scores.dtype == np.float32
    assert scores.nnz == np.count_nonzero(expected)


def test_bfloat16_rounds_inputs_and_products():
    queries, passages = make([4], dim=64, seed=8), make([4] * 50, dim=64, seed=9)
    for score in (single_dense, maxsim):
        full, rounded = score(queries, passages), score(queries, passages, precision="bfloat16")
        assert not torch.equal(full, rounded)
        assert torch.allclose(full, rounded, atol=0.03)
    pooled = single_dense(queries, passages, precision="bfloat16")
    assert torch.equal(pooled, pooled.bfloat16().float())
    sparse = sparse_dot(queries, passages, precision="bfloat16").data
    assert np.array_equal(sparse, torch.from_numpy(sparse).bfloat16().float().numpy())


def test_fp32_keeps_apart_what_bfloat16_ties():
    queries, passages = make([1], dim=64, seed=10), make([1] * 2000, dim=64, seed=11)
    assert len(single_dense(queries, passages).unique()) > 1900
    assert len(single_dense(queries, passages, precision="bfloat16").unique()) < 1300


@given(st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), max_size=4), st.integers(1, 9))
def test_top_k_orders_by_score_then_position(rows, k):
    scores = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 7)
    best = top_k(scores, k)
    for row, values, positions in zip(rows, best.scores.tolist(), best.positions.tolist(), strict=True):
        expected = sorted(range(7), key=lambda i: (-row[i], i))[:k]
        assert positions == expected
        assert values == [row[i] for i in expected]


def test_top_k_of_no_passages_is_empty():
    assert top_k(torch.zeros(2, 0), 5).positions.shape == (2, 0)


@pytest.mark.parametrize(("scores", "k"), [(torch.zeros(2, 3), 0), (torch.zeros(3), 1)])
def test_top_k_refuses_what_it_cannot_order(scores, k):
    with pytest.raises(InputError):
        top_k(scores, k)


def test_different_spaces_are_refused():
    with pytest.raises(InputError, match="8 dimensions, passages of 4"):
        maxsim(make([1]), make([1], dim=4))
    with pytest.raises(InputError, match="8 dimensions, passages of 4"):
        single_dense(make([1]), make([1], dim=4))
    with pytest.raises(InputError, match="vocabulary of 30, passages one of 7"):
        sparse_dot(make([1]), make([1], vocabulary=7))
    with pytest.raises(InputError, match="precision"):
        maxsim(make([1]), make([1]), precision="float64")  # type: ignore[arg-type]
