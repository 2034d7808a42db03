from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffretriever.training import losses

Q = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
P = torch.tensor([[[1.0, 0.0], [0.6, 0.8]], [[-1.0, 0.0], [0.0, -1.0]]])


def test_maxsim_sums_the_best_passage_slot_and_has_no_floor():
    # slot 0 finds 1, slot 1 finds .8; against the second passage the best of (-1, 0) and of (0, -1) is 0
    torch.testing.assert_close(losses.maxsim(Q, P), torch.tensor([[1.8, 0.0]]))
    torch.testing.assert_close(losses.maxsim(Q, -P[:1]), torch.tensor([[-0.6, 0.0]]).sum(1, keepdim=True))


def test_info_nce_of_two_pairs_by_hand():
    scores = torch.tensor([[0.2, 0.0], [0.1, 0.3]])
    by_hand = (math.log(1 + math.exp(-0.2 / 0.1)) + math.log(1 + math.exp(-0.2 / 0.1))) / 2
    assert losses.info_nce(scores, 0.1).item() == pytest.approx(by_hand, rel=1e-6)


def test_info_nce_takes_more_passages_than_queries():
    scores = torch.zeros(2, 5)
    assert losses.info_nce(scores, 0.02).item() == pytest.approx(math.log(5), rel=1e-6)


def test_score_distillation_by_hand_and_zero_at_the_teacher():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.1, 0.0]])
    p = 1 / (1 + math.exp(-1.0))
    by_hand = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert losses.score_distillation(student, teacher, 0.1).item() == pytest.approx(by_hand, rel=1e-5)
    assert losses.score_distillation(teacher, teacher, 0.1).item() == pytest.approx(0.0, abs=1e-7)


def test_vector_alignment_looks_at_the_mean_slot():
    slots = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert losses.vector_alignment(slots, torch.tensor([[2.0, 2.0]])).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.vector_alignment(slots, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(
        1 - math.sqrt(0.5), rel=1e-5
    )


def test_term_weights_are_log1p_relu_of_the_best_slot_for_own_terms_only():
    logits = torch.tensor([[[1.0, -2.0, 5.0], [3.0, -1.0, 0.0]]])
    own = torch.tensor([[True, True, False]])
    torch.testing.assert_close(losses.term_weights(logits, own), torch.tensor([[math.log(4.0), 0.0, 0.0]]))


def test_term_regression_pulls_up_a_term_no_slot_speaks_for():
    logits = torch.full((1, 2, 1), -3.0, requires_grad=True)
    losses.term_regression(logits, torch.tensor([[True]]), torch.tensor([[1.0]])).backward()
    assert (logits.grad < 0).all()


def test_term_regression_is_zero_at_its_target_and_without_terms():
    target = torch.tensor([[1.5]])
    exact = torch.expm1(target)[:, None, :]
    assert losses.term_regression(exact, torch.tensor([[True]]), target).item() == pytest.approx(0.0, abs=1e-10)
    assert losses.term_regression(exact, torch.tensor([[False]]), target).item() == 0.0


def test_slot_words_by_hand_and_without_targets():
    logits, none = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(2)
    assert losses.slot_words(logits, torch.tensor([1]), none).item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    offset = torch.tensor([math.log(3.0), 0.0])
    assert losses.slot_words(logits, torch.tensor([1]), offset).item() == pytest.approx(math.log(2), rel=1e-6)
    assert losses.slot_words(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), none).item() == 0.0


def test_matching_gives_every_word_the_slot_that_says_it():
    logits = torch.tensor([[[0.0, 1.0, 0.0], [5.0, 4.0, 0.0], [0.0, 0.0, 0.0]]])
    # slot 1 says both words best; in the best assignment it takes word 0 and slot 0 takes word 1
    matched = losses.match_slots(logits, torch.tensor([[1, 0, -100]]))
    assert matched.tolist() == [[1, 0, -100]]
    assert losses.match_slots(logits, torch.tensor([[0, 1, -100]])).tolist() == [[1, 0, -100]]
    assert losses.match_slots(logits, torch.full((1, 3), -100)).tolist() == [[-100] * 3]


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 10_000))
def test_no_order_of_the_words_beats_the_matched_one(slots, words, seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, slots, 9, generator=g)
    ids = torch.randperm(9, generator=g)[: min(words, slots)]
    row = torch.full((slots,), -100)
    row[: len(ids)] = ids
    log_probabilities = logits[0].log_softmax(-1)

    def total(order):
        return sum(float(log_probabilities[k, i]) for k, i in enumerate(order) if i != -100)

    best = max(total(order) for order in permutations(row.tolist()))
    matched = losses.match_slots(logits, row[None])[0].tolist()
    assert sorted(matched) == sorted(row.tolist())
    assert total(matched) == pytest.approx(best, abs=1e-5)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 10_000))
