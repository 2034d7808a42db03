"""Objective: the loss of masked diffusion, and cross entropy on texts that training does not see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffretriever.backbones.backbone import Backbone
from diffretriever.training.adaptation.corruption import Corrupted, corrupt
from diffretriever.training.adaptation.texts import collate_corrupted

#: Texts of a forward pass on held-out texts.
_BATCH = 32


class MaskedDiffusionModel(nn.Module):
    """A backbone that predicts its masked tokens.

    Attributes:
        backbone: the language model.
        tokens_seen: tokens that went through it in training, padding left out.
    """

    tokens_seen: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.long), persistent=False)
        named: dict[int, str] = {}
        #: Read by transformers' `Trainer`: tied tensors are written once. Loading leaves them tied.
        self._keys_to_ignore_on_save = [
            name for name, tensor in self.state_dict().items() if named.setdefault(tensor.data_ptr(), name) != name
        ]
        self.register_state_dict_post_hook(_without_tied)  # type: ignore[no-untyped-call]

    def tie_weights(self) -> None:
        """Do nothing: tied weights are one parameter."""

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        rows: Tensor,
        positions: Tensor,
        targets: Tensor,
        weights: Tensor,
        tokens: Tensor,
    ) -> Mapping[str, Tensor]:
        """Return {"loss": ...}; see `collate_corrupted` for what goes in."""
        self.tokens_seen += mask.sum()
        logits = self.logits(ids, mask, rows, positions)
        return {"loss": masked_diffusion_loss(logits, targets, weights, tokens)}

    def logits(self, ids: Tensor, mask: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Return the logits [M, V] of the tokens at `positions` [M] of the texts `rows` [M], in fp32.

        They are read where the model speaks of those tokens: one position earlier in a model with a shift.
        """
        hidden = self.backbone.hidden_states(ids, mask, padded=True)
        return self.backbone.logits(hidden[rows, positions - self.backbone.spec.shift]).float()


def _without_tied(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    for name in cast(MaskedDiffusionModel, module)._keys_to_ignore_on_save:
        state.pop(prefix + name, None)


def masked_diffusion_loss(logits: Tensor, targets: Tensor, weights: Tensor, tokens: Tensor) -> Tensor:
    """Return sum over masked tokens of cross entropy / t, per token that could have been masked.

    Its expectation over t ~ U(0, 1) bounds the negative log likelihood per token from above (Nie et al. 2025).

    Args:
        logits: [M, V] of the masked tokens.
        targets: [M] the tokens.
        weights: [M] 1 / t of their texts.
        tokens: how many tokens could have been masked.
    """
    each = F.cross_entropy(logits, targets, reduction="none")
    return (each * weights).sum() / tokens.clamp(min=1)


@torch.no_grad()
def held_out_cross_entropy(
    model: MaskedDiffusionModel,
    sequences: Sequence[tuple[list[int], list[int]]],
    rates: Sequence[float],
    seed: int,
    *,
    bf16: bool = False,
) -> dict[str, float]:
    """Return the mean cross entropy in nats of a masked token at each mask rate.

    The same tokens are masked whenever the same texts, rates and seed are given.

    Args:
        model: the model.
        sequences: token ids of each text, and the places that may be masked.
        rates: shares of tokens that are masked.
        seed: of the masks.
        bf16: whether products are in bf16.
    """
    special = model.backbone.special
    was_training = model.training
    model.eval()
    found = {}
    for rate in rates:
        rng = np.random.default_rng([seed, 5, round(rate * 1e6)])
        corrupted = [corrupt(ids, maskable, rate, special.mask, rng) for ids, maskable in sequences]
        total, count = 0.0, 0
        for batch in _batches(corrupted, special.pad):
            moved = {k: v.to(model.backbone.device) for k, v in batch.items()}
            with torch.autocast(model.backbone.device.type, dtype=torch.bfloat16, enabled=bf16):
                logits = model.logits(*(moved[k] for k in ("ids", "mask", "rows", "positions")))
            total += float(F.cross_entropy(logits, moved["targets"], reduction="sum"))
            count += len(moved["targets"])
        found[f"{rate:g}"] = total / max(1, count)
    model.train(was_training)
    return found


def _batches(corrupted: Sequence[Corrupted], pad: int) -> Iterator[Mapping[str, Tensor]]:
    kept = sorted((c for c in corrupted if c.positions), key=lambda c: len(c.ids))
    for start in range(0, len(kept), _BATCH):
        yield collate_corrupted(kept[start : start + _BATCH], pad)
