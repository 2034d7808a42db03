"""The objectives, as functions of tensors: no model, no loop, no state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def maxsim(queries: Tensor, passages: Tensor) -> Tensor:
    """Return [Q, P] late-interaction scores of unit vectors [Q, K_q, D] and [P, K_p, D].

    Sum over query slots of the best passage slot (paper, multi-dense score). No floor at 0: training keeps
    the gradient of negative similarities.
    """
    similarity = torch.einsum("qid,pjd->qpij", queries, passages)
    return similarity.amax(dim=3).sum(dim=2)


def info_nce(scores: Tensor, temperature: float) -> Tensor:
    """Return the cross entropy of the positives on the diagonal of scores [Q, P >= Q] (paper, contrastive loss)."""
    target = torch.arange(scores.shape[0], device=scores.device)
    return F.cross_entropy(scores / temperature, target)


def score_distillation(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student), mean over queries, of two [Q, P] score matrices at one temperature."""
    return F.kl_div(
        F.log_softmax(scores / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def vector_alignment(slots: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of 1 - cos between the mean slot of [N, K, D] and the teacher's vector [N, D]."""
    return (1.0 - F.cosine_similarity(slots.mean(dim=1), teacher, dim=1)).mean()


def term_weights(logits: Tensor, own: Tensor) -> Tensor:
    """Return [N, U] weights log(1 + relu(max over slots)) of logits [N, K, U]; 0 where `own` [N, U] is false.

    Paper, sparse representation: a text weights its own content words only.
    """
    return torch.log1p(torch.relu(logits.amax(dim=1))) * own


def term_regression(logits: Tensor, own: Tensor, target: Tensor) -> Tensor:
    """Return the mean Huber distance of the texts' own term weights to target weights [N, U]; 0 without terms.

    It is taken before the relu, log(1 + x) being continued as a straight line below 0, so that a term which no
    slot speaks for still gets a gradient.
    """
    peak = logits.amax(dim=1)[own]
    if not len(peak):
        return logits.sum() * 0.0
    weight = torch.where(peak > 0, torch.log1p(peak.clamp(min=0)), peak)
    return F.smooth_l1_loss(weight, target[own])


@torch.no_grad()
def match_slots(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the word ids [N, K] reordered within each text, so that the cross entropy is as low as it can be.

    Which of two words comes first is often a matter of chance; a slot that is asked to guess it says the safest word,
    like its neighbours. Matched (Hungarian algorithm; Carion et al. 2020 for sets of objects), every word has one slot
    to say it, and slots that begin to differ are confirmed in it. -100 marks a slot without a word, before and after.

    Args:
        logits: [N, K, V] slot logits.
        targets: [N, K] vocabulary ids.
    """
    from scipy.optimize import linear_sum_assignment

    log_probabilities = logits - logits.logsumexp(dim=-1, keepdim=True)
    matched = torch.full_like(targets, -100)
    for n, row in enumerate(targets):
        wanted = row[row != -100]
        slots, order = linear_sum_assignment(-log_probabilities[n][:, wanted].numpy())
        matched[n, torch.from_numpy(slots)] = wanted[torch.from_numpy(order)]
    return matched


def slot_words(logits: Tensor, targets: Tensor, offset: Tensor) -> Tensor:
    """Return the cross entropy of slot logits [T, V] against the word id [T] each slot should say; 0 when T = 0.

    Args:
        logits: [T, V] over the whole vocabulary.
        targets: [T] vocabulary ids.
        offset: [V] added to the logits in training alone: a share of the words' log prior (logit adjustment, Menon et
            al. 2021). The model then need not spend its hidden states on what is common to all texts, and its logits
            say how much more likely a word is here than elsewhere, which is what a term weight should say, too.
    """
    return F.cross_entropy(logits + offset, targets) if len(targets) else logits.sum() * 0.0