def test_maxsim_equals_the_loop(queries, passages, slots, seed):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(queries, slots, 8, generator=g)
    p = torch.randn(passages, slots + 1, 8, generator=g)
    loop = torch.tensor([[sum(max(float(a @ b) for b in y) for a in x) for y in p] for x in q])
    torch.testing.assert_close(losses.maxsim(q, p), loop, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("length", "parts"), [(6, 3), (7, 3), (2, 4), (1, 16), (5, 16), (33, 16)])
def test_parts_of_a_text_are_equal_and_in_order(length, parts):
    shares = losses.part_shares(torch.tensor([length, 5]), parts, 40)
    assert torch.allclose(shares.sum(dim=2), torch.ones(2, parts))
    assert not shares[0, :, length:].any()
    # Every token counts the same in the mean of the parts, which is thus the mean of the tokens.
    assert torch.allclose(shares[0].mean(dim=0)[:length], torch.full((length,), 1 / length))
    centres = shares[0] @ torch.arange(40.0)
    assert (centres.diff() >= 0).all()


@pytest.mark.parametrize(
    ("length", "parts", "least"), [(33, 16, 8), (100, 16, 24), (10, 4, 24), (64, 4, 16), (1, 2, 5)]
)
def test_small_parts_are_widened_around_their_middle(length, parts, least):
    shares = losses.part_shares(torch.tensor([length, length - 1]), parts, 120, least)[0]
    size = max(length / parts, min(least, length))
    assert torch.allclose(shares.sum(dim=1), torch.ones(parts))
    assert not shares[:, length:].any()
    assert shares.max() == pytest.approx(min(1.0, 1 / size))
    centres = shares @ (torch.arange(120.0) + 0.5)
    middles = (torch.arange(parts) + 0.5) * length / parts
    assert torch.allclose(centres, middles.clamp(size / 2, length - size / 2), atol=1e-4)
    if least <= length / parts:
        torch.testing.assert_close(shares, losses.part_shares(torch.tensor([length]), parts, 120)[0])


def test_slots_are_compared_with_the_parts_in_order():
    slots = torch.nn.functional.normalize(torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert float(losses.part_alignment(slots, slots)) == pytest.approx(0.0, abs=1e-6)
    turned = losses.part_alignment(slots, slots.flip(1))
    expected = (1 - (slots * slots.flip(1)).sum(-1)).mean(1).sum()
    assert float(turned) == pytest.approx(float(expected), rel=1e-5)
    assert float(turned) > 0.1


def test_a_slot_is_to_be_as_like_the_parts_as_its_own_part_is():
    g = torch.Generator().manual_seed(0)
    parts = torch.nn.functional.normalize(torch.randn(2, 4, 8, generator=g), dim=-1)
    assert float(losses.part_distillation(parts, parts, 0.1)) == pytest.approx(0.0, abs=1e-5)
    slots = torch.nn.functional.normalize(torch.randn(2, 4, 8, generator=g), dim=-1)
    expected = 0.0
    for text in range(2):
        for k in range(4):
            wanted = torch.softmax(parts[text] @ parts[text, k] / 0.1, 0)
            found = torch.softmax(parts[text] @ slots[text, k] / 0.1, 0)
            expected += float((wanted * (wanted.log() - found.log())).sum()) / 4
    assert float(losses.part_distillation(slots, parts, 0.1)) == pytest.approx(expected, rel=1e-4)
    # Equal parts, as a text shorter than the slots has: it does not matter which of them a slot is like.
    doubled = parts[:, [0, 0, 1, 1]]
    assert float(losses.part_distillation(doubled[:, [1, 0, 3, 2]], doubled, 0.1)) == pytest.approx(0.0, abs=1e-5)


def test_maxsim_of_many_passages_in_blocks_is_that_of_one_block(monkeypatch):
    g = torch.Generator().manual_seed(0)
    q = torch.randn(3, 2, 8, generator=g, requires_grad=True)
    p = torch.randn(11, 4, 8, generator=g, requires_grad=True)
    factor = torch.randn(3, 11, generator=g)
    whole = losses.maxsim(q, p)
    expected = torch.autograd.grad((whole * factor).sum(), (q, p))
    monkeypatch.setattr(losses, "_PRODUCTS_AT_ONCE", 3 * 2 * 4 * 2)
    blocks = losses.maxsim(q, p)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(torch.autograd.grad((blocks * factor).sum(), (q, p)), expected)


def test_sparse_scores_are_the_products_over_the_whole_vocabulary():
    g = torch.Generator().manual_seed(0)
    sides, full = [], []
    for count, width in ((3, 4), (5, 6)):
        ids = torch.stack([torch.randperm(12, generator=g)[:width] for _ in range(count)])
        ids[0, -2:] = -1
        weights = torch.rand(count, width, generator=g) * (ids >= 0)
        dense = torch.zeros(count, 13).scatter(1, ids % 13, weights)[:, :12]
        sides += [weights, ids]
        full.append(dense)
    torch.testing.assert_close(losses.sparse_scores(*sides), full[0] @ full[1].T)
    nothing = torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.long)
    assert losses.sparse_scores(*nothing, *sides[2:]).tolist() == [[0.0] * 5] * 2
