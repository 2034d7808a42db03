"""Denoising: the masked positions filled in S >= 1 forward passes, and the slots that count afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.sequences import Batch

Stops = Literal["none", "special", "structural"]

# Logits held at once while predicting, in numbers; bounds memory at any vocabulary.
_LOGITS_AT_ONCE = 1 << 25


class Predictions(NamedTuple):
    """What masked positions predict over the full vocabulary.

    Attributes:
        tokens: [B, K] most probable id.
        confidence: [B, K] negative entropy of the distribution, in nats; 0 where it was not asked for.
        word_ids: [B, K, n] the n most probable ids, best first.
        word_probabilities: [B, K, n] their probabilities.
    """

    tokens: torch.Tensor
    confidence: torch.Tensor
    word_ids: torch.Tensor
    word_probabilities: torch.Tensor


class SlotReadings(NamedTuple):
    """The outputs at the masked positions; predictions are None when nothing asked for them."""

    hidden: torch.Tensor
    predictions: Predictions | None


@dataclass(frozen=True)
class Denoising:
    """How the masked positions are filled.

    Attributes:
        steps: S, number of forward passes; 1 is the paper's setting.
        linear: K // S positions a step, in place of the noise-level schedule.
        offset: added to a position before reading it; -1 for the aligned readout of shifted backbones.
    """

    steps: int = 1
    linear: bool = False
    offset: int = 0

    def counts(self, slots: int) -> list[int]:
        """Return how many slots each step fills; they sum to `slots`, trailing steps with nothing to do are left out.

        The noise-level schedule lowers t linearly from 1 to 0.001: a step from t to s fills the share 1 - s/t of
        the masked positions, at least one, and the last step fills the rest (docs/method.md, 11).
        """
        levels = torch.linspace(1, 0.001, self.steps + 1, dtype=torch.float32).tolist()
        counts: list[int] = []
        masked = slots
        for step in range(self.steps):
            if masked == 0:
                break
            share = slots // self.steps if self.linear else int(masked * (1 - levels[step + 1] / levels[step]))
            count = masked if step == self.steps - 1 else min(masked, max(1, share))
            counts.append(count)
            masked -= count
        return counts


def read_slots(
    backbone: Backbone,
    batch: Batch,
    slot_embeddings: torch.Tensor | None,
    denoising: Denoising,
    *,
    words: int,
    predict: bool,
) -> SlotReadings:
    """Return hidden states [B, K, D] at the masked positions, and what they predict.

    With S > 1 each pass fills the slots it is surest of (lowest entropy) with their most probable token, and a
    slot's outputs are those of the pass that filled it.

    Args:
        backbone: the language model.
        batch: sequences of K masked positions each.
        slot_embeddings: [K, D] added to the masked positions' inputs, or None.
        denoising: how many passes, and where to read.
        words: how many predicted words to return per slot.
        predict: whether the most probable token is wanted though `words` is 0.
    """
    counts = denoising.counts(batch.slots.shape[1])
    if len(counts) == 1:
        hidden = backbone.hidden_at(batch, slot_embeddings, offset=denoising.offset)
        return SlotReadings(hidden, predictions_of(backbone, hidden, words) if words or predict else None)
    open_slots = torch.ones_like(batch.slots, dtype=torch.bool)
    readings: SlotReadings | None = None
    for count in counts:
        hidden = backbone.hidden_at(batch, slot_embeddings, offset=denoising.offset)
        seen = predictions_of(backbone, hidden, words, confidence=True)
        chosen = _surest(seen.confidence, open_slots, count)
        if readings is None or readings.predictions is None:
            readings = SlotReadings(hidden, seen)
        else:
            kept = Predictions(*(_where(chosen, n, o) for n, o in zip(seen, readings.predictions, strict=True)))
            readings = SlotReadings(_where(chosen, hidden, readings.hidden), kept)
        open_slots &= ~chosen
        rows = torch.arange(len(batch.ids), device=batch.ids.device)[:, None]
        filled = torch.where(chosen, seen.tokens, batch.ids[rows, batch.slots])
        batch = replace(batch, ids=batch.ids.index_put((rows, batch.slots), filled))
    if readings is None:
        raise ValueError("a denoising schedule without steps")  # unreachable: counts() of K >= 1 slots is never empty
    return readings


def predictions_of(backbone: Backbone, hidden: torch.Tensor, words: int, *, confidence: bool = False) -> Predictions:
    """Return what hidden states [B, K, D] predict over the full vocabulary, at these positions only.

    Args:
        backbone: the language model.
        hidden: [B, K, D].
        words: n, how many of the most probable ids to return with their probabilities.
        confidence: whether it is wanted, which reads every probability; else it is 0.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    rows = max(1, _LOGITS_AT_ONCE // backbone.vocabulary_size)
    parts = []
    for chunk in torch.split(flat, rows):
        logits = backbone.logits(chunk)
        tokens = logits.argmax(-1)
        entropy = torch.zeros(len(chunk), device=logits.device)
        ids, probabilities = tokens[:, None][:, :0], entropy[:, None][:, :0]
        if confidence:
            log_p = torch.log_softmax(logits.float(), dim=-1)
            entropy = -(log_p.exp() * log_p).sum(-1)
        if words:
            top = logits.float().topk(min(words, logits.shape[-1]), dim=-1)
            ids = top.indices
            probabilities = (top.values - logits.float().logsumexp(-1, keepdim=True)).exp()
        parts.append((tokens, -entropy, ids, probabilities))
    shape = hidden.shape[:2]
    joined = [torch.cat(p) for p in zip(*parts, strict=True)]
    return Predictions(*(j.reshape(*shape, *j.shape[1:]).to(hidden.device) for j in joined))


def kept_slots(tokens: torch.Tensor, stop_ids: torch.Tensor, quote_ids: torch.Tensor | None) -> torch.Tensor:
    """Return which slots count, [B, K], given the token each predicts (docs/method.md, 3).

    A special token at slot c > 0 ends the answer: slots from c on do not count. At slot 0 it ends nothing.

    Args:
        tokens: [B, K] most probable ids.
        stop_ids: ids of special tokens, the mask excepted.
        quote_ids: ids of tokens that hold a double quote, whose slots are left out one by one; None to keep them.
    """
    is_stop = torch.isin(tokens, stop_ids)
    first = torch.where(is_stop.any(1), is_stop.int().argmax(1), tokens.shape[1])
    first = torch.where(first == 0, tokens.shape[1], first)
    keep = torch.arange(tokens.shape[1], device=tokens.device)[None, :] < first[:, None]
    return keep if quote_ids is None else keep & ~torch.isin(tokens, quote_ids)


def _surest(confidence: torch.Tensor, open_slots: torch.Tensor, count: int) -> torch.Tensor:
    """Return [B, K] True at the `count` open slots of highest confidence per row."""
    ranked = confidence.masked_fill(~open_slots, -torch.inf)
    chosen = torch.zeros_like(open_slots)
    return chosen.scatter(1, ranked.topk(count, dim=1).indices, True)


def _where(chosen: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Take `new` at the chosen [B, K] slots, whatever dimensions follow."""
    return torch.where(chosen.reshape(*chosen.shape, *([1] * (new.dim() - 2))), new, old)
