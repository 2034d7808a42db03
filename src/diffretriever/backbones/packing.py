"""Packing: sequences of a batch in one row without padding, through transformers' own classes.

The classes call an attention function by name (`AttentionInterface`). Ours attends within each sequence when it is
given their borders, and is transformers' `sdpa` when it is not. A hook on the last layer leaves there only the
positions that are wanted: keys and values come from all, queries, products and norms from those.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diffretriever.backbones.cache import cache_keyword
from diffretriever.backbones.segments import Segments, attend, has_kernel
from diffretriever.backbones.specs import BackboneSpec

log = logging.getLogger("diffretriever")

#: Name of our attention function in transformers' registry.
IMPLEMENTATION = "diffretriever"

_DECODERS = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")
_ENCODERS = ("BertForMaskedLM",)
_said: set[str] = set()


@dataclass(frozen=True)
class Packed:
    """The layout of one packed row of T tokens, handed to every layer.

    Attributes:
        segments: the sequences.
        wanted: [W] places in the row that are read in the end, None for all.
        last: the sequences as the last layer sees them: wanted positions as queries, all as keys.
    """

    segments: Segments
    wanted: torch.Tensor | None = None
    last: Segments | None = None


class _AllKeys:
    """Stands in the place of a cache and answers a layer's own keys and values with those of all positions."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._all = keys, values

    def update(self, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        return self._all


def register() -> None:
    """Make the attention function known to transformers; may be called again."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def reason_to_pad(spec: BackboneSpec, model: nn.Module) -> str | None:
    """Return why a model's sequences have to be padded to equal lengths, None when they need not."""
    config: Any = model.config
    if spec.architecture not in (*_DECODERS, *_ENCODERS):
        return f"{spec.architecture} is not known to take packed sequences"
    if spec.attention == "block":
        return "attention in blocks is computed by masks"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "attention in a sliding window is computed by masks"
    if len(set((getattr(model, "hf_device_map", None) or {"": 0}).values())) > 1:
        return "the layers are spread over several devices"
    weight = next(model.parameters())
    if weight.device.type != "cpu" and not has_kernel(weight.device, weight.dtype):
        return f"there is no kernel for packed sequences in {weight.dtype} on {weight.device.type} here"
    return None


def enable_packing(spec: BackboneSpec, model: nn.Module) -> bool:
    """Let a model take packed sequences if it can, saying once if it cannot; return whether it can."""
    reason = reason_to_pad(spec, model)
    if reason is not None:
        if reason not in _said:
            _said.add(reason)
            log.warning("%s: sequences of a batch are padded to equal lengths, which is slower: %s", spec.name, reason)
        return False
    register()
    model.config._attn_implementation = IMPLEMENTATION  # type: ignore[union-attr]
    layers, prune = _last_layer(spec)
    model.base_model.get_submodule(layers)[-1].register_forward_pre_hook(prune, with_kwargs=True)  # type: ignore[union-attr,index]
    return True


def packed_forward(
    spec: BackboneSpec,
    model: nn.Module,
    embeddings: torch.Tensor,
    positions: torch.Tensor,
    lengths: tuple[int, ...],
    wanted: torch.Tensor | None,
) -> torch.Tensor:
    """Return the last hidden states after the final norm, [T, D], or [B * K, D] of the wanted positions only.

    Args:
        spec: row of the model.
        model: a model after `enable_packing`.
        embeddings: [T, D] input embeddings, sequence after sequence.
        positions: [T] position of each token in its own sequence.
        lengths: tokens of each sequence.
        wanted: [B, K] places in the packed row, None for all.
    """
    # Causal attention of some positions only would need masks; there the last layer is computed whole.
    prune = wanted is not None and spec.attention != "causal"
    packed = Packed(Segments(lengths, lengths).to(embeddings.device))
    if prune and wanted is not None:
        last = Segments((wanted.shape[1],) * len(lengths), lengths).to(embeddings.device)
        packed = Packed(packed.segments, wanted.flatten(), last)
    hidden: torch.Tensor = model.base_model(  # type: ignore[operator]
        inputs_embeds=embeddings[None],
        position_ids=positions[None],
        # Passed on as it is because it has four dimensions, and never read: without one transformers would make one.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeddings.device),
        packed=packed,
    ).last_hidden_state[0]
    return hidden if wanted is None or prune else hidden[wanted.flatten()]


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: Packed | None = None,
    **kwargs: Any,  # noqa: ANN401  (what a class passes on)
) -> tuple[torch.Tensor, None]:
    """Return the attention of one layer, [B, L, H, d], as transformers calls it; B is 1 for packed sequences."""
    if packed is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    segments = packed.segments if packed.last is None or query.shape[2] == key.shape[2] else packed.last
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = bool(getattr(module, "is_causal", False))
    return attend(query[0], key[0], value[0], segments, scale=scale, causal=causal, dropout=dropout)[None], None


def _last_layer(spec: BackboneSpec) -> tuple[str, Callable[..., Any]]:
    """Return the path of a family's layers and the hook that leaves the wanted positions to the last."""
    return ("encoder.layer", _prune_encoder) if spec.architecture in _ENCODERS else ("layers", _prune_decoder)


def _prune_decoder(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Replace the inputs of the last layer of the Llama kind: rotary positions, norm before attention."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    packed: Packed | None = kwargs.get("packed")
    if packed is None or packed.wanted is None:
        return None
    hidden: torch.Tensor = args[0]
    attention: Any = layer.self_attn
    normed = layer.get_submodule("input_layernorm")(hidden)
    shape = (*hidden.shape[:-1], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(shape)
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys)
    keys, values = keys.transpose(1, 2), attention.v_proj(normed).view(shape).transpose(1, 2)
    cos, sin = kwargs["position_embeddings"]
    keys = apply_rotary_pos_emb(keys[:, :0], keys, cos, sin)[1]
    rotations = tuple(t.index_select(1, packed.wanted) for t in (cos, sin))
    changed = {"position_embeddings": rotations, cache_keyword(layer): _AllKeys(keys, values)}
    return (hidden.index_select(1, packed.wanted), *args[1:]), {**kwargs, **changed}


def _prune_encoder(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Replace the inputs of the last layer of the BERT kind: no rotary positions, norm after attention."""
    packed: Packed | None = kwargs.get("packed")
    if packed is None or packed.wanted is None:
        return None
    hidden: torch.Tensor = args[0]
    attention: Any = layer.get_submodule("attention.self")
    shape = (*hidden.shape[:-1], -1, attention.attention_head_size)
    keys, values = (linear(hidden).view(shape).transpose(1, 2) for linear in (attention.key, attention.value))
    return (hidden.index_select(1, packed.wanted), *args[1:]), {**kwargs, cache_keyword(layer): _AllKeys(keys, values)}
