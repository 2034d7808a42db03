"""Decoding: greedy answers of a causal backbone, with a cache of keys and values, and the states that predict them."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.cache import cache_keyword


class Answers(NamedTuple):
    """What B prompts are answered with.

    Attributes:
        hidden: [B, K, D] hidden states after the final norm that predict the tokens.
        tokens: [B, K] the most probable tokens; -1 after every answer has ended.
        keep: [B, K] True before an answer's end. A stop token ends it, unless it is the first token.
    """

    hidden: torch.Tensor
    tokens: torch.Tensor
    keep: torch.Tensor


def decode(
    backbone: Backbone, ids: torch.Tensor, mask: torch.Tensor, length: int, stop_ids: Collection[int]
) -> Answers:
    """Return the greedy answers of K = `length` tokens to B prompts.

    Prompts of one batch may differ in length: padding keys are masked, and every token has the position it would have
    alone, so an answer does not depend on its batch. The last token is predicted and not fed. In training the states
    come from one forward pass over prompts and answers, with gradients or without: layers that recompute their
    activations keep no keys and values, and a chunk's first pass must be like its second.

    Args:
        backbone: a causal language model.
        ids: [B, L] prompts, padded on the right.
        mask: [B, L] True where a token is real.
        length: K.
        stop_ids: tokens that end an answer.
    """
    training = backbone.model.training
    if not training and not torch.is_grad_enabled():
        return _decoded(backbone, ids, mask, length, stop_ids)
    backbone.model.eval()
    try:
        with torch.no_grad():
            answers = _decoded(backbone, ids, mask, length, stop_ids)
    finally:
        backbone.model.train(training)
    return answers._replace(hidden=_states(backbone, ids, mask, answers.tokens))


def _states(backbone: Backbone, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the hidden states [B, K, D] that predict the tokens [B, K] of answers to B prompts, in one pass."""
    count, fed = len(ids), tokens[:, :-1]
    places = mask.sum(1, keepdim=True) - 1 + torch.arange(tokens.shape[1], device=ids.device)
    whole = torch.cat([ids, torch.zeros_like(fed)], dim=1).scatter(1, places[:, 1:], fed.clamp(min=0))
    real = torch.cat([mask, torch.zeros_like(fed, dtype=torch.bool)], dim=1).scatter(1, places[:, 1:], fed >= 0)
    hidden = backbone.hidden_states(whole, real)
    return hidden.gather(1, places.to(hidden.device)[:, :, None].expand(count, -1, hidden.shape[-1]))


def _decoded(
    backbone: Backbone, ids: torch.Tensor, mask: torch.Tensor, length: int, stop_ids: Collection[int]
) -> Answers:
    from transformers import DynamicCache

    cache = DynamicCache()
    lengths = mask.sum(1)
    stops = torch.tensor(sorted(stop_ids), device=ids.device)
    state = _last(backbone, ids, mask, None, cache)
    state = state.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, state.shape[-1]))
    states: list[torch.Tensor] = []
    tokens: list[torch.Tensor] = []
    open_answers = torch.ones(len(ids), 1, dtype=torch.bool, device=ids.device)
    keep: list[torch.Tensor] = []
    for step in range(length):
        if step:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            state = _last(backbone, tokens[-1], mask, (lengths + step - 1)[:, None], cache)
        token = backbone.logits(state).argmax(-1).to(ids.device)
        if step:
            open_answers = open_answers & ~torch.isin(token, stops)
        states.append(state)
        tokens.append(token)
        keep.append(open_answers)
        if not open_answers.any():
            break
    return Answers(*(_padded(parts, length, value) for parts, value in ((states, 0), (tokens, -1), (keep, False))))


def _last(
    backbone: Backbone, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor | None, cache: object
) -> torch.Tensor:
    """Return the hidden states [B, T, D] of T further tokens, whose keys and values join the cache."""
    base = backbone.model.base_model
    output = base(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=positions,
        use_cache=True,
        **{cache_keyword(base): cache},
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden.to(ids.device)


def _padded(parts: list[torch.Tensor], length: int, value: float) -> torch.Tensor:
    """Return [B, T, ...] parts of T tokens joined and filled up to `length`."""
    missing = length - len(parts)
    return torch.cat([*parts, *[torch.full_like(parts[-1], value)] * missing], dim=1)
