"""DiffEmbed: the mean of a text's own hidden states under full attention."""

from __future__ import annotations

from typing import ClassVar

import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.specs import Attention
from diffretriever.conventions import System
from diffretriever.sequences import Batch
from diffretriever.systems.pooled import Pooled


class DiffEmbed(Pooled):
    """Mean pooling over a diffusion model, without a prompt; over a BERT encoder it is what is known as SBERT.

    Averaged are all positions of the sequence: the text's own, and the tokens that the tokeniser puts around any text.
    """

    system: ClassVar[System] = "diffembed"
    template: ClassVar[str] = "bare"
    position: ClassVar[str] = "mean"
    directions: ClassVar[tuple[Attention, ...]] = ("full", "block")

    @staticmethod
    def pool(backbone: Backbone, batch: Batch) -> torch.Tensor:
        """Return the mean of the hidden states of each text in fp32, [B, 1, D]."""
        return mean_hidden(backbone, batch)


def mean_hidden(backbone: Backbone, batch: Batch) -> torch.Tensor:
    """Return the mean over all real positions of each sequence, in fp32, [B, 1, D]."""
    hidden = backbone.hidden_states(batch.ids, batch.mask)
    real = batch.mask.to(hidden.device)[:, :, None]
    return (hidden.float() * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
