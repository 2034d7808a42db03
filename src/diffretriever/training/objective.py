"""Objective: the losses that look at all texts of a batch, over all processes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffretriever.training import losses
from diffretriever.training.settings import LossSettings


class SideTensors(NamedTuple):
    """What the losses read of N texts of one side.

    Attributes:
        dense: [N, K, D] unit vectors.
        weights: [N, R] term weights; R = 0 for a system without terms.
        ids: [N, R] their vocabulary ids, padded with -1.
        teacher: [N, J, D] the teacher's unit vectors, of J parts of a text or of all of it; None without a teacher.
    """

    dense: Tensor
    weights: Tensor
    ids: Tensor
    teacher: Tensor | None = None


class GlobalLosses(NamedTuple):
    """The losses of a batch before their factors, each a scalar.

    Attributes:
        dense: InfoNCE over MaxSim / K_q.
        sparse: InfoNCE over term weights.
        scores: divergence from the teacher's scores.
    """

    dense: Tensor
    sparse: Tensor
    scores: Tensor

    def total(self, settings: LossSettings) -> Tensor:
        """Return the weighted sum."""
        return settings.dense * self.dense + settings.sparse * self.sparse + settings.scores * self.scores


def global_losses(
    queries: SideTensors, passages: SideTensors, targets: Tensor, duplicates: Tensor | None, settings: LossSettings
) -> GlobalLosses:
    """Return the losses of Q queries against P passages (docs/method.md, 12).

    Args:
        queries: of all queries.
        passages: of all passages.
        targets: [Q] number of each query's positive.
        duplicates: [Q, P] True for passages that are no negatives; None for none.
        settings: temperatures and factors; what has the factor 0 is not computed.
    """
    zero = queries.dense.sum() * 0.0
    scores = losses.maxsim(queries.dense, passages.dense) / queries.dense.shape[1]
    dense = losses.info_nce(scores, settings.temperature, targets, duplicates) if settings.dense else zero
    sparse = kl = zero
    products = None
    if settings.sparse or settings.term_scores:
        products = losses.sparse_scores(queries.weights, queries.ids, passages.weights, passages.ids)
    if products is not None and settings.sparse:
        sparse = losses.info_nce(products, settings.sparse_temperature, targets, duplicates)
    if settings.scores:
        if queries.teacher is None or passages.teacher is None:
            raise ValueError("score distillation without the teacher's vectors")
        taught = losses.maxsim(queries.teacher, passages.teacher) / queries.teacher.shape[1]
        if products is not None and settings.term_scores:
            # A passage that has every word of the query about once is as like it in its terms as a cosine of 1.
            own = queries.weights.square().sum(dim=1, keepdim=True).clamp(min=1e-6)
            taught = taught + settings.term_scores * (products / own).detach()
        kl = losses.score_distillation(scores, taught, settings.score_temperature)
    return GlobalLosses(dense, sparse, kl)


def pad_columns(tensor: Tensor, width: int, value: float) -> Tensor:
    """Return [N, R] widened to [N, width]."""
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)
