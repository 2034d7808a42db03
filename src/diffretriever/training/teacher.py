"""Teacher: the frozen encoder the student starts from, mean-pooled."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffretriever.backbones.backbone import Backbone
from diffretriever.errors import CheckpointError


class Teacher:
    """Mean of the last hidden states of all tokens, L2-normalised (Reimers and Gurevych 2019).

    Args:
        backbone: a BERT backbone; copied, never trained.
        chunk: texts per forward pass.
    """

    def __init__(self, backbone: Backbone, chunk: int = 16) -> None:
        self._backbone = copy.deepcopy(backbone).eval().requires_grad_(False)
        self._backbone.model.config._attn_implementation = "sdpa"  # type: ignore[union-attr]
        first = backbone.tokenizer.id_of("[CLS]")
        if first is None:
            raise CheckpointError("the teacher's tokeniser lacks [CLS]; a mean-pooling BERT encoder has it")
        self._ends = first, backbone.special.end_of_sequence
        self._chunk = chunk

    @torch.no_grad()
    def encode(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Return [N, D] unit vectors of texts given as token ids without special tokens."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(order), self._backbone.hidden_size)
        for start in range(0, len(order), self._chunk):
            part = order[start : start + self._chunk]
            rows = [[self._ends[0], *texts[i], self._ends[1]] for i in part]
            width = max(len(row) for row in rows)
            ids = torch.tensor([row + [self._backbone.special.pad] * (width - len(row)) for row in rows])
            mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
            hidden = self._backbone.hidden_states(ids, mask).float()
            out[part] = F.normalize((hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True), dim=-1)
        return out
