"""RepLLaMA: the hidden state of the end token under causal attention."""

from __future__ import annotations

from typing import ClassVar

import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.specs import Attention
from diffretriever.conventions import System
from diffretriever.sequences import Batch
from diffretriever.systems.pooled import Pooled


class RepLLaMA(Pooled):
    """The last position of "query: text" or "passage: text" and an end token, which has seen the whole text."""

    system: ClassVar[System] = "repllama"
    template: ClassVar[str] = "sides"
    position: ClassVar[str] = "last"
    directions: ClassVar[tuple[Attention, ...]] = ("causal",)

    @staticmethod
    def pool(backbone: Backbone, batch: Batch) -> torch.Tensor:
        """Return the hidden state of the last token of each text, [B, 1, D]."""
        return backbone.hidden_at(batch)
