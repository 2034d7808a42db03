"""Pooling layer: one more layer on a BERT encoder, which lets every position say from the start what all say together.

An encoder that was tuned to be mean-pooled puts its answer into the mean of its last hidden states, where no single
position reads it. One layer of the same kind can: its values and its output are the identity, its attention is that of
the layer below, so its output is an average of the last hidden states, a copy of which is what a masked position lacks.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from diffretriever.backbones.backbone import Backbone
from diffretriever.errors import CheckpointError

#: How much the average counts beside a position's own state, which knows its part of the text.
_SHARE = 4.0


@torch.no_grad()
def append_pooling_layer(backbone: Backbone) -> None:
    """Add a layer that averages to the end of a BERT encoder, in place; the config counts it.

    Raises:
        CheckpointError: the backbone is of another family.
    """
    encoder = getattr(getattr(backbone.model, "bert", None), "encoder", None)
    config = backbone.model.config
    if encoder is None or config.model_type != "bert":  # type: ignore[union-attr]
        raise CheckpointError(
            f"model.pooling_layer is on; it is for BERT encoders, and the base is a {config.model_type} model; "  # type: ignore[union-attr]
            "leave it out"
        )
    layer = copy.deepcopy(encoder.layer[-1])
    attention, width = layer.attention, backbone.hidden_size
    for linear, value in ((attention.self.value, 1.0), (attention.output.dense, _SHARE), (layer.output.dense, 0.0)):
        linear.weight.zero_()
        linear.weight[:, :width].fill_diagonal_(value)
        linear.bias.zero_()
    for norm in (attention.output.LayerNorm, layer.output.LayerNorm):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
    attention.self.layer_idx = len(encoder.layer)
    encoder.layer.append(layer)
    config.num_hidden_layers = len(encoder.layer)  # type: ignore[union-attr]
