"""The objectives, as functions of tensors: no model, no loop, no state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Products of slots held at once by `maxsim` with a graph; more are computed again in the backward pass.
_PRODUCTS_AT_ONCE = 1 << 22


def maxsim(queries: Tensor, passages: Tensor) -> Tensor:
    """Return [Q, P] late-interaction scores of unit vectors [Q, K_q, D] and [P, K_p, D].

    Sum over query slots of the best passage slot (paper, multi-dense score). No floor at 0: training keeps
    the gradient of negative similarities.
    """
    at_once = max(1, _PRODUCTS_AT_ONCE // max(1, queries.shape[0] * queries.shape[1] * passages.shape[1]))
    if len(passages) <= at_once:
        return _maxsim(queries, passages)
    from torch.utils.checkpoint import checkpoint

    return torch.cat(
        [checkpoint(_maxsim, queries, part, use_reentrant=False) for part in torch.split(passages, at_once)], 1
    )


def _maxsim(queries: Tensor, passages: Tensor) -> Tensor:
    products = queries.flatten(0, 1) @ passages.flatten(0, 1).T
    return products.view(*queries.shape[:2], *passages.shape[:2]).amax(dim=3).sum(dim=1)


def sparse_scores(query_weights: Tensor, query_ids: Tensor, passage_weights: Tensor, passage_ids: Tensor) -> Tensor:
    """Return [Q, P] products of term weights (paper, sparse score).

    Args:
        query_weights: [Q, R_q] weights.
        query_ids: [Q, R_q] their vocabulary ids, distinct in a row, padded with -1.
        passage_weights: [P, R_p] weights.
        passage_ids: [P, R_p] their ids.
    """
    union = torch.unique(query_ids)
    union = union[union >= 0]
    # Ids that no query holds weigh nothing in any product, so they share the last column, which is cut off.
    size = 1 + max(_largest(query_ids), _largest(passage_ids))
    columns = torch.full((size + 1,), len(union), device=union.device)
    columns[union] = torch.arange(len(union), device=union.device)
    sides = []
    for weights, ids in ((query_weights, query_ids), (passage_weights, passage_ids)):
        dense = weights.new_zeros(len(weights), len(union) + 1)
        sides.append(dense.scatter_add(1, columns[ids], weights)[:, :-1])
    return sides[0] @ sides[1].T


def _largest(ids: Tensor) -> int:
    return int(ids.max()) if ids.numel() else -1


def info_nce(scores: Tensor, temperature: float, targets: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
    """Return the cross entropy of the positives among scores [Q, P] (paper, contrastive loss).

    Args:
        scores: [Q, P] scores.
        temperature: they are divided by it.
        targets: [Q] number of each query's positive; the diagonal by default.
        masked: [Q, P] True for passages that are no negatives.
    """
    if targets is None:
        targets = torch.arange(scores.shape[0], device=scores.device)
    if masked is not None:
        scores = scores.masked_fill(masked, -torch.inf)
    return F.cross_entropy(scores / temperature, targets)


def score_distillation(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student), mean over queries, of two [Q, P] score matrices at one temperature."""
    return F.kl_div(
        F.log_softmax(scores / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def vector_alignment(slots: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum of 1 - cos between the mean slot of [N, K, D] and the teacher's vector [N, D].

    A text may have fewer slots, the others being zeros: that changes the length of its mean, not the direction.
    """
    return (1.0 - F.cosine_similarity(slots.mean(dim=1), teacher, dim=1)).sum()


def part_alignment(slots: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum over texts of the mean of 1 - cos between slot k of [N, K, D] and the teacher's k-th part."""
    return (1.0 - F.cosine_similarity(slots, teacher, dim=2)).mean(dim=1).sum()


def part_distillation(slots: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the sum over texts of KL(teacher || student), mean over k, of how like slot k is to each of the parts.

    Slots that all say the whole text are near every part, and `part_alignment` is content with that for long; this
    asks slot k which part is its own. The teacher's part k is like its neighbours, too, and in a short text equal.

    Args:
        slots: [N, K, D] unit vectors.
        teacher: [N, K, D] the teacher's unit vectors of the parts.
        temperature: the cosines are divided by it.
    """
    wanted = F.log_softmax(teacher @ teacher.transpose(1, 2) / temperature, dim=2)
    found = F.log_softmax(slots @ teacher.transpose(1, 2) / temperature, dim=2)
    return F.kl_div(found, wanted, reduction="sum", log_target=True) / slots.shape[1]


def part_shares(lengths: Tensor, parts: int, width: int, least: int = 0) -> Tensor:
    """Return how much of each token belongs to each of the equal parts of texts, [N, parts, width]; rows add up to 1.

    A text shorter than the number of parts has tokens that belong to several. Parts of fewer than `least` tokens are
    widened to so many around their middle, inside the text, and then overlap.

    Args:
        lengths: [N] tokens of the texts.
        parts: into how many each is cut.
        width: of the batch, in tokens.
        least: tokens of a part at least; of a text that has as many.
    """
    length = lengths.double()[:, None, None]
    size = torch.maximum(length / parts, length.clamp(max=least))
    middle = (torch.arange(parts, device=lengths.device, dtype=torch.float64)[:, None] + 0.5) * length / parts
    start = torch.minimum((middle - size / 2).clamp(min=0), length - size)
    token = torch.arange(width, device=lengths.device, dtype=torch.float64)
    overlap = torch.minimum(start + size, token + 1) - torch.maximum(start, token)
    return (overlap.clamp(min=0) / size).float()


def term_weights(logits: Tensor, own: Tensor) -> Tensor:
    """Return [N, R] weights log(1 + relu(max over slots)) of logits [N, K, R]; 0 where `own` [N, R] is false.

    Paper, sparse representation: a text weights its own content words only.
    """
    return torch.log1p(torch.relu(logits.amax(dim=1))) * own


def term_regression(logits: Tensor, own: Tensor, target: Tensor) -> Tensor:
    """Return the summed Huber distance of the texts' own term weights to target weights [N, R].

    It is taken before the relu, log(1 + x) being continued as a straight line below 0, so that a term which no
    slot speaks for still gets a gradient.

    Args:
        logits: [N, K, R] slot logits.
        own: [N, R] True for a text's own terms.
        target: [N, R] what their weights should be.
    """
    peak = logits.amax(dim=1)[own]
    weight = torch.where(peak > 0, torch.log1p(peak.clamp(min=0)), peak)
    return F.smooth_l1_loss(weight, target[own], reduction="sum")


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

    columns = targets.clamp(min=0)[:, None, :].expand(*logits.shape[:2], -1)
    costs = (logits.logsumexp(dim=-1, keepdim=True) - logits.gather(2, columns)).cpu()
    matched = torch.full(targets.shape, -100)
    for row, cost, wanted in zip(matched, costs, targets.cpu(), strict=True):
        given = torch.nonzero(wanted != -100)[:, 0]
        slots, order = linear_sum_assignment(cost[:, given].numpy())
        row[torch.from_numpy(slots)] = wanted[given[torch.from_numpy(order)]]
    return matched.to(targets.device)


def slot_words(logits: Tensor, targets: Tensor, offset: Tensor) -> Tensor:
    """Return the summed cross entropy of slot logits [T, V] against the word id [T] each slot should say.

    Args:
        logits: [T, V] over the whole vocabulary.
        targets: [T] vocabulary ids.
        offset: [V] added to the logits in training alone: a share of the words' log prior (logit adjustment, Menon et
            al. 2021). The model then need not spend its hidden states on what is common to all texts, and its logits
            say how much more likely a word is here than elsewhere, which is what a term weight should say, too.
    """
    return F.cross_entropy(logits + offset, targets, reduction="sum")


def slot_cosine(slots: Tensor) -> Tensor:
    """Return the sum over texts of the mean cosine between different slots, of unit vectors [N, K, D]; 0 for one slot.

    A text may have fewer than K slots, the others being zeros.
    """
    k = slots.any(dim=2).sum(dim=1)
    total = slots.sum(dim=1).square().sum(dim=-1)
    return ((total - k) / (k * (k - 1)).clamp(min=1)).sum()


def denoising(logits: Tensor, tokens: Tensor, factors: Tensor) -> Tensor:
    """Return the masked-diffusion loss summed over texts: cross entropy of masked tokens, each times 1 / (t * length).

    An upper bound on the negative log-likelihood per token (Sahoo et al. 2024; Nie et al. 2025).

    Args:
        logits: [M, V] logits of the masked tokens.
        tokens: [M] what was there.
        factors: [M] 1 / (t * length) of each one's text, t being the probability that a token was masked.
    """
    return (F.cross_entropy(logits, tokens, reduction="none") * factors).sum()
