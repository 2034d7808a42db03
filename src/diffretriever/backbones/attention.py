"""Attention masks of full, block and causal backbones, and the probe that a model obeys them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from diffretriever.backbones.specs import BackboneSpec
from diffretriever.errors import AttentionError

if TYPE_CHECKING:
    from diffretriever.backbones.backbone import Backbone

# Encoder classes of transformers read a [B, L] mask as bidirectional; ModernBERT also needs it for its local layers.
_ENCODERS = ("BertForMaskedLM", "ModernBertForMaskedLM")


def attention_mask(spec: BackboneSpec, mask: torch.Tensor, implementation: str, block_length: int) -> torch.Tensor:
    """Return the mask to pass to the native class for key padding `mask` [B, L].

    Decoder classes get an explicit boolean [B, 1, 1 or L, L] mask over keys, because some releases of transformers
    ignore every flag that asks for full attention. Only keys are masked: no query row is ever left empty.
    """
    if spec.attention == "causal" or spec.architecture in _ENCODERS or implementation.startswith("flash"):
        return mask.long()  # blocks never come here: `loading` gives them no flash attention, which has no such mask
    keys = mask[:, None, None, :]
    if spec.attention == "block":
        block = torch.arange(mask.shape[1], device=mask.device) // block_length
        keys = keys & (block[None, :] <= block[:, None])[None, None]
    if implementation == "eager":
        bias = torch.zeros(keys.shape, device=mask.device)
        return bias.masked_fill_(~keys, torch.finfo(torch.float32).min)
    return keys


def set_direction(model: nn.Module, spec: BackboneSpec) -> None:
    """Set the flag that newer releases of transformers honour, on the config and on every attention layer."""
    if spec.architecture in _ENCODERS:
        return
    causal = spec.attention == "causal"
    model.config.is_causal = causal  # type: ignore[union-attr]
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = causal  # type: ignore[assignment]


def probe_attention(backbone: Backbone) -> None:
    """Check on a short random input that information flows as the row says: once, at load time.

    Changes the last token and looks at the first position's hidden state: it must move under full attention and
    within a block, and must stay under causal attention and where the last token is the next block's. Without padding
    the states must be those with padding.

    Raises:
        AttentionError: it does not.
    """
    spec = backbone.spec
    blocks = spec.attention == "block"
    length = min(8, backbone.block_length) if blocks else 8
    with torch.inference_mode():
        ids, mask = _probe(backbone, length)
        padded = backbone.hidden_states(ids, mask, padded=True).float()
        _check_direction(spec, padded[:, 0], moves=spec.attention != "causal")
        if backbone.packs:
            _check_packed(spec, backbone.hidden_states(ids, mask).float(), padded)
        if blocks:
            ids, mask = _probe(backbone, backbone.block_length + 1)
            _check_direction(spec, backbone.hidden_states(ids, mask, padded=True).float()[:, 0], moves=False)


def _probe(backbone: Backbone, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two sequences [2, length] that differ in the last token, and the mask of their real tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, backbone.vocabulary_size, (2, length), generator=generator).to(backbone.device)
    ids[1, :-1] = ids[0, :-1]
    ids[1, -1] = (ids[0, -1] + 1) % backbone.vocabulary_size
    return ids, torch.ones_like(ids, dtype=torch.bool)


def _check_direction(spec: BackboneSpec, first: torch.Tensor, *, moves: bool) -> None:
    """Raise if the first of two states [2, D], which differ by what follows them, is moved by that and should not."""
    moved = float((first[0] - first[1]).abs().max())
    reaches = moved > 1e-6 * float(first.abs().max() + 1e-12)
    if reaches != moves:
        raise AttentionError(
            f"{spec.name}: attention is {'full' if reaches else 'causal'}, the row says {spec.attention} (first "
            f"position moved by {moved:.1e} when the last token changed); this release of transformers does not honour "
            "the mask, install transformers>=5.2,<6"
        )


def _check_packed(spec: BackboneSpec, packed: torch.Tensor, padded: torch.Tensor) -> None:
    agreement = float(torch.cosine_similarity(packed, padded, dim=-1).min())
    if not agreement > 0.98:
        raise AttentionError(
            f"{spec.name}: sequences without padding give other states than with it (least cosine "
            f"{agreement:.3f}); this release of torch or transformers attends across them, load with attention='sdpa'"
        )
