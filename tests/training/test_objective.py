from __future__ import annotations

import pytest
import torch

from diffretriever.training import losses
from diffretriever.training.objective import SideTensors, global_losses
from diffretriever.training.settings import LossSettings

# One query of the words 5 and 7 (weights 1 and 2); the first passage has both, the second neither. Dense vectors and
# those of the teacher find the passages equally good.
VECTORS = torch.tensor([[[1.0, 0.0]]])
SAME = torch.tensor([[[0.6, 0.8]], [[0.6, -0.8]]])
QUERY = SideTensors(VECTORS, torch.tensor([[1.0, 2.0]]), torch.tensor([[5, 7]]), VECTORS)
PASSAGES = SideTensors(SAME, torch.tensor([[1.0, 1.0], [3.0, 0.0]]), torch.tensor([[5, 7], [6, -1]]), SAME)
TARGETS = torch.tensor([0])


def scores_loss(**changes):
    settings = LossSettings(dense=0.0, sparse=0.0, scores=1.0, terms=1.0, score_temperature=0.1, **changes)
    return global_losses(QUERY, PASSAGES, TARGETS, None, settings)


def test_a_student_with_its_teachers_vectors_has_nothing_to_learn_but_from_terms():
    assert float(scores_loss().scores) == pytest.approx(0.0, abs=1e-7)
    assert float(scores_loss(term_scores=0.2).scores) > 0.01


def test_term_scores_add_the_sparse_score_per_the_querys_product_with_itself():
    # 1 * 1 + 2 * 1 = 3, of 1 * 1 + 2 * 2 = 5
    taught = torch.tensor([[0.6 + 0.2 * 3 / 5, 0.6]])
    by_hand = losses.score_distillation(torch.tensor([[0.6, 0.6]]), taught, 0.1)
    assert float(scores_loss(term_scores=0.2).scores) == pytest.approx(float(by_hand), rel=1e-6)


def test_terms_teach_the_dense_vectors_and_are_not_taught_by_them():
    weights = PASSAGES.weights.clone().requires_grad_()
    dense = SAME.clone().requires_grad_()
    settings = LossSettings(dense=0.0, sparse=0.0, scores=1.0, terms=1.0, term_scores=0.2)
    passages = PASSAGES._replace(weights=weights, dense=dense)
    loss = global_losses(QUERY, passages, TARGETS, None, settings).total(settings)
    by_dense, by_weights = torch.autograd.grad(loss, [dense, weights], allow_unused=True)
    assert by_weights is None
    # The passage with the query's words should come nearer to it, the other should go away.
    assert by_dense[0, 0, 0] < 0 < by_dense[1, 0, 0]


def test_without_words_of_the_query_terms_say_nothing():
    settings = LossSettings(dense=0.0, sparse=0.0, scores=1.0, terms=1.0, term_scores=0.2)
    silent = QUERY._replace(weights=torch.zeros(1, 2))
    assert float(global_losses(silent, PASSAGES, TARGETS, None, settings).scores) == pytest.approx(0.0, abs=1e-7)
