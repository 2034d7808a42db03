"""Base: a published encoder or causal model as a trainable masked-diffusion model of the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from diffretriever.backbones.attention import probe_attention, set_direction
from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.loading import load_backbone
from diffretriever.backbones.specs import BackboneSpec, spec_for
from diffretriever.checkpoint import locate
from diffretriever.errors import CheckpointError
from diffretriever.training.base import lacks_head, set_dropout, with_copying_head

#: Rows of causal models -> model type of the same class with full attention and the shift kept.
_DIFFUSION = {"qwen2": "Dream", "qwen3": "diffusion-qwen3", "llama": "diffusion-llama"}


def open_adaptable(name: str | Path, device: torch.device) -> Backbone:
    """Return a trainable backbone in fp32 that attends in both directions and knows a mask token.

    A BERT encoder without a vocabulary head gets one tied to its word embeddings. A causal model keeps its shift: raw
    position i goes on predicting token i + 1, which is what it has learned. Where the vocabulary has no mask token,
    one is added, with the mean of all embeddings as its own.

    Args:
        name: what `checkpoint.locate` understands.
        device: where the weights go.

    Raises:
        CheckpointError: files are missing or foreign, or the family cannot be adapted.
    """
    folder = locate(name)
    attention = "eager" if device.type == "cpu" else "sdpa"
    if folder.is_dir() and lacks_head(folder):
        backbone = with_copying_head(folder, attention).to(device)
    else:
        backbone = load_backbone(folder, device=device, dtype=torch.float32, attention=attention)
    if backbone.spec.attention == "causal":
        backbone = _as_diffusion(backbone)
    if backbone.spec.attention != "full":
        raise CheckpointError(f"{name}: a {backbone.spec.name} model attends in blocks and cannot be adapted further")
    backbone.requires_grad_(True)
    set_dropout(backbone, 0.0)
    probe_attention(backbone, folder)
    return backbone


def _as_diffusion(backbone: Backbone) -> Backbone:
    """Return a causal backbone as its full-attention relative."""
    if backbone.spec.name not in _DIFFUSION:
        raise CheckpointError(f"a {backbone.spec.name} model has no relative with full attention")
    spec = spec_for(_DIFFUSION[backbone.spec.name])
    backbone = _with_mask(backbone, spec) if backbone.special.mask < 0 else backbone
    set_direction(backbone.model, spec)
    return Backbone(backbone.model, spec, backbone.tokenizer, backbone.special, backbone.fingerprint).eval()


def _with_mask(backbone: Backbone, spec: BackboneSpec) -> Backbone:
    tokenizer = backbone.tokenizer.with_mask(cast(str, spec.mask_token))
    mask = cast(int, tokenizer.id_of(cast(str, spec.mask_token)))
    model = backbone.model
    embedding = cast(nn.Embedding, model.get_input_embeddings())  # type: ignore[operator]
    rows = embedding.num_embeddings
    mean = embedding.weight.detach().mean(dim=0)
    if mask >= rows:  # published matrices often have spare rows, which this leaves as they are
        model.resize_token_embeddings(mask + 1, mean_resizing=False)  # type: ignore[operator]
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):  # type: ignore[operator]
            module.weight[mask] = mean if module.weight.shape[1] == len(mean) else 0.0
    return Backbone(model, spec, tokenizer, replace(backbone.special, mask=mask), backbone.fingerprint)
