"""Attention masks of full, block and causal backbones, and the probe that a model obeys them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from diffretriever.backbones.specs import BackboneSpec
from diffretriever.errors import AttentionError, CheckpointError

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


def probe_attention(backbone: Backbone, folder: Path) -> None:
    """Check on a short random input that information flows as the row says: once, at load time.

    Changes the last token and looks at the first position's hidden state: it must move under full attention and
    within a block, and must stay under causal attention and where the last token is the next block's. Without padding
    the states must be those with padding. Weights that say nothing about attention, because what comes of them is no
    number or always the same, are named first.

    Args:
        backbone: the backbone.
        folder: where its weights are from, for messages.

    Raises:
        AttentionError: it does not.
        CheckpointError: the states are no numbers, or the same for all tokens.
    """
    spec = backbone.spec
    blocks = spec.attention == "block"
    length = min(8, backbone.block_length) if blocks else 8
    with torch.inference_mode():
        ids, mask = _probe(backbone, length)
        padded = backbone.hidden_states(ids, mask, padded=True).float()
        _check_states(padded, backbone.dtype_name, folder)
        _check_direction(spec, padded[:, 0], moves=spec.attention != "causal")
        if backbone.packs:
            _check_packed(spec, backbone.hidden_states(ids, mask).float(), padded)
        if blocks:
            ids, mask = _probe(backbone, backbone.block_length + 1)
            _check_direction(spec, backbone.hidden_states(ids, mask, padded=True).float()[:, 0], moves=False)


def _probe(backbone: Backbone, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return three sequences [3, length] and the mask of their real tokens.

    The second differs from the first in the last token, the third in all.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, backbone.vocabulary_size, (length,), generator=generator).to(backbone.device)
    ids = torch.stack([first, first, (first + 1) % backbone.vocabulary_size])
    ids[1, -1] = ids[2, -1]
    return ids, torch.ones_like(ids, dtype=torch.bool)


def _moves(one: torch.Tensor, other: torch.Tensor) -> tuple[bool, float]:
    """Return whether two states differ by more than rounding, and by how much."""
    moved = float((one - other).abs().max())
    return moved > 1e-6 * float(one.abs().max() + 1e-12), moved


def _check_states(states: torch.Tensor, dtype: str, folder: Path) -> None:
    """Raise if the states [3, L, D] of the probe are no numbers, or do not depend on the tokens."""
    if not bool(states.isfinite().all()):
        raise CheckpointError(
            f"{folder}: the hidden states are not finite (computed in {dtype}): a weight is no finite number, or too "
            "large for this dtype; restore the weights, or load them in float32 if they are whole"
        )
    if not _moves(states[0], states[2])[0]:
        raise CheckpointError(
            f"{folder}: the hidden states are the same whatever the tokens are; weights may be zeros or rounded away, "
            "restore them"
        )


def _check_direction(spec: BackboneSpec, first: torch.Tensor, *, moves: bool) -> None:
    """Raise unless the first two states [3, D], which differ by what follows them, are moved by that as they should."""
    reaches, moved = _moves(first[0], first[1])
    if reaches != moves:
        raise AttentionError(
            f"{spec.name}: attention is {'full' if reaches else 'causal'}, the row says {spec.attention} (first "
            f"position moved by {moved:.1e} when the last token changed); this release of transformers does not honour "
            "the mask, install transformers 5.23.0, which this package was tested with"
        )


def _check_packed(spec: BackboneSpec, packed: torch.Tensor, padded: torch.Tensor) -> None:
    agreement = float(torch.cosine_similarity(packed, padded, dim=-1).min())
    if not agreement > 0.98:
        raise AttentionError(
            f"{spec.name}: sequences without padding give other states than with it (least cosine "
            f"{agreement:.3f}); this release of torch or transformers attends across them, load with attention='sdpa'"
        )
